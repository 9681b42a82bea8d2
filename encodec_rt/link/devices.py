"""The microphone and the speaker as the ends of a call."""

from __future__ import annotations

import asyncio

import numpy as np

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import AudioDeviceError, ConfigError
from encodec_rt.live.rate import Converter, Playout
from encodec_rt.live.streams import AudioSink, AudioSource
from encodec_rt.streaming.session import Audio

POLL_S = 0.002
CLOCK_PULL = 0.02
"""How much of its error the smoothed playout clock makes good per hop."""


class DeviceSource:
    """A started input stream, mono, at the rate of the model."""

    def __init__(self, stream: AudioSource, config: EncodecConfig) -> None:
        """Take over ``stream``. Raises ConfigError for a model that is not mono."""
        _check_mono(config)
        self._stream = stream
        self._hop = config.hop_length
        self._ratio = config.sampling_rate / stream.rate_hz
        self._converter = Converter()
        self._rest: Audio = np.zeros(0, np.float32)

    async def read(self) -> Audio | None:
        """The next hop. Raises AudioDeviceError when the device is gone."""
        while len(self._rest) < self._hop:
            if self._stream.waiting:
                captured = self._stream.read(self._stream.waiting)
                made = self._converter.process(captured, self._ratio)
                self._rest = np.concatenate([self._rest, made])
            elif not self._stream.active:
                raise AudioDeviceError(f"the microphone {self._stream.name!r} is gone")
            else:
                await asyncio.sleep(POLL_S)
        hop, self._rest = self._rest[: self._hop], self._rest[self._hop :]
        return hop[None]

    def close(self) -> None:
        """Give the device back."""
        self._stream.close()


class DeviceSink:
    """A started output stream, which asks for a hop whenever its queue runs low."""

    def __init__(self, stream: AudioSink, config: EncodecConfig) -> None:
        """Take over ``stream``. Raises ConfigError for a model that is not mono."""
        _check_mono(config)
        self._stream = stream
        self._playout = Playout(stream, config.sampling_rate)
        self._hop_s = config.hop_length / config.sampling_rate
        self._tick_s: float | None = None

    async def ready(self) -> float:
        """Wait for room in the queue. Raises AudioDeviceError when the device is gone."""
        loop = asyncio.get_running_loop()
        while self._tick_s is not None and self._playout.fill_ms > self._playout.target_ms:
            if not self._stream.active:
                raise AudioDeviceError(f"the speaker {self._stream.name!r} is gone")
            await asyncio.sleep(POLL_S)
        now_s = loop.time()
        # Callbacks come in steps; the jitter buffer wants the clock behind them.
        due_s = now_s if self._tick_s is None else self._tick_s + self._hop_s
        self._tick_s = due_s + CLOCK_PULL * (now_s - due_s)
        return self._tick_s

    def write(self, audio: Audio) -> None:
        """Queue a hop."""
        self._playout.write(audio.reshape(-1))

    def close(self) -> None:
        """Give the device back."""
        self._stream.close()


def _check_mono(config: EncodecConfig) -> None:
    if config.audio_channels != 1:
        raise ConfigError(
            f"a model of {config.audio_channels} channels; calls with a microphone and a speaker "
            "are mono"
        )
