"""The bench's picture: round trips against the number of sessions on one core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benches.record import Record


def draw(record: Record, path: Path) -> None:
    """Draw the p50 and p99 of round trips against the number of sessions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = [each for each in record.cases if each.case["what"] == "sessions"]
    if not cases:
        return
    counts: Any = [each.case["sessions"] for each in cases]
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in ("p50", "p99"):
        times: Any = [each.ms["round_trip"][name] for each in cases]
        axes.plot(counts, times, "o-", label=name)
    axes.axhline(20.0, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="echo sessions on one core", ylabel="round trip in ms", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
