"""What a live session displays: levels, times, counters, and where its latency comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from encodec_rt.types import Audio

SILENCE_DB = -90.0
WINDOW_FRAMES = 750


class Level:
    """The level of recent audio, in decibels below full scale; it falls back within a second."""

    _FALL = 0.05

    def __init__(self) -> None:
        """Start with silence."""
        self._power = 0.0
        self.peak = 0.0

    def update(self, audio: Audio) -> None:
        """Take in the next piece."""
        if not len(audio):
            return
        power, peak = float(np.mean(audio**2)), float(np.max(np.abs(audio)))
        self._power = max(power, self._power + self._FALL * (power - self._power))
        self.peak = max(peak, self.peak * (1 - self._FALL))

    @property
    def rms_db(self) -> float:
        """The root mean square, not below ``SILENCE_DB``."""
        return max(SILENCE_DB, 10 * math.log10(self._power)) if self._power > 0 else SILENCE_DB


class Timings:
    """The last ten seconds of one step's times per frame; it may be read from another thread."""

    def __init__(self) -> None:
        """Start without any."""
        self._ms = np.zeros(WINDOW_FRAMES)
        self._count = 0

    def add(self, seconds: float, frames: int) -> None:
        """Record one call that processed ``frames`` frames."""
        self._ms[self._count % WINDOW_FRAMES] = 1000 * seconds / frames
        self._count += 1

    @property
    def p50_p99(self) -> tuple[float, float]:
        """The median and the 99th percentile in milliseconds; zeros while there is nothing."""
        known = self._ms[: min(self._count, WINDOW_FRAMES)]
        if not len(known):
            return 0.0, 0.0
        median, tail = np.percentile(known, [50, 99])
        return float(median), float(tail)


class QueueTime:
    """The mean time in a queue, by Little's law: mean fill over rate."""

    _MEMORY_S = 5.0

    def __init__(self) -> None:
        """Start with an empty queue."""
        self.ms = 0.0
        self._seen_s: float | None = None

    def update(self, fill_ms: float, now_s: float) -> None:
        """Take in the fill at this moment."""
        elapsed = 0.0 if self._seen_s is None else now_s - self._seen_s
        self._seen_s = now_s
        self.ms += (1 - math.exp(-elapsed / self._MEMORY_S)) * (fill_ms - self.ms)


class ClockRate:
    """How fast a device's clock runs relative to this machine's, from the samples it has moved.

    The slope of a least-squares line: blocks move about 13 ms at a time, which after five minutes
    is an error of about 3 parts per million.
    """

    _ENOUGH_S = 20.0

    def __init__(self, rate_hz: int) -> None:
        """For a stream that has just been opened at ``rate_hz``."""
        self._rate_hz = rate_hz
        self._began: tuple[float, int] | None = None
        self._sums = np.zeros(4)
        self._count = 0
        self._span_s = 0.0

    def update(self, samples: int, now_s: float) -> None:
        """Take in how many samples had been moved at this moment."""
        if self._began is None:
            self._began = now_s, samples
        self._span_s = now_s - self._began[0]
        lead = (samples - self._began[1]) / self._rate_hz - self._span_s
        self._sums += (self._span_s, lead, self._span_s**2, self._span_s * lead)
        self._count += 1

    @property
    def ppm(self) -> float | None:
        """Parts per million, positive for a fast clock; None for the first 20 seconds."""
        if self._span_s < self._ENOUGH_S:
            return None
        time, lead, squares, products = self._sums / self._count
        return float(1e6 * (products - time * lead) / (squares - time**2))


@dataclass(frozen=True)
class LatencyBudget:
    """Mouth-to-ear latency term by term, in milliseconds, along a sample's path.

    The device buffers are what PortAudio reports; the rest is measured.
    """

    input_buffer: float
    hop: float
    input_queue: float
    encode: float
    decode: float
    resampler: float
    playback_queue: float
    output_buffer: float

    @property
    def total(self) -> float:
        """The sum of the terms."""
        return float(sum(value for _, value in self.terms()))

    def terms(self) -> list[tuple[str, float]]:
        """Names and values, in order."""
        return [(field.name.replace("_", " "), getattr(self, field.name)) for field in fields(self)]


@dataclass(frozen=True)
class Status:
    """A running session at one moment."""

    seconds: float
    input_name: str
    output_name: str
    input_db: float
    output_db: float
    kbps: float
    encode_ms: tuple[float, float]
    decode_ms: tuple[float, float]
    drift_ppm: float
    target_ms: float
    budget: LatencyBudget
    counts: dict[str, int]
