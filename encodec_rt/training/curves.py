"""The curves of a run as one picture."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from encodec_rt.atomic import replacing
from encodec_rt.errors import InputError

_PANELS = (
    ("si_sdr_db", "held_out_si_sdr_db"),
    ("relative_l1", "held_out_relative_l1"),
    ("relative_complex", "held_out_relative_complex"),
    ("log_magnitude", "held_out_log_magnitude"),
    ("log_mel", "held_out_log_mel"),
    ("compressed", "held_out_compressed"),
    ("mel", "held_out_mel"),
    ("adversarial", "discriminator"),
    ("features",),
    ("commitment",),
    ("live_share",),
    ("gradient_norm",),
    ("learning_rate",),
)


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) pairs by name, from a run's ``curves.csv``; raises InputError if it is none."""
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                curves[row["name"]].append((int(row["step"]), float(row["value"])))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no curves of a training run: {error}") from error
    return dict(curves)


def plot_curves(source: Path, picture: Path) -> None:
    """Draw the curves in ``source`` (a ``curves.csv``) to the PNG ``picture``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = read_curves(source)
    panels = [[name for name in panel if name in curves] for panel in _PANELS]
    panels = [panel for panel in panels if panel]
    if not panels:
        raise InputError(f"{source} holds no curve yet")
    columns = 3
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, panel in zip(axes, panels, strict=False):
        for name in panel:
            steps, values = zip(*curves[name], strict=True)
            axis.plot(steps, values, linewidth=1.0, label=name)
        axis.legend(fontsize=8, frameon=False)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    with replacing(picture, force=True) as partial:
        figure.savefig(partial, format="png", dpi=110)
