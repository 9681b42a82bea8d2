"""Whole corpora: speed beside transformers, two processes beside one, memory, kills, Ray.

    python -m benches.corpus [speed pool memory kills ray]

The corpus is the bundled speech, cut into clips of 0.3 to 12 s as FLAC at 24 kHz. Speeds are in
seconds of audio per second of CPU time, on one thread; wall times are the best of some rounds. It
says how many frames have other codes than those of the offline model.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from benches.environment import ROOT
from benches.record import RESULTS, Record
from encodec_rt.corpus.clips import CorpusClip, Treatment, feeds
from encodec_rt.corpus.slots import Coded, clip_encoder
from encodec_rt.corpus.sources import UnitSize
from encodec_rt.corpus.stored import code_files, read_rows
from encodec_rt.corpus.tokenizing import tokenize
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Codes

BANDWIDTH = 6.0
BATCH = 16
PARTS = ("speed", "pool", "memory", "kills", "ray")
SHORT_S = 0.1


def cut_clips(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Clips of speech, of 0.3 to 12 s with a median of 2.5 s; written, and their paths."""
    assets = ROOT / "encodec_rt" / "assets"
    speech = np.concatenate(
        [soundfile.read(path, dtype="float32")[0] for path in sorted(assets.glob("*.flac"))]
    )
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        samples = int(24_000 * np.clip(rng.lognormal(np.log(2.5), 0.8), 0.3, 12.0))
        begin = int(rng.integers(0, len(speech) - samples))
        paths.append(folder / f"{index:06d}.flac")
        gain = np.float32(rng.uniform(0.3, 1.0))
        soundfile.write(paths[-1], gain * speech[begin : begin + samples], 24_000)
    return paths


def ours(codec: Codec, paths: list[Path]) -> list[Codes]:
    """The work queue, files included."""
    encoder = clip_encoder(codec, BANDWIDTH)
    clips = [CorpusClip(str(path), str(path), lambda path=path: path) for path in paths]  # type: ignore[misc]
    opened = [feeds(clip, Treatment(), codec.config)[0] for clip in clips]
    found: dict[str, Codes] = {}
    for feed, outcome in encoder.encode(opened):
        assert isinstance(outcome, Coded), outcome
        found[feed.id] = outcome.codes
    return [found[str(path)] for path in paths]


def read(path: Path) -> NDArray[np.float32]:
    """The samples [n] of a clip."""
    samples: NDArray[np.float32] = soundfile.read(path, dtype="float32")[0]
    return samples


def one_by_one(model: Any, paths: list[Path]) -> list[Codes]:
    """A model of transformers, or our offline one, clip after clip."""
    found = []
    for path in paths:
        audio = torch.from_numpy(read(path))[None, None]
        codes = model.encode(audio, bandwidth=BANDWIDTH).audio_codes[0, 0]
        found.append(codes.T.numpy().astype(np.uint16))
    return found


