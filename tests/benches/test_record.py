"""What a record holds, when it is refused, and what stays of it."""

from __future__ import annotations

import gzip
import json
import math
import re
import subprocess
from pathlib import Path

import pytest

from benches import record as records
from benches.environment import ROOT, DirtyTree, git_state, require_clean

# Before a test puts another folder in the place of RESULTS.
from benches.index import INDEX, entered
from benches.record import RESULTS, SCHEMA, Record, summary


def test_percentiles_are_samples_that_were_measured() -> None:
    samples = [float(value) for value in range(1, 1002)]
    row = summary(samples, deadline=1000.0)
    assert row["n"] == 1001
    assert (row["p50"], row["p90"], row["p99"], row["p99.9"]) == (501.0, 901.0, 991.0, 1000.0)
    assert row["max"] == 1001.0
    assert row["misses"] == 1


def test_one_sample_is_every_percentile() -> None:
    row = summary([2.5])
    assert {row[key] for key in ("p50", "p90", "p99", "p99.9", "max", "mean")} == {2.5}
    assert "misses" not in row


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf]])
def test_samples_that_cannot_be_summed_up_are_refused(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="samples"):
        summary(samples)


def test_record_names_device_versions_and_commit(tmp_path: Path) -> None:
    record = Record("stream", deadline_ms=13.333, folder=tmp_path)
    record.add({"model": "tiny"}, {"encode": [1.0, 20.0]}, values={"rtf": 0.1})
    path = record.write()
    content = json.loads(path.read_text())
    assert path.name.startswith("stream-")
    assert content["schema"] == SCHEMA
    assert content["device"]["cpu"]
    assert content["versions"]["torch"]
    assert content["versions"]["encodec_rt"]
    assert set(content["git"]) == {"commit", "dirty"}
    (case,) = content["cases"]
    assert case["ms"]["encode"]["misses"] == 1
    assert case["values"] == {"rtf": 0.1}


def test_an_earlier_record_is_never_replaced(tmp_path: Path) -> None:
    one, other = (Record("stream", folder=tmp_path) for _ in range(2))
    other.time = one.time
    one.write()
    with pytest.raises(FileExistsError):
        other.write()


def test_infinite_values_become_null(tmp_path: Path) -> None:
    record = Record("ratio", folder=tmp_path)
    record.add({}, values={"snr_db": math.inf, "list": [math.nan, 1.0]})
    content = json.loads(record.write().read_text())
    assert content["cases"][0]["values"] == {"snr_db": None, "list": [None, 1.0]}


def test_table_has_a_line_per_timing() -> None:
    record = Record("stream", deadline_ms=1.0, folder=None)
    record.add({"start": "exact"}, {"encode": [0.5], "decode": [2.0]}, values={"rtf": 0.25})
    lines = record.table().splitlines()
    assert len(lines) == 3
    assert "misses 1" in lines[1]
    assert "rtf 0.25" in lines[2]


def test_a_record_has_a_line_for_each_case_and_no_samples(tmp_path: Path) -> None:
    record = Record("stream", folder=tmp_path)
    for size in (1, 2):
        record.add({"size": size}, {"encode": [1.0, 2.0]}, keep_samples=True)
        path = record.save()
    assert sum('"case"' in line for line in path.read_text().splitlines()) == 2
    assert "samples" not in path.read_text()
    with gzip.open(path.with_suffix(".samples.jsonl.gz"), "rt") as file:
        kept = [json.loads(line) for line in file]
    assert kept == [
        {"case": {"size": size}, "samples_ms": {"encode": [1.0, 2.0]}} for size in (1, 2)
    ]


def git(folder: Path, *arguments: str) -> None:
    names = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit, in the place of this one."""
    results = tmp_path / "benches" / "results"
    results.mkdir(parents=True)
    (tmp_path / "code.py").write_text("one = 1\n")
    (results / "index.csv").write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    monkeypatch.setattr(records, "RESULTS", results)
    monkeypatch.setattr("benches.index.INDEX", results / "index.csv")
    for function in (require_clean, git_state):
        monkeypatch.setattr(function, "__defaults__", (tmp_path,))
    return tmp_path


def test_a_record_for_the_results_needs_a_clean_tree(tree: Path) -> None:
    results = records.RESULTS
    (tree / "code.py").write_text("one = 2\n")
    with pytest.raises(DirtyTree, match=r"code\.py differ from the commit.*--out"):
        Record("stream", folder=results)
    kept = Record("stream", folder=tree / "elsewhere")
    assert kept.git["dirty"] is True
    git(tree, "commit", "-am", "two")
    assert Record("stream", folder=results).git["dirty"] is False


def test_new_code_makes_a_tree_dirty_and_new_results_do_not(tree: Path) -> None:
    (records.RESULTS / "stream-cpu.json").write_text("{}")
    (records.RESULTS / "index.csv").write_text("date\n")
    assert git_state()["dirty"] is False
    (tree / "new.py").write_text("")
    assert git_state()["dirty"] is True


def test_a_tree_that_changes_during_a_run_is_dirty(tree: Path) -> None:
    record = Record("stream", folder=records.RESULTS)
    record.add({"size": 1}, {"encode": [1.0]})
    (tree / "code.py").write_text("one = 2\n")
    with pytest.raises(DirtyTree, match="changed during the run"):
        record.write()
    (path,) = records.RESULTS.glob("*.json")
    assert json.loads(path.read_text())["git"]["dirty"] is True


def test_a_record_of_a_clean_tree_enters_the_index(tree: Path) -> None:
    record = Record("stream", folder=records.RESULTS)
    record.add({"model": "tiny", "paced": False}, {"both": [1.0, 3.0]}, values={"frames_late": 4})
    path = record.write()
    header, *lines = (records.RESULTS / "index.csv").read_text().splitlines()
    assert header == "date,commit,tree,device,bench,record,case,figure,value"
    assert [line.split(",")[-4:] for line in lines] == [
        [path.stem, "model=tiny paced=False", figure, value]
        for figure, value in (("both p50", "1"), ("both p99.9", "3"), ("frames_late", "4"))
    ]


def test_without_git_the_commit_is_passed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("COMMIT", raising=False)
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    with pytest.raises(DirtyTree, match="COMMIT=<hash>"):
        require_clean(tmp_path)
    monkeypatch.setenv("COMMIT", "abc123")
    assert git_state(tmp_path) == {"commit": "abc123", "dirty": None}
    require_clean(tmp_path)
    # A copy that lies in another repository is not of its commit.
    monkeypatch.delenv("GIT_CEILING_DIRECTORIES")
    assert git_state() == {"commit": "abc123", "dirty": None}


def test_every_committed_result_has_the_schema_and_is_in_the_index() -> None:
    known = {line["record"] for line in entered(INDEX)}
    for path in RESULTS.glob("*.json"):
        content = json.loads(path.read_text())
        assert content["schema"] == SCHEMA, path.name
        assert content["cases"], path.name
        assert path.stem in known, f"{path.name}: run python -m benches.index"


def test_every_record_that_a_page_cites_is_there() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("encodec_rt/**/*.md")]
    cited = {
        name
        for page in pages
        for name in re.findall(r"benches/results/([\w.-]+\.\w+)", page.read_text("utf-8"))
    }
    assert len(cited) > 10
    assert {name for name in cited if not (RESULTS / name).is_file()} == set()
