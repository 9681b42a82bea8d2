"""A picture of a run's curves."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from encodec_rt.atomic import replacing
from encodec_rt.errors import InputError
from encodec_rt.quality import BANDS_KHZ, band_name


@dataclass(frozen=True, slots=True)
class _Panel:
    """Curves that share an axis: their title, unit, and (name, label) of each."""

    title: str
    unit: str
    curves: tuple[tuple[str, str], ...]


def _both(title: str, unit: str, name: str) -> _Panel:
    return _Panel(title, unit, ((name, "training"), (f"held_out_{name}", "held-out")))


_PANELS = (
    _both("SI-SDR, higher is better", "dB", "si_sdr_db"),
    _Panel(
        "PESQ of speech, higher is better", "opinion score", (("held_out_pesq_wb", "held-out"),)
    ),
    _Panel("ESTOI of speech, higher is better", "share", (("held_out_estoi", "held-out"),)),
    _Panel(
        "Level of speech by band, 0 is right",
        "dB against the original",
        tuple(
            (f"held_out_{band_name(low, high)}", f"{low:g}-{high:g} kHz") for low, high in BANDS_KHZ
        ),
    ),
    _both("Waveform L1", "share of the signal", "relative_l1"),
    _both("Complex spectra, L1", "share of the signal", "relative_complex"),
    _both("Logarithmic magnitudes, L1", "nepers", "log_magnitude"),
    _both("Logarithmic mel bands, L1", "nepers", "log_mel"),
    _both("Compressed spectra, distance", "share of the signal", "compressed"),
    _both("Mel spectra, L1 + L2", "loss", "mel"),
    _Panel(
        "Hinge losses",
        "loss",
        (("adversarial", "of the codec"), ("discriminator", "of the discriminator")),
    ),
    _Panel("Feature matching", "share of the features", (("features", "training"),)),
    _Panel("Commitment", "squared distance", (("commitment", "training"),)),
    _Panel("Entries in use", "share of a codebook", (("live_share", "training"),)),
    _Panel("Norm of the gradient", "norm", (("gradient_norm", "training"),)),
    _Panel("Learning rate", "per step", (("learning_rate", "training"),)),
)


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) pairs by name, from a run's ``curves.csv``; InputError for another file."""
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                curves[row["name"]].append((int(row["step"]), float(row["value"])))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no curves of a training run: {error}") from error
    return dict(curves)


def with_gaps(points: list[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """Steps and values to draw, with NaN in the gaps where a curve was not measured.

    A gap is more than three times the median distance between points: the loss was not part of the
    stages in between, and a line across would show values that nobody measured.
    """
    distances = sorted(later[0] - earlier[0] for earlier, later in pairwise(points))
    usual = distances[len(distances) // 2] if distances else 0
    steps: list[float] = []
    values: list[float] = []
    for number, (step, value) in enumerate(points):
        if number and step - points[number - 1][0] > 3 * usual:
            steps.append(math.nan)
            values.append(math.nan)
        steps.append(step)
        values.append(value)
    return steps, values


def plot_curves(source: Path, picture: Path) -> None:
    """Draw the curves in ``source`` (a ``curves.csv``) to the PNG ``picture``.

    Raises InputError if there are none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = read_curves(source)
    shown = [(p, [(n, label) for n, label in p.curves if n in curves]) for p in _PANELS]
    panels = [(panel, names) for panel, names in shown if names]
    if not panels:
        raise InputError(f"{source} holds no curve yet")
    columns = 3
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (panel, names) in zip(axes, panels, strict=False):
        for name, label in names:
            steps, values = with_gaps(curves[name])
            # A single point has no line: without a marker it would be invisible.
            marker = "o" if len(steps) < 40 else None
            axis.plot(steps, values, linewidth=1.0, marker=marker, markersize=2.5, label=label)
        if len(panel.curves) > 1:
            axis.legend(fontsize=7, frameon=False, ncols=1 + len(names) // 4)
        axis.set_title(panel.title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylabel(panel.unit, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    with replacing(picture, force=True) as partial:
        figure.savefig(partial, format="png", dpi=110)
