"""encodec-rt scale, cut and cat: .encodec streams changed as they are, without a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, BinaryIO

import typer

from encodec_rt.cli.console import check_output, open_input, report
from encodec_rt.cli.file_options import FromOption, ToOption, about, open_output
from encodec_rt.cli.options import ForceOption

SUFFIX = ".encodec"

SourceArgument = Annotated[str, typer.Argument(metavar="IN.encodec", help="The file, or '-'.")]
TargetArgument = Annotated[str, typer.Argument(metavar="OUT.encodec", help="The new file, or '-'.")]


def scale(
    source: SourceArgument,
    target: TargetArgument,
    bandwidth: Annotated[
        float, typer.Option("-b", "--bandwidth", help="The lower bandwidth, in kbps.")
    ],
    force: ForceOption = False,
) -> None:
    """Drop the codebooks above a bandwidth, without decoding."""
    from encodec_rt.bitstream import editing

    with about(source), open_input(source) as file:
        _write(target, force, lambda out: editing.scale(file, out, bandwidth))


def cut(
    source: SourceArgument,
    target: TargetArgument,
    begin: FromOption = 0.0,
    end: ToOption = None,
    force: ForceOption = False,
) -> None:
    """Keep the part between two times, without decoding."""
    from encodec_rt.bitstream import editing

    with about(source), open_input(source) as file:
        _write(target, force, lambda out: editing.cut(file, out, begin, end))


def cat(
    sources: Annotated[list[str], typer.Argument(metavar="IN.encodec...", help="The files.")],
    target: Annotated[
        str, typer.Option("-o", "--output", metavar="OUT.encodec", help="The new file, or '-'.")
    ],
    force: ForceOption = False,
) -> None:
    """Join streams, without decoding."""
    from encodec_rt.bitstream import editing

    def join(out: BinaryIO) -> int:
        writer = editing.Joiner(out)
        for source in sources:
            # One at a time, as a system lets a program open only a thousand or so.
            with about(source), open_input(source) as file:
                writer.add(file)
        return writer.bytes_written

    _write(target, force, join)


def _write(target: str, force: bool, edit: Callable[[BinaryIO], int]) -> None:
    check_output(target, suffix=SUFFIX, force=force)
    with open_output(target, force=force) as out:
        size = edit(out)
    report(f"{size} bytes")
