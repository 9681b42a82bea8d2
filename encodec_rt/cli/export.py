"""encodec-rt export: a model for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encodec_rt.cli.console import say

SourceArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help='"default", a folder, a hub id, or an original .th file.'),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]


def web(
    source: SourceArgument,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    half: Annotated[
        bool, typer.Option("--float16", help="Round all weights to float16: half the size.")
    ] = False,
    force: ForceOption = False,
) -> None:
    """Write a causal model as one file for the WebAssembly codec and encodec_rt.portable.

    Weights that are exact in float16, as those of the embedded model are, take half the room in any
    case.
    """
    from encodec_rt.atomic import check_target
    from encodec_rt.export.blob import write_blob
    from encodec_rt.model.encodec import EncodecModel

    check_target(target, force=force)
    size = write_blob(EncodecModel.from_pretrained(source), target, half=half, force=force)
    say(f"{target}: {size / 1e6:.1f} MB")
