"""All that is to be learnt from a GPU in one go: `make gpu`; docs/gpu-day.md is the plan around it.

    python -m benches.gpu_day --out DIR [--scale 1.0] [--only smoke tests] [--kernels FILE]

Every part is a process group of its own with its own time, and is killed as a whole when that is
over; one that fails or is stopped loses nothing of the others. Each part's output is in DIR, with
the records and pytest's junit file; what is printed last is one short table. Needs a CUDA torch,
triton, numpy, safetensors and pytest, and installs nothing. ``--kernels`` is what
benches.kernel_cache packed; what of it does not fit is compiled here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benches.environment import ROOT
from benches.index import figures_of
from benches.kernel_cache import unpack

TESTS = (
    "tests/gpu",
    "tests/kernels/test_conv.py",
    "tests/kernels/test_lstm.py",
    "tests/kernels/test_rvq.py",
)
SANITIZER = "tests/gpu/test_sanitizer.py"
START_S = 15.0
"""For a part to import torch and find its device, before its own time; and to write its end."""
GRACE_S = 5.0
"""For what is interrupted to write its last lines."""
MAX_SKIPPED = 6
MAX_PRINTED = 4000
"""Characters of the table at the end: what may come back of a long output."""


@dataclass(frozen=True)
class Part:
    """One program of the day: its arguments, and the seconds it has once it has started."""

    name: str
    arguments: tuple[str, ...]
    seconds: float

    def command(self, out: Path, scale: float, python: Sequence[str]) -> list[str]:
        """What to run, with all times cut to ``scale``."""
        command = [*python, "-m", *self.arguments]
        if self.arguments[0] != "pytest":
            return [*command, "--budget", f"{scale * self.seconds:g}", "--out", str(out)]
        workers = ["-n", "8"] if self.name == "tests" and _has("xdist") else []
        junit = f"--junitxml={out / self.name}.xml"
        return [*command, "-q", "-W", "default", junit, "-p", "no:cacheprovider", *workers]


PARTS = (
    Part("smoke", ("benches.gpu", "smoke"), 30),
    Part("tests", ("pytest", *TESTS, "--deselect", SANITIZER), 100),
    Part("latency", ("benches.gpu", "latency"), 68),
    Part("profile", ("benches.gpu", "profile"), 15),
    Part("streams", ("benches.gpu", "streams"), 80),
    Part("rivals", ("benches.gpu", "rivals"), 65),
    Part("kernels", ("benches.kernels",), 30),
    Part("variants", ("benches.variants",), 75),
    Part("flips", ("benches.gpu", "flips"), 20),
    Part("sanitizer", ("pytest", SANITIZER), 55),
)
"""In the order of what would be missed most; 11.5 minutes if each takes all its time."""


def run(
    part: Part,
    out: Path,
    scale: float,
    environment: Mapping[str, str],
    python: Sequence[str] = (sys.executable,),
) -> str:
    """Run a part, all its output into a file -> "ok", or what became of it."""
    with (out / f"{part.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            part.command(out, scale, python),
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        stopped = None
        limit = START_S + scale * part.seconds
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            stopped = f"stopped after {limit:.0f} s"
            _signal(process, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        finally:
            # Also what a part has left behind: a compiler's workers, a sanitizer's child.
            _signal(process, signal.SIGKILL)
            process.wait()
    return stopped or ("ok" if process.returncode == 0 else f"failed ({process.returncode})")


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def records(out: Path) -> list[dict[str, Any]]:
    """The records in a folder, oldest first; one that was cut off is left out."""
    found = []
    for path in sorted(out.glob("*.json"), key=lambda path: path.stat().st_mtime):
        try:
            found.append(json.loads(path.read_text("utf-8")))
        except ValueError:
            print(f"{path.name} is not whole")
    return found


def tests_line(path: Path) -> str:
    """What a junit file counts."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return f"{path.stem}: no junit file"
    suite = root if root.tag == "testsuite" else root[0]
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [case.get("name") for case in suite.iter("testcase") if len(case.findall("failure"))]
    names = "".join(f"\n  failed: {name}" for name in failed[:8])
    return f"{path.stem}: {', '.join(f'{value} {name}' for name, value in count.items())}{names}"


