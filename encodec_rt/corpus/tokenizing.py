"""A corpus of audio to codes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from encodec_rt.corpus.clips import ChannelChoice
from encodec_rt.corpus.job import JobRunner, RunProgress, begin, environment, keep_summary
from encodec_rt.corpus.manifest import OutputFolder
from encodec_rt.corpus.records import UnitRecord
from encodec_rt.corpus.rows import CodesInfo
from encodec_rt.corpus.sinks import check_sink
from encodec_rt.corpus.sources import Input, Plan, UnitSize
from encodec_rt.corpus.summary import Summary, summarise
from encodec_rt.corpus.verifying import verify_sample
from encodec_rt.corpus.work import Settings, Tokenizer, packed
from encodec_rt.streaming.codec import Codec


def tokenize(
    inputs: Input | Sequence[Input],
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
    verify: int = 0,
    jobs: int | None = None,
    ray: str | None = None,
    on_progress: Callable[[RunProgress], None] = lambda _: None,
    on_remark: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Encode every clip of ``inputs`` into the folder ``out``, resuming an interrupted run.

    ``inputs`` are files, folders, globs, lists, tars, Parquet files and Hugging Face ``datasets``
    objects. ``codec`` is the embedded model's if none is given. ``verify`` clips are encoded again
    and compared. ``jobs`` and ``ray`` are as in ``JobRunner``. What cannot be read is a row of
    errors.parquet. Raises CodecError, and OSError where ``out`` cannot be written.
    """
    codec = codec or Codec.load("default")
    size = unit_size or UnitSize()
    runner = JobRunner(jobs, ray, on_progress, on_remark)
    settings = Settings(
        os.path.abspath(out), bandwidth_kbps, sink, channels, loudness_lufs, strict, audio_column
    )
    settings.treatment.check(codec.config)
    check_sink(sink)
    info = CodesInfo.of(codec, bandwidth_kbps)
    plan = Plan(inputs, size, column=audio_column, dedup=dedup)
    manifest = _manifest(settings, info, codec, plan, size, dedup)
    folder = OutputFolder(out)
    with folder.locked():
        count = begin(folder, manifest, plan)
        settings = replace(settings, columns=packed(plan.columns))
        arguments = (settings, codec, plan.datasets)
        runner.run(folder, count, Tokenizer, arguments, codec)
        records = map(UnitRecord.from_json, folder.records())
        summary = summarise(records, info, folder.path, left_out=plan.left_out)
        keep_summary(folder, summary)
        if verify:
            summary.verified = verify_sample(folder, settings, codec, plan.datasets, verify)
    return summary


def _manifest(
    settings: Settings, info: CodesInfo, codec: Codec, plan: Plan, size: UnitSize, dedup: bool
) -> dict[str, Any]:
    """All that the codes depend on, and how they are stored."""
    return {
        **environment(codec),
        "codes": vars(info),
        "sink": settings.sink,
        "channels": settings.channels,
        "loudness_lufs": settings.loudness_lufs,
        "strict": settings.strict,
        "audio_column": settings.audio_column,
        "dedup": dedup,
        "unit": {"clips": size.clips, "mib": size.mib},
        "inputs": plan.names,
    }