def padded(model: Any, paths: list[Path]) -> list[Codes]:
    """In batches, padded to the longest and masked, as feature extractors do."""
    found = []
    hop = model.config.hop_length
    for begin in range(0, len(paths), BATCH):
        clips = [read(path) for path in paths[begin : begin + BATCH]]
        longest = max(map(len, clips))
        audio = torch.zeros(len(clips), 1, longest)
        mask = torch.zeros(len(clips), longest, dtype=torch.bool)
        for row, clip in enumerate(clips):
            audio[row, 0, : len(clip)] = torch.from_numpy(clip)
            mask[row, : len(clip)] = True
        codes = model.encode(audio, mask, bandwidth=BANDWIDTH).audio_codes[0]
        for row, clip in enumerate(clips):
            found.append(codes[row].T[: -(-len(clip) // hop)].numpy().astype(np.uint16))
    return found


def frames_that_differ(given: list[Codes], wanted: list[Codes]) -> int:
    """Frames with any other code, and frames that are missing or too many."""
    total = 0
    for one, other in zip(given, wanted, strict=True):
        both = min(len(one), len(other))
        total += int((one[:both] != other[:both]).any(axis=1).sum()) + abs(len(one) - len(other))
    return total


def speed(record: Record, codec: Codec, folder: Path, options: argparse.Namespace) -> None:
    """Our queue, the offline model and transformers on the same clips, in turns."""
    from tests.support.contract import assert_codes_agree
    from tests.support.models import hf_twin

    paths = cut_clips(folder / "speed", options.clips)
    seconds = sum(soundfile.info(path).duration for path in paths)
    model = codec.model
    twin = hf_twin(model)
    works: dict[str, Callable[[], list[Codes]]] = {
        "queue": lambda: ours(codec, paths),
        "offline": lambda: one_by_one(model, paths),
        "transformers": lambda: one_by_one(twin, paths),
        "transformers padded": lambda: padded(twin, paths),
    }
    spent: dict[str, list[float]] = {name: [] for name in works}
    codes: dict[str, list[Codes]] = {}
    for _ in range(options.rounds):
        for name, work in works.items():
            began = time.process_time()
            codes[name] = work()
            spent[name].append(time.process_time() - began)
    pace = {name: seconds / min(taken) for name, taken in spent.items()}
    excused = sum(
        assert_codes_agree(model, torch.from_numpy(read(path))[None], given, wanted)
        for path, given, wanted in zip(paths, codes["queue"], codes["offline"], strict=True)
    )
    values: dict[str, Any] = {f"{name} times real time": each for name, each in pace.items()}
    values["over transformers one by one"] = pace["queue"] / pace["transformers"]
    values["over transformers padded"] = pace["queue"] / pace["transformers padded"]
    values["frames"] = sum(map(len, codes["offline"]))
    for name in ("queue", "transformers", "transformers padded"):
        values[f"{name} frames that differ"] = frames_that_differ(codes[name], codes["offline"])
    values["queue near-ties in float64"] = excused
    case = {"what": "speed", "clips": len(paths), "seconds": round(seconds, 1), "threads": 1}
    record.add(case, values=values)


def pool(record: Record, codec: Codec, folder: Path, options: argparse.Namespace) -> None:
    """The whole command with one and with two processes, in turns, start-up apart."""
    paths = cut_clips(folder / "pool", options.clips * 8, seed=1)
    seconds = sum(soundfile.info(path).duration for path in paths)
    taken: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(options.rounds):
        for jobs in taken:
            out = folder / f"pool-{jobs}-{turn}"
            taken[jobs].append(_working_s(codec, folder / "pool", out, jobs))
            shutil.rmtree(out)
    best = {jobs: min(each) for jobs, each in taken.items()}
    values = {f"{jobs} processes times real time": seconds / each for jobs, each in best.items()}
    values["two over one"] = best[1] / best[2]
    record.add({"what": "pool", "clips": len(paths), "seconds": round(seconds, 1)}, values=values)


def _working_s(codec: Codec, source: Path, out: Path, jobs: int) -> float:
    """Seconds from the first unit's end to the last one's, scaled to all units."""
    ends: list[float] = []

    def note(progress: Any) -> None:
        if progress.in_this_run:
            ends.append(time.perf_counter())

    size = UnitSize(clips=16)
    tokenize([source], out, codec=codec, jobs=jobs, unit_size=size, on_progress=note)
    counted = len(ends) - jobs
    return (ends[-1] - ends[jobs - 1]) * len(ends) / counted


def memory(record: Record, codec: Codec, folder: Path, options: argparse.Namespace) -> None:
    """The most resident memory of a process that encodes an hour, and very many short clips."""
    hour, many = folder / "hour", folder / "many"
    _write_hour(hour, options.hour_s)
    _write_many(many, options.short_clips)
    for what, source in (("one long clip", hour), ("many short clips", many)):
        with multiprocessing.get_context("spawn").Pool(1) as worker:
            peak, summary, wall = worker.apply(_peak, (str(source), str(folder / f"{what} out")))
        values = {"peak_mib": peak, "wall_s": wall, "clips": summary["clips"]}
        values |= {"hours": summary["hours"], "errors": summary["errors"]}
        record.add({"what": "memory", "corpus": what}, values=values)


def _peak(source: str, out: str) -> tuple[float, dict[str, Any], float]:
    torch.set_num_threads(1)
    began = time.perf_counter()
    summary = tokenize([source], out, jobs=1)
    wall = time.perf_counter() - began
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024, summary.as_json(), wall


def _write_hour(folder: Path, seconds: int) -> None:
    folder.mkdir(parents=True)
    clip = read(ROOT / "encodec_rt" / "assets" / "speech_en.flac")
    with soundfile.SoundFile(folder / "hour.flac", "w", 24_000, 1) as file:
        for _ in range(int(seconds * 24_000 / len(clip)) + 1):
            file.write(clip)


def _write_many(folder: Path, count: int) -> None:
    """Short clips: links to a few, so that a disk of ordinary size has room for them."""
    folder.mkdir(parents=True)
    clip = read(ROOT / "encodec_rt" / "assets" / "speech_en.flac")
    size = int(SHORT_S * 24_000)
    kept = folder.with_name("kept")
    kept.mkdir()
    for index in range(10):
        soundfile.write(kept / f"{index}.wav", clip[index * size : (index + 1) * size], 24_000)
    for index in range(count):
        os.link(kept / f"{index % 10}.wav", folder / f"{index:07d}.wav")


def kills(record: Record, codec: Codec, folder: Path, options: argparse.Namespace) -> None:
    """The command, killed at random moments and started again: is the result the same?"""
    cut_clips(folder / "kills", options.clips * 4, seed=2)
    for sink in ("parquet", "webdataset", "npz"):
        whole, out = folder / f"{sink}-whole", folder / f"{sink}-out"
        began = time.perf_counter()
        _command(folder / "kills", whole, sink).wait()
        took = time.perf_counter() - began
        rng = random.Random(len(sink))
        killed = 0
        for _ in range(options.kills):
            process = _command(folder / "kills", out, sink)
            try:
                process.wait(rng.uniform(0.3, 1.0) * took / 3)
            except subprocess.TimeoutExpired:
                killed += 1
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
        assert _command(folder / "kills", out, sink).wait() == 0
        one, other = _contents(whole), _contents(out)
        values = {"killed": killed, "files": len(one), "other bytes": _differences(one, other)}
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


def ray(record: Record, codec: Codec, folder: Path, options: argparse.Namespace) -> None:
    """Ray beside our own processes on the same corpus, all of it and start-up included."""
    cut_clips(folder / "ray", options.ray_clips, seed=3)
    size = UnitSize(clips=64)
    taken: dict[str, float] = {}
    codes: dict[str, dict[str, Codes]] = {}
    for name, settings in (("own", {}), ("ray", {"ray": "local"})):
        out = folder / f"ray-{name}"
        began = time.perf_counter()
        tokenize([folder / "ray"], out, codec=codec, jobs=2, unit_size=size, **settings)  # type: ignore[arg-type]
        taken[name] = time.perf_counter() - began
        rows = (row for path in code_files(out) for row in read_rows(path))
        codes[name] = {row.id: row.codes for row in rows}
    assert all(np.array_equal(codes["ray"][name], own) for name, own in codes["own"].items())
    values = {f"{name}_s": each for name, each in taken.items()}
    values["ray over own"] = taken["ray"] / taken["own"]
    record.add({"what": "ray", "clips": options.ray_clips}, values=values)


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="corpus") as folder:
        yield Path(folder)


def main() -> None:
    """Measure the parts asked for and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hour-s", type=int, default=3600, help="of the long clip")
    parser.add_argument("--short-clips", type=int, default=100_000)
    parser.add_argument("--ray-clips", type=int, default=16_000, help="some ten minutes of work")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--out", default=RESULTS, help="another folder than benches/results")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    record = Record("corpus", folder=options.out)
    if options.note:
        record.add({"note": options.note})
    codec = Codec.load("default")
    works = {"speed": speed, "pool": pool, "memory": memory, "kills": kills, "ray": ray}
    with torch.inference_mode():
        for part in options.parts:
            with _scratch() as folder:
                works[part](record, codec, folder, options)
            print(record.table(record.cases[-3:]), flush=True)
    print(record.write().name)


if __name__ == "__main__":
    main()
