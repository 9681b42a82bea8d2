"""encodec-rt tokenize and detokenize: whole corpora of audio to codes and back."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from encodec_rt.cli.console import load_codec, put, report, say, status_console
from encodec_rt.cli.habits import VERBOSITY, Verbosity
from encodec_rt.cli.options import (
    BackendOption,
    BandwidthOption,
    DeviceOption,
    ModelOption,
    with_groups,
)

if TYPE_CHECKING:
    from encodec_rt.corpus.clips import ChannelChoice
    from encodec_rt.corpus.job import RunProgress
    from encodec_rt.corpus.summary import Summary

EXIT_ERRORS = 3
"""The corpus is done, and errors.parquet lists what could not be read."""
REPORT_EVERY_S = 60.0
"""How often a run without a terminal says how far it is."""

OutOption = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="FOLDER", help="The output folder; a stopped run resumes there."
    ),
]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", "-j", help="Processes; by default one per core.", min=1, max=1024),
]
RayOption = Annotated[
    str | None,
    typer.Option("--ray", help="Run on a Ray cluster: its address, or 'local'.", metavar="ADDRESS"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]


@dataclasses.dataclass(frozen=True)
class UnitOptions:
    """How much is processed and written as a unit."""

    shard_clips: Annotated[
        int, typer.Option("--shard-clips", help="The most clips in one shard.", min=1)
    ] = 1024
    shard_mb: Annotated[
        float,
        typer.Option("--shard-mb", help="Source MiB after which a new shard begins.", min=0.01),
    ] = 32.0


def tokenize_corpus(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IN...",
            help="Folders, files, globs, lists (.csv, .tsv, .jsonl, .txt), tars, Parquet files.",
        ),
    ],
    out: OutOption,
    units: UnitOptions,
    bandwidth: BandwidthOption = 6.0,
    model: ModelOption = "default",
    device: DeviceOption = "cpu",
    backend: BackendOption = "auto",
    sink: Annotated[
        str,
        typer.Option(
            "--format",
            help="parquet, webdataset, npz, npy, ecdc or encodec.",
            metavar="FORMAT",
        ),
    ] = "parquet",
    channels: Annotated[
        str, typer.Option("--channels", help="mix, or each (every channel is a clip).")
    ] = "mix",
    loudness: Annotated[
        float | None,
        typer.Option("--loudness", help="Bring each clip to this loudness first.", metavar="LUFS"),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse audio that is damaged or cut short.")
    ] = False,
    dedup: Annotated[
        bool, typer.Option("--dedup", help="Leave out exact copies of earlier files.")
    ] = False,
    audio_column: Annotated[
        str | None,
        typer.Option("--audio-column", help="The audio column of Parquet files.", metavar="NAME"),
    ] = None,
    jobs: JobsOption = None,
    ray: RayOption = None,
    verify: Annotated[
        int, typer.Option("--verify", help="Encode this many clips again and compare.", min=0)
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Encode every clip of a corpus.

    The codes are exactly those of the offline model. Files that cannot be read are listed in
    errors.parquet, and the exit status is then 3.
    """
    from encodec_rt.corpus.sources import UnitSize
    from encodec_rt.corpus.tokenizing import tokenize

    codec = load_codec(model, device, backend)
    with showing_progress() as show:
        summary = tokenize(
            inputs,
            out,
            codec=codec,
            bandwidth_kbps=bandwidth,
            sink=sink,
            channels=cast("ChannelChoice", channels),
            loudness_lufs=loudness,
            strict=strict,
            dedup=dedup,
            audio_column=audio_column,
            unit_size=UnitSize(units.shard_clips, units.shard_mb),
            jobs=jobs,
            ray=ray,
            verify=verify,
            on_progress=show,
            on_remark=report,
        )
    show_summary(summary, out, as_json)


