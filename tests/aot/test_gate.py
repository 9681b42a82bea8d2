"""The gate of ahead-of-time compilation: what it refuses, and that it works without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.aot.compiled import Compiled
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


def run_gate(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'kernels'}"
    command = [sys.executable, str(ROOT / "tests" / "aot" / "gate.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_kernel_compiles_for_a_gpu_that_is_not_there() -> None:
    done = run_gate("--arch", "90", "--only", "commit", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert "| commit | any | none | 90 |" in done.stdout
    assert "2 kernels for sm [90], 0 in violation" in re.sub(r" in \d+ s", "", done.stdout)


def test_an_architecture_without_a_limit_is_refused() -> None:
    done = run_gate("--arch", "70")
    assert done.returncode == 2
    assert "there are [80, 86, 89, 90, 100, 120]" in done.stderr
