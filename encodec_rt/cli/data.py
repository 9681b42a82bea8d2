"""encodec-rt data: fetch and index the audio to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encodec_rt.cli.console import say
from encodec_rt.errors import InputError

FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Where the audio is kept; it needs some GB.")
]
SourcesOption = Annotated[
    str, typer.Option("--sources", help="Packages to take, separated by commas; all if not given.")
]


def fetch(folder: FolderArgument, sources: SourcesOption = "") -> None:
    """Download and unpack the Debian packages that the default model was trained on.

    Each is pinned to one version and checked against its SHA-256. Nothing is installed.
    """
    from encodec_rt.training.sources import PACKAGES, by_name, fetch_package

    wanted = by_name(sources.split(",")) if sources else PACKAGES
    for source in wanted:
        fetch_package(source, folder)
        say(f"{source.name} {source.version}: {source.licence}, {source.authors}")


def index(
    folder: FolderArgument,
    sources: SourcesOption = "",
    speech: Annotated[
        list[Path] | None, typer.Option("--speech", help="A folder of your own speech.")
    ] = None,
    music: Annotated[
        list[Path] | None, typer.Option("--music", help="A folder of your own music.")
    ] = None,
) -> None:
    """Decode, measure, split and pack what was fetched, or folders of your own, for training.

    Files that cannot be used are named with the reason. The result is FOLDER/packed.
    """
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
                raise InputError(f"{path} is no folder")
            name = path.resolve().name
            pairs.append((Source(name, kind, "the user's own", "the user's own"), path))
    if not pairs:
        raise InputError(
            f"{folder} holds no fetched package; run encodec-rt data fetch, or name a folder of "
            "your own with --speech or --music"
        )
    index_sources(pairs, folder / "packed", report=say)