def detokenize(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="IN...", help="Folders that tokenize wrote, or files in them."),
    ],
    out: OutOption,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            "-b", "--bandwidth", help="Drop the codebooks beyond this bandwidth, in kbps."
        ),
    ] = None,
    model: ModelOption = "default",
    device: DeviceOption = "cpu",
    backend: BackendOption = "auto",
    audio_format: Annotated[
        str, typer.Option("--format", help="wav, flac, ogg, opus or mp3.", metavar="FORMAT")
    ] = "wav",
    jobs: JobsOption = None,
    ray: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decode the codes of a corpus into audio files, one per clip."""
    from encodec_rt.corpus.detokenizing import detokenize as run

    codec = load_codec(model, device, backend)
    with showing_progress() as show:
        summary = run(
            inputs,
            out,
            codec=codec,
            audio_format=audio_format,
            bandwidth_kbps=bandwidth,
            jobs=jobs,
            ray=ray,
            on_progress=show,
            on_remark=report,
        )
    show_summary(summary, out, as_json)


tokenize = with_groups(tokenize_corpus)
tokenize.__name__ = "tokenize"


def show_summary(summary: Summary, out: Path, as_json: bool) -> None:
    """Show the summary; exit with EXIT_ERRORS if there were any, or codes that differ."""
    if as_json:
        put(json.dumps(summary.as_json()))
    elif VERBOSITY.get() >= Verbosity.NORMAL:
        show_table(summary)
    if summary.left_out:
        report(f"{_counted(summary.left_out, 'file')} of other kinds left out")
    if summary.errors:
        where = out / "errors.parquet"
        say(f"{_counted(summary.errors, 'error')}: {where} names each file and its reason")
    if summary.errors or (summary.verified or {}).get("ids"):
        raise typer.Exit(EXIT_ERRORS)


def show_table(summary: Summary) -> None:
    """The sums, and a row for each codebook."""
    from rich.table import Table

    from encodec_rt.corpus.statistics import book_uses

    console = status_console()
    table = Table(title=f"{summary.clips} clips, {summary.hours:.3f} h", title_justify="left")
    for name in ("codebook", "entries used", "entropy"):
        table.add_column(name, justify="right")
    for book, use in enumerate(book_uses(summary.counts), 1):
        row = (f"{100 * use.used_share:.1f} %", f"{use.entropy_bits:.2f} bits")
        table.add_row(str(book), *row)
    console.print(table)
    silent = 100 * summary.silent_frames / max(1, summary.frames)
    say(
        f"{summary.frames} frames, {summary.bytes} bytes, {silent:.1f} % silent, "
        f"{_counted(summary.errors, 'error')}, {_counted(summary.duplicates, 'duplicate')}"
    )
    if summary.verified is not None:
        say(
            f"verified: {summary.verified['frames']} frames of {summary.verified['clips']} clips, "
            f"{summary.verified['differ']} differ"
        )
        for name in summary.verified["ids"]:
            say(f"differs: {name}")


@contextmanager
def showing_progress() -> Iterator[Callable[[RunProgress], None]]:
    """A bar on a terminal, else a line every minute."""
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    console = status_console()
    if VERBOSITY.get() == Verbosity.QUIET or not console.is_terminal:
        yield _reporter()
        return
    columns = (BarColumn(), TextColumn("{task.description}"))
    with Bars(*columns, console=console, transient=True) as bar:
        task = bar.add_task("planning", total=None)

        def show(progress: RunProgress) -> None:
            done, text = progress.finished, line_of(progress)
            bar.update(task, total=progress.units, completed=done, description=text)

        yield show


def _reporter() -> Callable[[RunProgress], None]:
    reported_s = time.monotonic()

    def show(progress: RunProgress) -> None:
        nonlocal reported_s
        if time.monotonic() - reported_s >= REPORT_EVERY_S:
            reported_s = time.monotonic()
            report(line_of(progress))

    return show


def line_of(progress: RunProgress) -> str:
    """How far a run is, in one line."""
    left = progress.left_s
    eta = "" if left is None else f", {_clock(left)} left"
    return (
        f"{progress.finished} of {progress.units} shards, {progress.seconds / 3600:.3f} h, "
        f"{progress.times_real_time:.0f}x real time{eta}, {_counted(progress.errors, 'error')}"
    )


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
