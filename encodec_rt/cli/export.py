"""encodec-rt export: a model for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encodec_rt.cli.console import report

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
    """Write a causal model as one file for the WebAssembly codec.

    encodec_rt.portable reads it too. Weights that are exact in float16, like the embedded model's,
    take half the space in any case.
    """
    from encodec_rt.atomic import check_target
    from encodec_rt.export.blob import write_blob
    from encodec_rt.model.encodec import EncodecModel

    check_target(target, force=force)
    size = write_blob(EncodecModel.from_pretrained(source), target, half=half, force=force)
    report(f"{target}: {size / 1e6:.1f} MB")


def onnx(
    source: SourceArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write into.")],
    bandwidth: Annotated[
        float | None,
        typer.Option("-b", "--bandwidth", help="Bandwidth of the encoders; default: the highest."),
    ] = None,
    half: Annotated[
        bool, typer.Option("--float16", help="Keep the weights in float16: half the size.")
    ] = False,
    force: ForceOption = False,
) -> None:
    """Write a causal model as ONNX graphs, and check them.

    There are graphs for one step and for whole clips. Needs encodec-rt[export].
    """
    from encodec_rt.export.onnx import export_onnx
    from encodec_rt.model.encodec import EncodecModel

    model = EncodecModel.from_pretrained(source)
    reports = export_onnx(model, folder, bandwidth_kbps=bandwidth, half=half, force=force)
    for found in reports:
        report(
            f"{found.graphs} in onnxruntime: {found.different} of {found.codes} codes differ, "
            f"audio {found.audio_db:.0f} dB"
        )
