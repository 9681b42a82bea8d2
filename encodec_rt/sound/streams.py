"""Streams of one direction each: an audio callback on one side, plain calls on the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from encodec_rt.sound.fifo import SampleFifo
from encodec_rt.types import Audio, Samples

BLOCK_S = 320 / 24_000
"""What a callback moves at a time: one frame of the 24 kHz model."""
POLL_S = 0.002
"""The worker polls for a block this often; a callback must not wake it, since that takes a lock."""
MAX_BACKLOG_S = 0.2
FIFO_S = 2.0


@dataclass
class StreamCounts:
    """What one stream's callback has seen; only the callback writes it.

    The flags are PortAudio's own. ``starvations`` are the times that the queue ran empty while
    audio was expected, ``lost_samples`` what a full input queue or an empty output queue cost.
    """

    callbacks: int = 0
    samples: int = 0
    input_overflow: int = 0
    input_underflow: int = 0
    output_overflow: int = 0
    output_underflow: int = 0
    priming_output: int = 0
    starvations: int = 0
    lost_samples: int = 0

    def see(self, flags: Any) -> None:
        """Count what PortAudio reports with a block."""
        self.input_overflow += flags.input_overflow
        self.input_underflow += flags.input_underflow
        self.output_overflow += flags.output_overflow
        self.output_underflow += flags.output_underflow
        self.priming_output += flags.priming_output


class AudioSource(Protocol):
    """Something that records, mono, on its own clock."""

    name: str
    rate_hz: int
    latency_ms: float
    counts: StreamCounts

    @property
    def waiting(self) -> int:
        """Samples that ``read`` would give."""

    @property
    def active(self) -> bool:
        """False once the stream has ended by itself."""

    def read(self, most: int) -> Audio:
        """Up to ``most`` of the samples that were captured since the last call, at once."""

    def skip(self, count: int) -> int:
        """Drop the oldest ``count`` samples; returns how many there were."""

    def close(self) -> None:
        """Stop and release the device."""


class AudioSink(Protocol):
    """Something that plays, mono, on its own clock."""

    name: str
    rate_hz: int
    latency_ms: float
    counts: StreamCounts

    @property
    def fill(self) -> int:
        """Samples that wait to be played."""

    @property
    def active(self) -> bool:
        """False once the stream has ended by itself."""

    def write(self, samples: Samples) -> int:
        """Queue ``samples`` and return how many did not fit; from now on it must not run empty."""

    def pause(self) -> None:
        """Until the next ``write`` an empty queue is silence, not starvation."""

    def close(self) -> None:
        """Stop and release the device."""


class AudioSystem(Protocol):
    """What opens sources and sinks, and the clock they run on."""

    def open_source(self) -> AudioSource:
        """The input, started. Raises AudioDeviceError."""

    def open_sink(self) -> AudioSink:
        """The output, started. Raises AudioDeviceError."""

    def rescan(self) -> None:
        """Rescan the devices; every stream must be closed."""

    def now(self) -> float:
        """Seconds, from any origin."""

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds``."""


class _PortAudioStream:
    """A stream of a sound card, and the samples between its callback and the other side."""

    def __init__(self, name: str, rate_hz: int, channels: int) -> None:
        """``attach`` gives it the stream whose callback is ``callback``."""
        self.name = name
        self.rate_hz = rate_hz
        self.latency_ms = 0.0
        self.counts = StreamCounts()
        self.channels = channels
        self._fifo = SampleFifo(int(FIFO_S * rate_hz) * channels)
        self._stream: Any = None
        self._close: Callable[[], None]

    def attach(self, stream: Any, close: Callable[[], None]) -> None:
        """Take over ``stream``, which is started and which ``close`` will close."""
        self._stream, self._close = stream, close
        self.latency_ms = 1000 * stream.latency

    @property
    def active(self) -> bool:
        """False once the stream has ended by itself."""
        return bool(self._stream.active)

    def close(self) -> None:
        """Stop and release the device. Raises AudioDeviceError if the sound system hangs."""
        self._close()


class InputStream(_PortAudioStream):
    """An input stream: its callback queues blocks, ``read`` takes them."""

    def callback(self, block: Any, frames: int, _time: Any, status: Any) -> None:
        """PortAudio's, in a thread of its own: moves bytes and counts."""
        counts = self.counts
        lost = self._fifo.write(np.frombuffer(block, np.int16))
        counts.callbacks += 1
        counts.samples += frames
        if lost:
            counts.lost_samples += lost // self.channels
        if status:
            counts.see(status)

    @property
    def waiting(self) -> int:
        """Samples that ``read`` would give."""
        return self._fifo.fill // self.channels

    def read(self, most: int) -> Audio:
        """Up to ``most`` samples, float32; several channels are averaged."""
        block = np.empty(min(most, self.waiting) * self.channels, np.int16)
        self._fifo.read_into(block)
        frames = block.reshape(-1, self.channels).astype(np.float32)
        mono: Audio = frames.mean(axis=1) / np.float32(32768.0)
        return mono

    def skip(self, count: int) -> int:
        """Drop the oldest ``count`` samples; returns how many there were."""
        return self._fifo.skip(count * self.channels) // self.channels


class OutputStream(_PortAudioStream):
    """An output stream: ``write`` queues samples, its callback takes them."""

    def __init__(self, name: str, rate_hz: int, channels: int) -> None:
        """As that of any stream; nothing is expected to be in the queue yet."""
        super().__init__(name, rate_hz, channels)
        self._expected = False
        self._empty = False

    def callback(self, block: Any, frames: int, _time: Any, status: Any) -> None:
        """PortAudio's, in a thread of its own: moves bytes and counts."""
        counts = self.counts
        target = np.frombuffer(block, np.int16)
        missing = self._fifo.read_into(target)
        counts.callbacks += 1
        counts.samples += frames
        if missing:
            target[len(target) - missing :] = 0
            if self._expected:
                counts.lost_samples += missing // self.channels
                counts.starvations += not self._empty
        self._empty = missing > 0
        if status:
            counts.see(status)

    @property
    def fill(self) -> int:
        """Samples that wait to be played."""
        return self._fifo.fill // self.channels

    def write(self, samples: Samples) -> int:
        """Queue ``samples`` and return how many did not fit; from now on it must not run empty."""
        lost = self._fifo.write(np.repeat(samples, self.channels))
        self._expected = True
        return lost // self.channels

    def pause(self) -> None:
        """Until the next ``write`` an empty queue is silence, not starvation."""
        self._expected = False
