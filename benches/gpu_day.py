"""All GPU tests and benches in one run: `make gpu`. docs/gpu-day.md is the plan for the session.

    python -m benches.gpu_day --out DIR [--within 540] [--only smoke tests] [--kernels FILE]

Every part runs in a process group of its own, which is killed when its time is over. If a part
fails or is stopped, the others lose nothing. Each part's output is in DIR, with the records and
pytest's JUnit files; a short table is printed last. Needs a CUDA torch, triton, numpy, safetensors
and pytest, and installs nothing. ``--kernels`` is a file from benches.kernel_cache; kernels that do
not match are compiled here. ``--within`` limits the whole run, in seconds: the last parts get what
the first ones leave, or are listed as not run.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benches.environment import ROOT
from benches.gpu_summary import summary
from benches.kernel_cache import unpack

TESTS = (
    "tests/gpu",
    "tests/kernels/test_conv.py",
    "tests/kernels/test_lstm.py",
    "tests/kernels/test_rvq.py",
)
SANITIZER = "tests/gpu/test_sanitizer.py"
START_S = 15.0
"""Extra time for a part to import torch and find its device, and to write its last lines."""
GRACE_S = 5.0
"""Time for an interrupted part to write its last lines."""
MIN_S = 8.0
"""A part with less time than this is not started, since it would not reach its first result."""
MAX_PRINTED = 4000
"""Characters of the last table that are printed, since long outputs may be cut off."""


@dataclass(frozen=True)
class Part:
    """One program of the session: its arguments, and the seconds it has once it has started."""

    name: str
    arguments: tuple[str, ...]
    seconds: float
    starts_more: bool = False
    """Whether the program starts others like itself, each of which has to start in its time."""

    def command(self, out: Path, python: Sequence[str], start: float | None = None) -> list[str]:
        """The command line; ``start`` is as in ``run``."""
        command = [*python, "-m", *self.arguments]
        if self.arguments[0] != "pytest":
            budget = self.seconds
            if self.starts_more and start is not None:
                budget += start - START_S
            return [*command, "--budget", f"{budget:g}", "--out", str(out)]
        workers = ["-n", "8"] if self.name == "tests" and _has("xdist") else []
        junit = f"--junitxml={out / self.name}.xml"
        return [*command, "-q", "-W", "default", junit, "-p", "no:cacheprovider", *workers]


PARTS = (
    Part("smoke", ("benches.gpu", "smoke"), 30),
    Part("tests", ("pytest", *TESTS, "--deselect", SANITIZER), 100),
    Part("latency", ("benches.gpu", "latency"), 68),
    Part("profile", ("benches.gpu", "profile"), 15),
    Part("streams", ("benches.gpu", "streams"), 80),
    Part("variants", ("benches.variants",), 75, starts_more=True),
    Part("flips", ("benches.gpu", "flips"), 35),
    Part("rivals", ("benches.gpu", "rivals"), 65),
    Part("kernels", ("benches.kernels",), 30),
    Part("sanitizer", ("pytest", SANITIZER), 55),
)
"""Most important first; 11.7 minutes if each takes all of its time."""


def parts_within(
    parts: Sequence[Part], scale: float, left: Callable[[], float], start: float
) -> Iterator[tuple[Part, float]]:
    """Each part with its time scaled by ``scale`` and limited to what is ``left()``.

    Also that time in seconds, or 0 for a part that should not be started any more. ``start`` is the
    extra time in seconds that a part needs to start.
    """
    for part in parts:
        seconds = min(scale * part.seconds, left() - start - GRACE_S)
        begin = seconds >= min(scale * part.seconds, MIN_S)
        yield replace(part, seconds=max(0.0, seconds)), seconds if begin else 0.0


def run(
    part: Part,
    out: Path,
    environment: Mapping[str, str],
    python: Sequence[str] = (sys.executable,),
    start: float | None = None,
) -> str:
    """Run a part, with its output in a file -> "ok", or what went wrong.

    ``start`` is the extra time in seconds that it has to start; the default is START_S.
    """
    with (out / f"{part.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            part.command(out, python, start),
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        stopped = None
        limit = (START_S if start is None else start) + part.seconds
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            stopped = f"stopped after {limit:.0f} s"
            _signal(process, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        finally:
            # This also kills what a part left behind: a compiler's workers, a sanitizer's child.
            _signal(process, signal.SIGKILL)
            process.wait()
    return stopped or ("ok" if process.returncode == 0 else f"failed ({process.returncode})")


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts one after another; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for all results")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for all times")
    parser.add_argument("--within", type=float, default=math.inf, help="seconds in all")
    parser.add_argument(
        "--start", type=float, help="seconds for a part to start, on a slow machine"
    )
    parser.add_argument("--kernels", type=Path, help="compiled kernels from benches.kernel_cache")
    parser.add_argument("--python", help="the Python that runs the parts, with its arguments")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS])
    options = parser.parse_args(arguments)
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    python = shlex.split(options.python) if options.python else [sys.executable]
    cache = out / "triton-cache"
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
    if options.kernels is not None:
        print(f"{unpack(options.kernels, cache)} compiled kernels unpacked", flush=True)
    end = time.perf_counter() + options.within
    start = START_S if options.start is None else options.start
    chosen = [part for part in PARTS if not options.only or part.name in options.only]
    became = {}
    left = partial(_seconds_until, end)
    for part, seconds in parts_within(chosen, options.scale, left, start):
        if not seconds:
            became[part.name] = "not run: no time was left"
            continue
        before, begun = _kernels(cache), time.perf_counter()
        became[part.name] = run(part, out, environment, python, start)
        took, compiled = time.perf_counter() - begun, _kernels(cache) - before
        print(f"== {part.name}: {became[part.name]}, {took:.0f} s, {compiled} kernels compiled")
        if became[part.name] != "ok":
            log = (out / f"{part.name}.log").read_text("utf-8", "replace")
            print(log[-1200:], flush=True)
    text = "\n".join(summary(out))
    (out / "summary.txt").write_text(text + "\n", encoding="utf-8")
    print(text[:MAX_PRINTED])
    failed = [f"{name} {what}" for name, what in became.items() if what != "ok"]
    print(f"results are in {out}" + (f"; NOT ok: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


def _seconds_until(end: float) -> float:
    return end - time.perf_counter()


def _kernels(cache: Path) -> int:
    return sum(1 for _ in cache.glob("*/*.cubin"))


if __name__ == "__main__":
    sys.exit(main())
