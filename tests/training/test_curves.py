"""The picture of a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from encodec_rt.errors import InputError
from encodec_rt.training.curves import plot_curves, read_curves, with_gaps


def test_a_pause_in_a_curve_is_a_gap() -> None:
    points = [(25 * n, float(n)) for n in (*range(1, 6), *range(40, 45))]
    steps, values = with_gaps(points)
    holes = [number for number, step in enumerate(steps) if math.isnan(step)]
    assert holes == [5]
    assert math.isnan(values[5])
    assert [step for step in steps if not math.isnan(step)] == [step for step, _ in points]
    assert with_gaps([(3, 1.0)]) == ([3], [1.0])
    assert with_gaps([]) == ([], [])


def test_a_single_checkpoint_gives_a_picture(tmp_path: Path) -> None:
    source = tmp_path / "curves.csv"
    source.write_text(
        "step,progress,minutes,name,value\n1,0,0,si_sdr_db,2.5\n1,0,0,held_out_estoi,0.5\n"
    )
    plot_curves(source, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert read_curves(source)["si_sdr_db"] == [(1, 2.5)]


def test_what_is_not_a_table_of_curves_is_refused(tmp_path: Path) -> None:
    (tmp_path / "curves.csv").write_text("step,name\n1,loss\n")
    with pytest.raises(InputError, match="no curves"):
        plot_curves(tmp_path / "curves.csv", tmp_path / "curves.png")
