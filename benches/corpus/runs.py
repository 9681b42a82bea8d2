"""Whole runs of ``tokenize``: two processes beside one, memory, kills, Ray."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benches.corpus.clips import cut_clips, write_long, write_many
from benches.environment import ROOT, memory_mib
from benches.record import Record
from encodec_rt.corpus.sources import UnitSize
from encodec_rt.corpus.stored import code_files, read_rows
from encodec_rt.corpus.tokenizing import tokenize
from encodec_rt.types import Codes


def pool(record: Record, folder: Path, options: argparse.Namespace) -> None:
    """Time the command with one and with two processes, in turns, without start-up."""
    paths = cut_clips(folder / "pool", options.clips * 8, seed=1)
    seconds = sum(soundfile.info(path).duration for path in paths)
    taken: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(options.rounds):
        for jobs in taken:
            out = folder / f"pool-{jobs}-{turn}"
            taken[jobs].append(_working_s(folder / "pool", out, jobs))
            shutil.rmtree(out)
    best = {jobs: min(each) for jobs, each in taken.items()}
    values = {f"{jobs} processes times real time": seconds / each for jobs, each in best.items()}
    values["two over one"] = best[1] / best[2]
    record.add({"what": "pool", "clips": len(paths), "seconds": round(seconds, 1)}, values=values)


def _working_s(source: Path, out: Path, jobs: int) -> float:
    """Seconds per run without start-up, extrapolated from the end of each process's first unit."""
    ends: list[float] = []

    def note(progress: Any) -> None:
        if progress.in_this_run:
            ends.append(time.perf_counter())

    size = UnitSize(clips=16)
    tokenize([source], out, jobs=jobs, unit_size=size, on_progress=note)
    counted = len(ends) - jobs
    return (ends[-1] - ends[jobs - 1]) * len(ends) / counted


def hour(record: Record, folder: Path, options: argparse.Namespace) -> None:
    """Measure the peak resident memory of a process that encodes one long clip."""
    write_long(folder / "hour", options.hour_s)
    _weigh(record, "one long clip", folder / "hour")


def many(record: Record, folder: Path, options: argparse.Namespace) -> None:
    """Measure the same for very many short clips."""
    write_many(folder / "many", options.short_clips)
    _weigh(record, "many short clips", folder / "many")


def _weigh(record: Record, what: str, source: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as worker:
        peak, summary, wall = worker.apply(_peak, (str(source), f"{source} out"))
    values = {"peak_mib": peak, "wall_s": wall, "clips": summary["clips"]}
    values |= {"hours": summary["hours"], "errors": summary["errors"]}
    record.add({"what": "memory", "corpus": what}, values=values)


def _peak(source: str, out: str) -> tuple[float, dict[str, Any], float]:
    torch.set_num_threads(1)
    began = time.perf_counter()
    summary = tokenize([source], out, jobs=1)
    wall = time.perf_counter() - began
    return memory_mib("VmHWM"), summary.as_json(), wall


def kills(record: Record, folder: Path, options: argparse.Namespace, sink: str) -> None:
    """Kill the command at random moments and restart it, and compare its output byte by byte."""
    cut_clips(folder / "kills", options.clips * 4, seed=2)
    whole, out = folder / "whole", folder / "out"
    began = time.perf_counter()
    _command(folder / "kills", whole, sink).wait()
    took = time.perf_counter() - began
    rng = random.Random(len(sink))
    killed = 0
    while killed < options.kills:
        process = _command(folder / "kills", out, sink)
        try:
            # Usually late enough for a unit or two, and sometimes before the first.
            process.wait(rng.uniform(0.2, 1.2) * took / 4)
        except subprocess.TimeoutExpired:
            killed += 1
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        else:
            # The run was completed; the next kills are of a new run.
            _compare(record, sink, killed, whole, out)
            shutil.rmtree(out)
    assert _command(folder / "kills", out, sink).wait() == 0
    _compare(record, sink, killed, whole, out)


def _compare(record: Record, sink: str, killed: int, whole: Path, out: Path) -> None:
    one, other = _contents(whole), _contents(out)
    values = {"killed so far": killed, "files": len(one), "other bytes": _differences(one, other)}
    record.add({"what": "kills", "format": sink}, values=values)


def _command(source: Path, out: Path, sink: str) -> subprocess.Popen[bytes]:
    arguments = ["tokenize", str(source), "--out", str(out), "--format", sink, "-j", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "encodec_rt", *arguments, "--shard-clips", "8", "--quiet"], cwd=ROOT
    )


def _contents(out: Path) -> dict[str, bytes]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "lock")
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def _differences(one: dict[str, bytes], other: dict[str, bytes]) -> int:
    return sum(one.get(name) != other.get(name) for name in {*one, *other})


def ray(record: Record, folder: Path, options: argparse.Namespace) -> None:
    """Time Ray and our own processes on the same corpus, start-up included."""
    cut_clips(folder / "ray", options.ray_clips, seed=3)
    # By default Ray's workers run at a lower priority, which would make them slower.
    os.environ.setdefault("RAY_worker_niceness", "0")
    size = UnitSize(clips=64)
    taken: dict[str, float] = {}
    codes: dict[str, dict[str, Codes]] = {}
    for name, settings in (("own", {}), ("ray", {"ray": "local"})):
        out = folder / f"ray-{name}"
        began = time.perf_counter()
        tokenize([folder / "ray"], out, jobs=2, unit_size=size, **settings)  # type: ignore[arg-type]
        taken[name] = time.perf_counter() - began
        rows = (row for path in code_files(out) for row in read_rows(path))
        codes[name] = {row.id: row.codes for row in rows}
    assert all(np.array_equal(codes["ray"][name], own) for name, own in codes["own"].items())
    values = {f"{name}_s": each for name, each in taken.items()}
    values["ray over own"] = taken["ray"] / taken["own"]
    record.add({"what": "ray", "clips": options.ray_clips}, values=values)
