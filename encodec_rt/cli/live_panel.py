"""What a live session shows on a terminal, in a log and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from encodec_rt.sound.meter import LatencyBudget, Status

WIDTH = 80
"""Columns that every terminal has."""

_GLUE = "\x00"
_PLAIN_EVERY_S = 2.0


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

    Names are in the style of webrtc-stats, as in the statistics of a call.
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


def budget_table(budget: LatencyBudget, measured: dict[str, float] | None = None) -> Table:
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
    """The status in at most 80 columns."""
    signal = Table("signal", "", box=None, pad_edge=False)
    signal.add_row("bandwidth", f"{status.kbps:.2f} kbps")
    signal.add_row("encode p50/p99", "{:.1f} / {:.1f} ms".format(*status.encode_ms))
    signal.add_row("decode p50/p99", "{:.1f} / {:.1f} ms".format(*status.decode_ms))
    signal.add_row("queue target", f"{status.target_ms:.0f} ms")
    signal.add_row("drift", f"{status.drift_ppm:+.0f} ppm")
    faults = Table("counter", "", box=None, pad_edge=False)
    faults.columns[1].justify = "right"
    for name, count in status.counts.items():
        faults.add_row(name, str(count), style="yellow" if count else "dim")
    columns = Table.grid(padding=(0, 6))
    columns.add_row(signal, faults)
    title = f"{status.input_name} -> {status.output_name}   {status.seconds:.0f} s"
    return Group(
        Text(title, no_wrap=True, overflow="ellipsis"),
        level_row("input", status.input_db),
        level_row("output", status.output_db),
        columns,
        latency_text(status.budget.terms()),
    )


def level_row(name: str, level_db: float) -> Text:
    """A level on a bar from -60 to 0 dB, and in figures."""
    return Text(f"{name:<7}-60 dB {level_bar(level_db)} 0 dB  {level_db:6.1f} dB", no_wrap=True)


def latency_text(terms: list[tuple[str, float]]) -> Text:
    """The sum of latencies and its terms in milliseconds, on lines that break between terms."""
    parts = [f"{name} {value:.1f}".replace(" ", _GLUE) for name, value in terms]
    whole = f"latency {sum(value for _, value in terms):.1f} ms: {' + '.join(parts)}"
    lines = textwrap.wrap(whole, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return Text("\n".join(lines).replace(_GLUE, " "))


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
        """Nothing is shown before ``show``, and nothing at all if ``console`` is quiet."""
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
    """Thirty characters for the 60 dB below full scale."""
    filled = round(min(30.0, max(0.0, (level_db + 60) / 2)))
    return "#" * filled + "." * (30 - filled)


def _camel(words: str) -> str:
    first, *others = words.split()
    return first + "".join(word.capitalize() for word in others)
