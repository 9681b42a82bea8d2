"""What is said to have moved between two records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benches import compare
from benches.compare import differences, find, last_before, moves
from benches.index import entered, rows_of
from benches.record import Record


def record(folder: Path, took_ms: float, *, bench: str = "stream", sizes: int = 2) -> Path:
    made = Record(bench, folder=folder)
    for size in range(sizes):
        made.add({"size": size}, {"encode": [took_ms] * 3}, values={"late": size, "name": "x"})
    made.time = made.time.replace(second=len(list(folder.glob("*.json"))))
    return made.write()


def loaded(path: Path) -> Any:
    return json.loads(path.read_text())


def test_cases_that_both_have_are_compared_figure_by_figure(tmp_path: Path) -> None:
    old, new = loaded(record(tmp_path, 2.0)), loaded(record(tmp_path, 3.0, sizes=3))
    found, single = moves(old, new)
    assert {(move.case, move.figure) for move in found} == {
        (f"size={size}", figure)
        for size in range(2)
        for figure in ("encode p50", "encode p99", "encode p99.9", "late")
    }
    assert {move.percent for move in found if "encode" in move.figure} == {50.0}
    assert single == ["size=2"]


def test_other_benches_cannot_be_compared(tmp_path: Path) -> None:
    one, other = record(tmp_path, 1.0), record(tmp_path, 1.0, bench="cpu-live")
    with pytest.raises(ValueError, match="different benches"):
        moves(loaded(one), loaded(other))


def test_another_machine_and_a_dirty_tree_are_named(tmp_path: Path) -> None:
    old = loaded(record(tmp_path, 1.0))
    new = json.loads(json.dumps(old))
    old["git"]["dirty"], new["git"]["dirty"] = False, True
    new["device"]["cpu"] = "another"
    assert differences(old, old) == []
    assert differences(old, new) == [
        "after: the tree had uncommitted changes, so the commit is not what ran",
        f"cpu: {old['device']['cpu']} -> another",
    ]


def test_the_last_record_is_the_newest_before(tmp_path: Path) -> None:
    one, two, three = (record(tmp_path, 1.0) for _ in range(3))
    record(tmp_path, 1.0, bench="stream-other")
    assert last_before(three, tmp_path) == two
    assert last_before(two, tmp_path) == one
    with pytest.raises(FileNotFoundError, match="no record of stream"):
        last_before(one, tmp_path)
    assert find(two.stem, tmp_path) == two


def test_only_what_moved_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = record(tmp_path, 2.0), record(tmp_path, 3.0)
    assert compare.main([str(old), str(new)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("+50.0 %") == 6
    assert "8 figures in both, 6 shown" in shown
    assert compare.main([str(old), "nowhere"]) == 2
    assert "not a record" in capsys.readouterr().err


def test_the_index_has_the_median_of_what_it_does_not_show() -> None:
    cases = [
        {"case": {"call": "alone", "seed": seed}, "ms": {}, "values": {"concealed_share": share}}
        for seed, share in enumerate((0.1, 0.5, 0.2))
    ]
    what = {"bench": "link-hostile", "time_utc": "t", "git": {"commit": "c", "dirty": None}}
    (line,) = rows_of({**what, "device": {"cpu": "d"}, "cases": cases}, "name")
    assert (line["case"], line["figure"], line["value"]) == ("call=alone", "concealed_share", "0.2")
    assert line["tree"] == "unknown"


def test_a_line_stays_when_its_record_is_gone(tmp_path: Path) -> None:
    from benches.index import enter

    path, index = record(tmp_path, 1.0), tmp_path / "index.csv"
    assert enter([path], index) == [path.stem]
    before = entered(index)
    path.unlink()
    assert enter([record(tmp_path, 1.0)], index)
    assert enter([], index) == []
    assert [line for line in entered(index) if line["record"] == path.stem] == before
