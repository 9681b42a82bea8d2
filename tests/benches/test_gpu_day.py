"""The half hour on a GPU: parts that hang, die or fail, what they leave, and the last table."""

from __future__ import annotations

import json
import os
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benches import gpu_day
from benches.environment import Json
from benches.gpu_day import PARTS, Part
from benches.gpu_summary import summary
from benches.kernel_cache import pack, unpack
from benches.record import Record


def python(program: str, seconds: float = 20.0) -> Part:
    """A part that is a few lines of Python."""
    return Part("part", (program,), seconds)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        Part, "command", lambda part, out, python, start: [sys.executable, "-c", part.arguments[0]]
    )
    return tmp_path


@pytest.fixture(autouse=True)
def _start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_day, "START_S", 0.0)
    monkeypatch.setattr(gpu_day, "GRACE_S", 2.0)


def run(part: Part, out: Path) -> str:
    return gpu_day.run(part, out, dict(os.environ))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_what_a_part_became_is_told(out: Path) -> None:
    assert run(python("print('fine')"), out) == "ok"
    assert (out / "part.log").read_text() == "fine\n"
    assert run(python("raise SystemExit(3)"), out) == "failed (3)"


def test_a_part_that_hangs_is_stopped_with_all_its_children(out: Path) -> None:
    program = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; "
    "signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
    begun = time.monotonic()
    assert run(python(program, 3.0), out) == "stopped after 3 s"
    assert time.monotonic() - begun < 60
    pid = next(int(word) for word in (out / "part.log").read_text().split() if word.isdigit())
    # A signal returns before the process it kills is gone; this one would sleep for ten minutes.
    until = time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive(pid)


def test_a_part_that_is_interrupted_may_write_its_last_lines(out: Path) -> None:
    program = """
import time
print("begun", flush=True)
try:
    time.sleep(600)
except KeyboardInterrupt:
    print("saved", flush=True)
"""
    assert run(python(program, 2.0), out).startswith("stopped")
    assert (out / "part.log").read_text() == "begun\nsaved\n"


def test_all_parts_together_fit_half_of_the_half_hour() -> None:
    assert sum(15 + part.seconds for part in PARTS) <= 720
    assert PARTS[0].name == "smoke"
    assert PARTS[-1].name == "sanitizer"


def test_a_part_is_told_its_share_of_time_and_where_to_write(tmp_path: Path) -> None:
    (smoke, _), (tests, _), *_ = gpu_day.parts_within(PARTS, 0.1, lambda: 1e4, 15.0)
    assert smoke.command(tmp_path, ["python"])[-4:] == ["--budget", "3", "--out", str(tmp_path)]
    assert f"--junitxml={tmp_path / 'tests.xml'}" in tests.command(tmp_path, ["python"])


def test_a_part_whose_programs_have_to_start_again_gets_the_time_for_it(tmp_path: Path) -> None:
    part = Part("variants", ("benches.variants",), 7.0, starts_more=True)
    for start, budget in ((None, "7"), (gpu_day.START_S, "7"), (gpu_day.START_S + 50, "57")):
        assert part.command(tmp_path, ["python"], start)[4] == budget


def test_the_last_parts_get_what_is_left_and_none_runs_past_the_end() -> None:
    for within in (100.0, 300.0, 540.0, 1e4):
        clock = 0.0
        seconds = []
        for part, given in gpu_day.parts_within(PARTS, 1.0, lambda: within - clock, 15.0):  # noqa: B023
            assert given in (0.0, part.seconds)
            assert given <= next(each.seconds for each in PARTS if each.name == part.name)
            # As long as a part may take: until it is stopped, and has written its last lines.
            clock += (15.0 + given + gpu_day.GRACE_S) if given else 0.0
            seconds.append(given)
        assert clock <= within
        assert seconds[0] == 30
        assert all(seconds) == (within == 1e4)
    names = [part.name for part in PARTS]
    assert names.index("variants") < names.index("rivals")


def test_the_last_table_is_short_and_has_ratios(tmp_path: Path) -> None:
    record = Record("gpu-latency", folder=tmp_path)
    for row, ms in (("torch, graph", 0.4), ("triton", 0.1)):
        for turn in range(2):
            case: dict[str, Json] = {
                "slots": 1,
                "paced": False,
                "cold": False,
                "turn": turn,
                "row": row,
            }
            record.add(case, {"encode wall": [ms + turn], "decode wall": [ms]})
    record.add({"skipped": "other"}, values={"reason": "x" * 500})
    record.add(
        {"slots": 512, "paced": True, "row": "triton"},
        {"tick": [5.0]},
        values={"streams": 512, "kept": True},
    )
    record.save()
    (tmp_path / "half.json").write_text('{"bench": ')
    junit = '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">{}</testsuite>'
    failed = '<testcase name="test_bad"><failure/></testcase>'
    (tmp_path / "tests.xml").write_text(junit.format(failed) + "</testsuites>")
    text = "\n".join(summary(tmp_path))
    assert "tests: 3 tests, 1 failures, 0 errors, 1 skipped\n  failed: test_bad" in text
    assert "triton: -/- 100/100 100/100 -/- -/- -/- x4.00" in text
    assert "triton: 512 slots paced kept, tick p50 5.00" in text
    assert all(len(line) < 130 for line in text.splitlines())


def test_a_day_runs_its_parts_and_leaves_everything_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = "import os, pathlib; print('no driver'); raise SystemExit(1)"
    monkeypatch.setattr(
        Part, "command", lambda part, out, python, start: [sys.executable, "-c", part.arguments[0]]
    )
    monkeypatch.setattr(
        gpu_day, "PARTS", (Part("smoke", (bad,), 20), Part("flips", ("print(1)",), 20))
    )
    assert gpu_day.main(["--out", str(tmp_path / "results")]) == 1
    shown = capsys.readouterr().out
    assert "== smoke: failed (1)" in shown
    assert "no driver" in shown
    assert "== flips: ok" in shown
    assert "NOT ok: smoke failed (1)" in shown
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert {"smoke.log", "flips.log", "summary.txt"} <= names
    assert gpu_day.main(["--out", str(tmp_path / "none"), "--within", "5"]) == 1
    shown = capsys.readouterr().out
    assert "NOT ok: smoke not run: no time was left, flips not run: no time was left" in shown
    assert not (tmp_path / "none" / "smoke.log").exists()


def test_kernels_travel_and_find_their_files_in_another_folder(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    folder = here / "KEY"
    folder.mkdir(parents=True)
    for name in ("k.cubin", "k.json", "k.ttir", "k.ptx"):
        (folder / name).write_text("{}")
    files = {name: str(folder / name) for name in ("k.cubin", "k.json", "k.ttir")}
    (folder / "__grp__k.json").write_text(json.dumps({"child_paths": files}))
    assert pack(here, tmp_path / "packed.tar.gz") == 1
    assert unpack(tmp_path / "packed.tar.gz", there) == 1
    moved = there / "KEY"
    assert {path.name for path in moved.iterdir()} == {"k.cubin", "k.json", "__grp__k.json"}
    listed = json.loads((moved / "__grp__k.json").read_text())["child_paths"]
    assert listed == {name: str(moved / name) for name in files}
    assert unpack(tmp_path / "packed.tar.gz", there) == 0


def test_nothing_is_unpacked_outside_the_cache(tmp_path: Path) -> None:
    (tmp_path / "evil.json").write_text("{}")
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "evil.json", "../evil.json")
    with pytest.raises(ValueError, match="not the file of a kernel"):
        unpack(tmp_path / "packed.tar.gz", tmp_path / "cache")
