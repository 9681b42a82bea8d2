"""encodec-rt data: fetch, index and transfer the audio to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encodec_rt.cli.console import report
from encodec_rt.cli.options import ForceOption
from encodec_rt.errors import ConfigError, InputError

FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Where the audio is kept; it needs some GB.")
]
SourcesOption = Annotated[
    str, typer.Option("--sources", help="Packages to take, separated by commas; all if not given.")
]


def fetch(folder: FolderArgument, sources: SourcesOption = "") -> None:
    """Download the audio that the default model was trained on.

    It comes in Debian packages, which are unpacked and not installed. Each is pinned to one version
    and checked against its SHA-256.
    """
    from encodec_rt.training.fetch import fetch_package
    from encodec_rt.training.sources import PACKAGES, by_name

    wanted = by_name(sources.split(",")) if sources else PACKAGES
    for source in wanted:
        fetch_package(source, folder)
        report(f"{source.name} {source.version}: {source.licence}, {source.authors}")


def index(
    folder: FolderArgument,
    sources: SourcesOption = "",
    speech: Annotated[
        list[Path] | None,
        typer.Option("--speech", metavar="FOLDER", help="A folder of your own speech."),
    ] = None,
    music: Annotated[
        list[Path] | None,
        typer.Option("--music", metavar="FOLDER", help="A folder of your own music."),
    ] = None,
    rate: Annotated[
        int, typer.Option("--rate", help="The model's rate: 24000, or 48000 for default-48k.")
    ] = 24_000,
    channels: Annotated[int, typer.Option("--channels", help="The model's channels: 1 or 2.")] = 1,
) -> None:
    """Pack what was fetched, or folders of your own, for training.

    Audio is decoded, measured and split. Files that cannot be used are named with the reason. The
    result is FOLDER/packed, or FOLDER/packed-RATExCHANNELS for audio other than 24 kHz mono.
    """
    if not 8_000 <= rate <= 192_000 or channels not in (1, 2):
        raise ConfigError(
            f"rate={rate}, channels={channels}; accepted: 8000 to 192000 Hz, and 1 or 2 channels"
        )
    from encodec_rt.training.data import index_sources
    from encodec_rt.training.sources import PACKAGES, Kind, Source, by_name

    named = by_name(sources.split(",")) if sources else PACKAGES
    found = [(source, folder / "raw" / source.archive) for source in named]
    missing = [source.name for source, path in found if not path.is_dir()]
    if sources and missing:
        raise InputError(f"not fetched yet: {', '.join(missing)}; run encodec-rt data fetch first")
    pairs = [(source, path) for source, path in found if path.is_dir()]
    own: list[tuple[Kind, list[Path]]] = [("speech", speech or []), ("music", music or [])]
    for kind, folders in own:
        for path in folders:
            if not path.is_dir():
                raise InputError(f"{path} is not a folder")
            name = path.resolve().name
            pairs.append((Source(name, kind, "the user's own", "the user's own"), path))
    if not pairs:
        raise InputError(
            f"{folder} holds no fetched package; run encodec-rt data fetch, or name a folder of "
            "your own with --speech or --music"
        )
    name = "packed" if (rate, channels) == (24_000, 1) else f"packed-{rate}x{channels}"
    index_sources(pairs, folder / name, sampling_rate=rate, channels=channels, report=report)


def shard(
    packed: Annotated[
        Path, typer.Argument(metavar="PACKED", help="The packed audio that data index made.")
    ],
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="A new folder for the shards.")],
    kbps: Annotated[float, typer.Option("--kbps", help="Opus rate; 48 is 22 MB per hour.")] = 48.0,
    mib: Annotated[
        float, typer.Option("--mib", help="The largest size of a shard, in MiB.")
    ] = 15.0,
    most: Annotated[int, typer.Option("--most", help="Stop after this many shards; 0: never.")] = 0,
) -> None:
    """Write packed audio as Opus shards.

    They are for a machine to which only small files can be transferred.
    """
    from encodec_rt.training.shards import write_shards

    for path in write_shards(packed, shards, kbps=kbps, shard_mib=mib, most=most):
        report(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


def unshard(
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="A folder of shards.")],
    packed: Annotated[
        Path, typer.Argument(metavar="PACKED", help="A new folder for the packed audio.")
    ],
) -> None:
    """Unpack Opus shards into packed audio to train on."""
    from encodec_rt.training.shards import read_shards

    for source in read_shards(shards, packed):
        report(f"{source.name}: {source.hours('train'):.2f} h to train on")


def split(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint, or any file.")],
    parts: Annotated[Path, typer.Argument(metavar="PARTS", help="A new folder for the parts.")],
    mib: Annotated[float, typer.Option("--mib", help="The largest size of a part, in MiB.")] = 15.0,
) -> None:
    """Split a large file, such as a checkpoint, into parts."""
    from encodec_rt.training.parts import split_file

    report(f"{parts}: {split_file(file, parts, part_mib=mib)} parts")


def join(
    parts: Annotated[
        Path, typer.Argument(metavar="PARTS", help="The folder that data split wrote.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    force: ForceOption = False,
) -> None:
    """Join the parts of a file, each checked by its SHA-256."""
    from encodec_rt.training.parts import join_file

    join_file(parts, file, force=force)
    report(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")
