"""`make gpu-rehearsal`: the half hour on a GPU, without the GPU, in a tenth of the time.

A machine with a GPU has a torch and a Triton of its own, Python 3.12, and no package of ours. So:
an environment with just those versions, a bare export of the last commit without git, `make gpu`
in it with all times cut to a tenth, and a look at what it leaves. How long a part has to start is
measured first, so that a busy machine does not count as a fault.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
REPLICA = ROOT / ".venv-gpu-replica"
# numpy as Triton 3.6's interpreter bears it; on a device any will do.
PACKAGES = (
    "torch==2.11.0",
    "triton==3.6.0",
    "numpy==2.3.5",
    "safetensors",
    "pytest",
    "pytest-xdist",
)
SCALE = 0.1
START_S = 15.0
"""That a part has to start on a machine with a GPU. This one may be slow, or busy with others."""
BENCHES = (
    *("gpu-smoke", "gpu-latency", "gpu-profile", "gpu-streams", "gpu-variants", "gpu-flips"),
    *("gpu-rivals", "kernels"),
)


def python312() -> str:
    """Python 3.12 if it is here, also one of pyenv's, else what runs this."""
    for found in (
        shutil.which("python3.12"),
        *map(str, Path.home().glob(".pyenv/versions/3.12*/bin/python")),
    ):
        if (
            found
            and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0
        ):
            return found
    return sys.executable


def replica() -> Path:
    """The Python of the environment, made if it is not there."""
    python = REPLICA / "bin" / "python"
    if not (REPLICA / "installed").exists():
        print(f"installing {' '.join(PACKAGES)}", flush=True)
        subprocess.run([python312(), "-m", "venv", REPLICA], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (REPLICA / "installed").touch()
    return python


def times(python: Path) -> tuple[float, float]:
    """Seconds that a part has here before its own time, and those that all of them may take.

    Whatever reads the packages for the first time compiles them; that is done before.
    """
    program = "import numpy, pytest, torch, triton, torch._dynamo, benches.gpu_day as day; "
    program += "print(sum(part.seconds for part in day.PARTS), len(day.PARTS), day.GRACE_S)"
    for _ in range(2):
        begun = time.monotonic()
        done = subprocess.run(
            [python, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
        )
        start = START_S + 6 * (time.monotonic() - begun)
    seconds, count, grace = map(float, done.stdout.split())
    return start, 30 + SCALE * seconds + count * (start + grace)


def faults(results: Path, seconds: float, allowed: float) -> list[str]:
    """What the day should have left and did not."""
    found = []
    for bench in BENCHES:
        paths = list(results.glob(f"{bench}-*.json"))
        cases = json.loads(paths[0].read_text("utf-8"))["cases"] if paths else []
        figures = {"frames_that_differ", "launches"}
        if not any(case["ms"] or figures & case["values"].keys() for case in cases):
            found.append(f"{bench}: no record with a figure")
        wrong = [case for case in cases if case["values"].get("wrong")]
        found += [f"{bench}: {case['case']} is wrong" for case in wrong]
        commit = json.loads(paths[0].read_text("utf-8"))["git"]["commit"] if paths else None
        if paths and commit != os.environ["COMMIT"]:
            found.append(f"{bench}: the commit is {commit}")
    for name in ("tests.xml", "sanitizer.xml", "summary.txt", "smoke.log", "tests.log"):
        if not (results / name).exists():
            found.append(f"no {name}")
    if seconds > allowed:
        found.append(f"{seconds:.0f} s, {allowed:.0f} allowed")
    return found


def main() -> int:
    """Rehearse; 1 if something is missing."""
    python = replica()
    start, allowed = times(python)
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    os.environ["COMMIT"] = commit.stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        export, results = Path(folder) / "export", Path(folder) / "results"
        export.mkdir()
        archive = subprocess.run([*git, "archive", "HEAD"], capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", export], input=archive.stdout, check=True)
        flags = f"--scale {SCALE} --start {start:.0f} --within {allowed:.0f}"
        flags += f" --python '{python} tests/gpu_replica/stand_in.py'"
        command = ["make", "gpu", f"PYTHON={python}", f"RESULTS={results}", f"GPU_FLAGS={flags}"]
        begun = time.monotonic()
        subprocess.run(command, cwd=export, check=False)
        seconds = time.monotonic() - begun
        found = faults(results, seconds, allowed)
        for log in sorted(results.glob("*.log")) if found else ():
            print(f"== {log.name}", log.read_text("utf-8", "replace")[-1500:], sep="\n")
    print("\n".join(found) or f"the rehearsal left all it should, in {seconds:.0f} s")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
