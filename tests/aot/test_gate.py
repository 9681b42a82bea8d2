"""The gate of ahead-of-time compilation: what it refuses, and that it works without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.aot import report
from tests.aot.compiled import Compiled
from tests.aot.known import load, save
from tests.aot.loops import Loop, main_loop, read, worsened, write

ROOT = Path(__file__).parent.parent.parent
GOOD = Compiled(
    kernel="conv1d",
    shape="32x64x4x2",
    dot="ieee",
    arch=90,
    registers=96,
    spilled_bytes=0,
    shared_bytes=57_344,
    opcodes="FFMA 1132",
    seconds=0.8,
)


def test_a_kernel_within_all_limits_passes() -> None:
    assert GOOD.violations() == []
    assert replace(GOOD, dot="tf32", opcodes="FFMA 108 HGMMA 4").violations() == []
    assert replace(GOOD, dot="tf32", arch=100, opcodes="UTCHMMA 4").violations() == []
    assert replace(GOOD, dot="none", opcodes="").violations() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spilled_bytes": 16}, "16 bytes of registers spilled"),
        ({"shared_bytes": 120_000, "arch": 86}, "120000 bytes shared, 101376 allowed"),
        ({"opcodes": "FFMA 108 HMMA 32"}, "float32 products as FFMA 108 HMMA 32"),
        ({"opcodes": ""}, "not FFMA"),
        ({"dot": "tf32"}, "not a tensor core's"),
        ({"seconds": 10.5}, "10.5 CPU s to compile"),
        ({"waits": False}, "does not wait for the launch before it"),
        ({"variants": 2}, "2 binaries, where slots must not make a difference"),
    ],
)
def test_each_broken_limit_is_named(change: dict[str, object], words: str) -> None:
    (broken,) = replace(GOOD, **change).violations()  # type: ignore[arg-type]
    assert words in broken


LISTING = """
.text._kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   FFMA R2, R3, R4, R2 ;
        /*0020*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
.L_x_1:
        /*0030*/                   FFMA R2, R3, R4, R2 ;
        /*0040*/                   FFMA R2, R3, R4, R2 ;
        /*0050*/                   LDS R5, [R6] ;
        /*0060*/              @!P0 BRA `(.L_x_1) ;
        /*0070*/               @P1 BRA `(.L_x_0) ;
        /*0080*/                   EXIT ;
.L_x_2:
        /*0090*/                   BRA `(.L_x_2);
"""


def test_the_loop_with_the_most_products_is_looked_at() -> None:
    assert main_loop(LISTING) == Loop(3 / 7, 1)
    inner = LISTING.replace("@P1 BRA `(.L_x_0)", "NOP")
    assert main_loop(inner) == Loop(2 / 4, 0)
    assert main_loop(inner.replace("FFMA", "LDS")) == Loop(0.0, 1)


def test_a_loop_that_gets_worse_is_named(tmp_path: Path) -> None:
    key = ("3.7.1", "90", "conv1d", "32x64x4x2", "ieee", "many")
    write({key: Loop(0.5, 2)}, tmp_path / "baseline.csv")
    before = read(tmp_path / "baseline.csv")
    assert before == {key: Loop(0.5, 2)}
    assert list(worsened({key: Loop(0.495, 2)}, before)) == []
    (said,) = worsened({key: Loop(0.4, 3)}, before)
    assert "useful instructions 0.500 -> 0.400; barriers 2 -> 3" in said
    (said,) = worsened({(*key[:5], "few"): Loop(0.9, 0)}, before)
    assert "not in the baseline" in said
    assert list(worsened({("3.9.0", *key[1:]): Loop(0.1, 9)}, before)) == []


def test_other_versions_stay_in_the_baseline(tmp_path: Path) -> None:
    rest = ("90", "lstm", "512", "ieee", "few")
    path = tmp_path / "baseline.csv"
    write({("3.6.0", *rest): Loop(0.5, 1), ("3.7.1", *rest): Loop(0.5, 1)}, path)
    write({("3.7.1", *rest): Loop(0.6, 0)}, path)
    assert read(path) == {("3.6.0", *rest): Loop(0.5, 1), ("3.7.1", *rest): Loop(0.6, 0)}


@pytest.mark.parametrize(
    ("loop", "words"),
    [
        (Loop(0.45, 2), "useful instructions 0.500 -> 0.450"),
        (Loop(0.5, 3), "barriers 2 -> 3"),
    ],
)
@pytest.mark.parametrize("triton", ["3.6.0", "3.7.1"])
def test_the_gate_fails_where_a_shipped_kernel_gets_worse(
    loop: Loop,
    words: str,
    triton: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = ("90", "conv1d", "32x64x4x2", "ieee", "many")
    before = {(version, *key): Loop(0.5, 2) for version in ("3.6.0", "3.7.1")}
    monkeypatch.setattr(report, "read_baseline", lambda: before)
    assert report.report([replace(GOOD, loop=Loop(0.5, 2))], triton, 1.0, write=False) == 0
    assert report.report([replace(GOOD, loop=loop)], triton, 1.0, write=False) == 1
    assert words in capsys.readouterr().err


def test_what_was_compiled_before_is_known_and_what_broke_a_rule_is_not(tmp_path: Path) -> None:
    one = replace(GOOD, loop=Loop(0.5, 2))
    save(tmp_path / "new", "good", one)
    assert load(tmp_path / "new", "good") == one
    save(tmp_path / "new", "bad", replace(one, spilled_bytes=8))
    assert load(tmp_path / "new", "bad") is None
    (tmp_path / "new" / "half.json").write_text('{"kernel": "conv1d"')
    (tmp_path / "new" / "other.json").write_text('{"kernel": "conv1d", "loop": {}}')
    for name in ("half", "other"):
        assert load(tmp_path / "new", name) is None
    save(None, "good", one)
    assert load(None, "good") is None


def run_gate(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'kernels'}"
    command = [sys.executable, str(ROOT / "tests" / "aot" / "gate.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_kernel_compiles_once_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    for known in (0, 2):
        done = run_gate(
            *("--arch", "90", "--only", "commit", "--jobs", "1", "--known", str(tmp_path))
        )
        assert done.returncode == 0, done.stderr
        assert "| commit | any | none | 90 |" in done.stdout
        said = re.sub(r" in \d+ s", "", done.stdout)
        assert f"2 kernels for sm [90], {known} of them known from before, 0 in violation" in said


def test_kernels_to_take_along_are_compiled_and_not_judged(tmp_path: Path) -> None:
    # Those of the embedded model's sizes are not in the baseline.
    done = run_gate("--arch", "90", "--only", "resblock", "--cache", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "kernels compiled with Triton" in done.stdout
    assert list(tmp_path.glob("*/*.cubin"))


def test_an_architecture_without_a_limit_is_refused() -> None:
    done = run_gate("--arch", "70")
    assert done.returncode == 2
    assert "there are [80, 86, 89, 90, 100, 120]" in done.stderr