def summary(out: Path) -> Iterator[str]:
    """The headline figures of all records in ``out``, one line each."""
    for path in sorted(out.glob("*.xml")):
        yield tests_line(path)
    for record in records(out):
        yield f"{record['bench']}, {record['device'].get('gpu') or record['device']['cpu']}"
        yield from _one_stream(record)
        skipped = [case for case in record["cases"] if "skipped" in case["case"]]
        for case in skipped[:MAX_SKIPPED]:
            reason = str(case["values"].get("reason"))[:90]
            yield f"  not timed: {case['case']['skipped']}: {reason}"
        if skipped[MAX_SKIPPED:]:
            yield f"  and {len(skipped) - MAX_SKIPPED} more not timed"
        for case in record["cases"]:
            what, values = case["case"], case["values"]
            if values.get("wrong"):
                yield f"  WRONG: {what}: {str(values.get('reason'))[:90]}"
            elif "streams" in values and (what["paced"] or values["kept"]):
                pace = "paced" if what["paced"] else "flat out"
                tick = case["ms"]["tick"]
                kept = "kept" if values["kept"] else "LATE"
                yield (
                    f"  {what['row']}: {what['slots']} slots {pace} {kept}, tick p50 "
                    f"{tick['p50']:.2f} p99.9 {tick['p99.9']:.2f} ms"
                )
            elif "frames_that_differ" in values:
                yield (
                    f"  {what['row']}: {100 * values['frames_that_differ']:.3f} % of "
                    f"{values['frames']} frames of speech have other codes"
                )
            elif "launches" in values:
                yield (
                    f"  {what['row']} S={what['slots']} {what['profile']}: {values['launches']} "
                    f"launches in {values['replay_us']:.1f} us"
                )
            elif "variant" in what and case["ms"]:
                times = (1e3 * case["ms"][f"{way} device"]["p50"] for way in ("encode", "decode"))
                yield "  {}, {}: {:.1f} / {:.1f} us".format(what["rules"], what["variant"], *times)
        yield from _layers(record)


def _one_stream(record: Mapping[str, Any]) -> Iterator[str]:
    """Median microseconds of a frame by row, on the wall and on the device, and the ratio."""
    found: dict[str, dict[str, float]] = {}
    for case in record["cases"]:
        what = case["case"]
        if what.get("slots") == 1 and "row" in what and case["ms"]:
            kind = "paced " if what.get("paced") else "cold " if what.get("cold") else ""
            figures = {f"{kind}{name}": v for name, v in figures_of(case).items()}
            row = found.setdefault(what["row"], {})
            row |= {name: min(v, row.get(name, v)) for name, v in figures.items()}
    base = found.get("torch, graph", {}).get("encode wall p50")
    columns = [
        f"{kind}{way} {where} {share}"
        for kind, where, share in (
            ("", "device", "p50"),
            ("", "wall", "p50"),
            ("", "wall", "p99"),
            ("paced ", "wall", "p50"),
            ("paced ", "wall", "p99"),
            ("cold ", "wall", "p50"),
        )
        for way in ("encode", "decode")
    ]
    if found:
        yield "  us encode/decode: device p50, wall p50 p99, paced p50 p99, cold p50; x torch graph"
    for name, figures in found.items():
        cells = [f"{1e3 * figures[key]:.0f}" if key in figures else "-" for key in columns]
        pairs = " ".join("/".join(pair) for pair in zip(cells[::2], cells[1::2], strict=True))
        ours = figures.get("encode wall p50")
        ratio = f" x{base / ours:.2f}" if base and ours else ""
        yield f"  {name}: {pairs}{ratio}"


def _layers(record: Mapping[str, Any]) -> Iterator[str]:
    """Sums over the layers that ``benches.kernels`` timed."""
    sums: dict[str, list[float]] = {}
    for case in record["cases"]:
        what = case["case"]
        if "layer" in what and case["ms"]:
            key = f"{what['rules']} {what['precision']} S={what['slots']} {what['layer'][:7]}"
            both = 1e3 * case["ms"]["device"]["p50"], case["values"]["floor_us"]
            sums.setdefault(key, []).append(both[0])
            sums.setdefault(f"{key} floor", []).append(both[1])
    for key in (key for key in sums if not key.endswith("floor")):
        floor = sum(sums[f"{key} floor"])
        yield f"  {key}: {len(sums[key])} layers {sum(sums[key]):.1f} us, floor {floor:.1f} us"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts one after the other; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--scale", type=float, default=1.0, help="of all times")
    parser.add_argument("--kernels", type=Path, help="compiled kernels that came along")
    parser.add_argument("--python", help="what runs the parts, with its arguments")
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
    became = {}
    for part in PARTS:
        if options.only and part.name not in options.only:
            continue
        before, begun = _kernels(cache), time.perf_counter()
        became[part.name] = run(part, out, options.scale, environment, python)
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


def _kernels(cache: Path) -> int:
    return sum(1 for _ in cache.glob("*/*.cubin"))


if __name__ == "__main__":
    sys.exit(main())
