"""Where a call's audio comes from and goes to: sound files, silence and nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from encodec_rt.audio import AudioReader, AudioRecording
from encodec_rt.config import EncodecConfig
from encodec_rt.sound.meter import Level
from encodec_rt.types import Audio
from encodec_rt.voice.transport import CallSink, CallSource

LATE_S = 0.5
"""A file that lags behind its clock by more stops catching up, as after a suspend."""


class Clock:
    """Ticks of one hop on the event loop's clock."""

    def __init__(self, hop_s: float) -> None:
        """The first tick comes a hop after the first call."""
        self._hop_s = hop_s
        self._next_s: float | None = None

    async def tick(self) -> float:
        """Wait for the next tick; its time."""
        now_s = asyncio.get_running_loop().time()
        if self._next_s is None or now_s - self._next_s > LATE_S:
            self._next_s = now_s
        self._next_s += self._hop_s
        tick_s = self._next_s
        await asyncio.sleep(max(0.0, tick_s - now_s))
        return tick_s


class FileSource:
    """A sound file played into the call at the pace of a microphone."""

    def __init__(self, path: str | Path, config: EncodecConfig) -> None:
        """Open ``path``. Raises InputError if it is not audio."""
        self._closed = False
        self._reader = AudioReader(path)
        self._hops = _hops(self._reader, config)
        self._clock = Clock(config.hop_length / config.sampling_rate)

    async def read(self) -> Audio | None:
        """The next hop, filled up with silence at the end of the file; none after ``close``."""
        await self._clock.tick()
        return None if self._closed else next(self._hops, None)

    def close(self) -> None:
        """Close the file."""
        self._closed = True
        self._reader.close()


class FileSink:
    """A sound file that records what a speaker would play, whatever ends the call."""

    def __init__(self, path: str | Path, config: EncodecConfig, *, force: bool = False) -> None:
        """Create ``path``. Raises InputError if it exists and ``force`` is not set."""
        self._recording = AudioRecording(
            path, rate_hz=config.sampling_rate, channels=config.audio_channels, force=force
        )
        self._clock = Clock(config.hop_length / config.sampling_rate)

    async def ready(self) -> float:
        """Wait for the next tick."""
        return await self._clock.tick()

    def write(self, audio: Audio) -> None:
        """Append a hop."""
        self._recording.write(audio)

    def close(self) -> None:
        """Finish the file, which then appears under its name."""
        self._recording.finish()


class SilentSource:
    """A microphone that is off."""

    def __init__(self, config: EncodecConfig) -> None:
        """Silence at the rate of the model."""
        self._silence = np.zeros((config.audio_channels, config.hop_length), np.float32)
        self._clock = Clock(config.hop_length / config.sampling_rate)

    async def read(self) -> Audio | None:
        """A hop of zeros."""
        await self._clock.tick()
        return self._silence

    def close(self) -> None:
        """Nothing is held."""


class NullSink:
    """A speaker that is off."""

    def __init__(self, config: EncodecConfig) -> None:
        """Paced like a speaker."""
        self._clock = Clock(config.hop_length / config.sampling_rate)

    async def ready(self) -> float:
        """Wait for the next tick."""
        return await self._clock.tick()

    def write(self, audio: Audio) -> None:
        """Play nothing."""

    def close(self) -> None:
        """Nothing is held."""


class MeteredSource:
    """A source with a level meter."""

    def __init__(self, source: CallSource) -> None:
        """Passes ``source`` on unchanged."""
        self.level = Level()
        self._source = source

    async def read(self) -> Audio | None:
        """The next hop."""
        audio = await self._source.read()
        if audio is not None:
            self.level.update(audio.reshape(-1))
        return audio

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class MeteredSink:
    """A sink with a level meter."""

    def __init__(self, sink: CallSink) -> None:
        """Passes audio on to ``sink`` unchanged."""
        self.level = Level()
        self._sink = sink

    async def ready(self) -> float:
        """Wait as long as the sink does."""
        return await self._sink.ready()

    def write(self, audio: Audio) -> None:
        """Pass a hop on."""
        self.level.update(audio.reshape(-1))
        self._sink.write(audio)

    def close(self) -> None:
        """Close the sink."""
        self._sink.close()


def _hops(reader: AudioReader, config: EncodecConfig) -> Iterator[Audio]:
    hop = config.hop_length
    rest = np.zeros((config.audio_channels, 0), np.float32)
    for block in reader.blocks(config.sampling_rate, config.audio_channels):
        rest = np.concatenate([rest, block], axis=1)
        whole = rest.shape[1] // hop * hop
        yield from np.split(rest[:, :whole], whole // hop, axis=1) if whole else []
        rest = rest[:, whole:]
    if rest.shape[1]:
        yield np.pad(rest, ((0, 0), (0, hop - rest.shape[1])))
