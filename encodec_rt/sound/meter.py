"""What a live session shows: levels, times, counters, and where its latency comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

SILENCE_DB = -90.0
WINDOW_FRAMES = 750
_PLAIN_EVERY_S = 2.0


class Level:
    """The level of recent audio, in decibels below full scale; it falls back within a second."""

    _FALL = 0.05

    def __init__(self) -> None:
        """Start with silence."""
        self._power = 0.0
        self.peak = 0.0

    def update(self, audio: NDArray[np.float32]) -> None:
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
        """Take in one call that treated ``frames`` frames."""
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
    """How long what passes through a queue stays in it, by Little's law: mean fill over rate."""

    _MEMORY_S = 5.0

    def __init__(self) -> None:
        """Start with an empty queue."""
        self.ms = 0.0
        self._seen_s: float | None = None

    def look(self, fill_ms: float, now_s: float) -> None:
        """Take in the fill at this moment."""
        elapsed = 0.0 if self._seen_s is None else now_s - self._seen_s
        self._seen_s = now_s
        self.ms += (1 - math.exp(-elapsed / self._MEMORY_S)) * (fill_ms - self.ms)


class ClockRate:
    """How fast a device's clock runs against this machine's, from the samples that it moved.

    The slope of a straight line by least squares: blocks come and go by some 13 ms, and after five
    minutes that is an error of some 3 parts per million.
    """

    _ENOUGH_S = 20.0

    def __init__(self, rate_hz: int) -> None:
        """For a stream that has just been opened at ``rate_hz``."""
        self._rate_hz = rate_hz
        self._began: tuple[float, int] | None = None
        self._sums = np.zeros(4)
        self._count = 0
        self._span_s = 0.0

    def look(self, samples: int, now_s: float) -> None:
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
class Budget:
    """Mouth-to-ear latency term by term, in milliseconds, on the way of a sample.

    The buffers of the devices are what PortAudio says that it was granted; the rest is measured.
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
    """One look at a running session."""

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
    budget: Budget
    counts: dict[str, int]


def plain_line(status: Status) -> str:
    """The status in one line, for logs."""
    wrong = [f"{name} {count}" for name, count in status.counts.items() if count]
    return (
        f"{status.seconds:7.1f} s  in {status.input_db:5.1f} dB  out {status.output_db:5.1f} dB  "
        f"{status.kbps:.2f} kbps  encode {status.encode_ms[0]:.1f}/{status.encode_ms[1]:.1f} ms  "
        f"decode {status.decode_ms[0]:.1f}/{status.decode_ms[1]:.1f} ms  "
        f"latency {status.budget.total:.0f} ms  drift {status.drift_ppm:+.0f} ppm  "
        f"{', '.join(wrong) or 'no faults'}"
    )


def status_json(status: Status, measured: dict[str, dict[str, float]]) -> dict[str, object]:
    """A session at its end, with the delays that were ``measured``, by how; times in milliseconds.

    Names are in the manner of webrtc-stats, as in the statistics of a call.
    """
    budget = {_camel(name): round(value, 3) for name, value in status.budget.terms()}
    times = {"encodeMs": status.encode_ms, "decodeMs": status.decode_ms}
    return {
        "seconds": round(status.seconds, 3),
        "input": status.input_name,
        "output": status.output_name,
        "bitrateKbps": round(status.kbps, 3),
        **{name: {"p50": p50, "p99": p99} for name, (p50, p99) in times.items()},
        "driftPpm": round(status.drift_ppm, 1),
        "counts": {_camel(name): count for name, count in status.counts.items()},
        "latencyMs": budget | {"sum": round(status.budget.total, 3)},
        "mouthToEarMs": measured,
    }


def budget_table(budget: Budget, measured: dict[str, float] | None = None) -> Table:
    """The terms of the latency and their sum, above what was ``measured``, by how."""
    table = terms_table(budget.terms())
    for name, value in (measured or {}).items():
        table.add_row(name, f"{value:.1f}", style="bold")
    return table


def terms_table(terms: list[tuple[str, float]]) -> Table:
    """Latencies in milliseconds, and their sum."""
    table = Table("latency", "ms", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, value in terms:
        table.add_row(name, f"{value:.1f}")
    table.add_row("sum", f"{sum(value for _, value in terms):.1f}", style="bold")
    return table


def panel(status: Status) -> RenderableType:
    """The status as a few columns."""
    signal = Table("signal", "", box=None, pad_edge=False)
    signal.add_row("input", f"{level_bar(status.input_db)} {status.input_db:5.1f} dB")
    signal.add_row("output", f"{level_bar(status.output_db)} {status.output_db:5.1f} dB")
    signal.add_row("bandwidth", f"{status.kbps:.2f} kbps")
    signal.add_row("encode p50/p99", "{:.1f} / {:.1f} ms".format(*status.encode_ms))
    signal.add_row("decode p50/p99", "{:.1f} / {:.1f} ms".format(*status.decode_ms))
    signal.add_row("queue target", f"{status.target_ms:.0f} ms")
    signal.add_row("drift", f"{status.drift_ppm:+.0f} ppm")
    faults = Table("counter", "", box=None, pad_edge=False)
    faults.columns[1].justify = "right"
    for name, count in status.counts.items():
        faults.add_row(name, str(count), style="yellow" if count else "dim")
    columns = Table.grid(padding=(0, 4))
    columns.add_row(signal, budget_table(status.budget), faults)
    title = Text(f"{status.input_name} -> {status.output_name}   {status.seconds:.0f} s")
    return Group(title, columns)


class Shown(Protocol):
    """What a display needs of a status: when it was taken."""

    @property
    def seconds(self) -> float:
        """Since the session began."""


S = TypeVar("S", bound=Shown)


class Display(Generic[S]):
    """Shows a session on ``console``: a panel on a terminal, a line now and then elsewhere."""

    def __init__(
        self,
        console: Console,
        panel: Callable[[S], RenderableType],
        line: Callable[[S], str],
    ) -> None:
        """Nothing is shown before ``show``. Use it in ``with``."""
        self._console = console
        self._panel, self._line = panel, line
        self._live = (
            Live(console=console, auto_refresh=False, transient=True)
            if console.is_terminal
            else None
        )
        self._next_s = 0.0

    def __enter__(self) -> Display[S]:
        """Self."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the terminal as it was."""
        if self._live:
            self._live.stop()

    def show(self, status: S) -> None:
        """Show ``status`` in place of the one before."""
        if self._live:
            self._live.update(self._panel(status), refresh=True)
        elif status.seconds >= self._next_s:
            self._next_s = status.seconds + _PLAIN_EVERY_S
            self._console.print(self._line(status))


def level_bar(level_db: float) -> str:
    """Twenty places for the 60 decibels below full scale."""
    filled = round(min(20.0, max(0.0, (level_db + 60) / 3)))
    return "#" * filled + "." * (20 - filled)


def _camel(words: str) -> str:
    first, *others = words.split()
    return first + "".join(word.capitalize() for word in others)
