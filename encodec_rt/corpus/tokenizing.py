"""A corpus of audio to codes: plan, resume, work, sum up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from encodec_rt.corpus.clips import ChannelChoice
from encodec_rt.corpus.manifest import OutputFolder, write_json
from encodec_rt.corpus.pool import default_jobs, run_units
from encodec_rt.corpus.rows import CodesInfo
from encodec_rt.corpus.sinks import check_sink
from encodec_rt.corpus.sources import Input, Plan, UnitSize
from encodec_rt.corpus.summary import PICTURE, SUMMARY, Summary, draw, summarise
from encodec_rt.corpus.units import Unit
from encodec_rt.corpus.work import Done, Settings, Tokenizer, UnitRecord, packed
from encodec_rt.errors import BackendUnavailable, ConfigError
from encodec_rt.streaming.codec import Codec
from encodec_rt.version import __version__

FORMAT = 1
"""Of the manifest and the state beside it."""
_PACKAGES = ("torch", "soxr", "soundfile", "av")
"""Those that can move a sample or a code."""


@dataclass
class Progress:
    """How far a run is. ``seconds`` are those of audio encoded in this run."""

    units: int
    finished: int
    clips: int = 0
    seconds: float = 0.0
    errors: int = 0
    cpu_s: float = 0.0
    began: float = 0.0
    in_this_run: int = 0

    @property
    def wall_s(self) -> float:
        """Seconds since the work began."""
        return time.perf_counter() - self.began

    @property
    def times_real_time(self) -> float:
        """Seconds of audio per second."""
        return self.seconds / max(1e-9, self.wall_s)

    @property
    def left_s(self) -> float | None:
        """Seconds until the end at the pace so far, None before the first unit."""
        if not self.in_this_run:
            return None
        return (self.units - self.finished) * self.wall_s / self.in_this_run


def tokenize(
    inputs: Sequence[Input],
    out: str | Path,
    *,
    codec: Codec | None = None,
    bandwidth_kbps: float = 6.0,
    sink: str = "parquet",
    channels: ChannelChoice = "mix",
    loudness_lufs: float | None = None,
    strict: bool = False,
    dedup: bool = False,
    audio_column: str | None = None,
    unit_size: UnitSize | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    verify: int = 0,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_remark: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Encode every clip of ``inputs`` into the folder ``out``, going on where a run was stopped.

    ``inputs`` are files, folders, globs, lists, tars, Parquet files and Hugging Face ``datasets``
    objects. ``codec`` is the embedded model's if none is given. ``ray`` is the address of a Ray
    cluster, or "local", in place of processes of our own; ``jobs`` counts workers in both. What
    cannot be read is a row of errors.parquet. Raises CodecError, and OSError where ``out`` cannot
    be written.
    """
    codec = codec or Codec.load("default")
    size = unit_size or UnitSize()
    settings = Settings(
        os.path.abspath(out), bandwidth_kbps, sink, channels, loudness_lufs, strict, audio_column
    )
    settings.treatment.check(codec.config)
    check_sink(sink)
    info = CodesInfo.of(codec, bandwidth_kbps)
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs={jobs}; at least one process is needed")
    folder = OutputFolder(out)
    plan = Plan(inputs, size, column=audio_column, dedup=dedup)
    with folder.locked():
        folder.begin(_manifest(settings, info, codec, plan, size, dedup))
        count = folder.keep_plan(plan)
        settings = Settings(**{**vars(settings), "columns": packed(plan.columns)})
        todo = [unit.index for unit in folder.units() if not folder.is_finished(unit.index)]
        progress = Progress(count, count - len(todo), began=time.perf_counter())
        on_progress(progress)
        units = _unfinished(folder, set(todo))
        arguments = (settings, codec, plan.datasets)
        if ray is None:
            jobs = min(
                jobs or (default_jobs() if codec.device.type == "cpu" else 1), len(todo) or 1
            )
            results = run_units(Tokenizer, arguments, units, jobs)
        else:
            from encodec_rt.corpus.ray_data import run_on_ray

            results = run_on_ray(ray, Tokenizer, arguments, folder, todo, jobs, on_remark)
        for done in results:
            _advance(progress, done, info)
            on_progress(progress)
        records = map(UnitRecord.from_json, folder.records())
        summary = summarise(records, info, folder.path, left_out=plan.left_out)
        keep_summary(folder.path, summary)
    return summary


def keep_summary(folder: Path, summary: Summary) -> None:
    """Write summary.json and the picture; without matplotlib there is no picture."""
    write_json(folder / SUMMARY, summary.as_json())
    if summary.frames:
        try:
            draw(summary, folder / PICTURE)
        except BackendUnavailable:
            (folder / PICTURE).unlink(missing_ok=True)


def _unfinished(folder: OutputFolder, todo: set[int]) -> Iterator[Unit]:
    return (unit for unit in folder.units() if unit.index in todo)


def _advance(progress: Progress, done: Done, info: CodesInfo) -> None:
    progress.finished += 1
    progress.in_this_run += 1
    progress.clips += done.record.clips
    progress.seconds += done.record.samples / info.sampling_rate
    progress.errors += len(done.record.failures)
    progress.cpu_s += done.cpu_s


def _manifest(
    settings: Settings, info: CodesInfo, codec: Codec, plan: Plan, size: UnitSize, dedup: bool
) -> dict[str, Any]:
    """All that the codes depend on, and how they are stored."""
    return {
        "format": FORMAT,
        "encodec_rt": __version__,
        "codes": vars(info),
        "sink": settings.sink,
        "channels": settings.channels,
        "loudness_lufs": settings.loudness_lufs,
        "strict": settings.strict,
        "audio_column": settings.audio_column,
        "dedup": dedup,
        "unit": {"clips": size.clips, "mib": size.mib},
        "inputs": plan.names,
        "backend": codec.ops.name,
        "device": codec.device.type,
        "resampler": f"soxr {_version('soxr')}, high quality",
        "packages": {name: _version(name) for name in _PACKAGES},
        "numerics": torch.backends.cpu.get_cpu_capability(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
