"""encodec-rt scale, cut and cat: .encodec streams changed as they are, without a model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, BinaryIO

import typer

from encodec_rt.cli.console import PIPE, ForceOption, check_output, open_input, say

SUFFIX = ".encodec"

SourceArgument = Annotated[str, typer.Argument(metavar="IN.encodec", help="The file, or '-'.")]
TargetArgument = Annotated[str, typer.Argument(metavar="OUT.encodec", help="The new file, or '-'.")]
FromOption = Annotated[
    float, typer.Option("--from", metavar="SECONDS", help="Where it begins.", min=0.0)
]
ToOption = Annotated[
    float | None, typer.Option("--to", metavar="SECONDS", help="Where it ends, if not at the end.")
]


def scale(
    source: SourceArgument,
    target: TargetArgument,
    bandwidth: Annotated[
        float, typer.Option("-b", "--bandwidth", help="Bandwidth in kbps to come down to.")
    ],
    force: ForceOption = False,
) -> None:
    """Leave out the codebooks above a bandwidth, without decoding."""
    from encodec_rt.bitstream import editing

    with open_input(source) as file:
        _write(target, force, lambda out: editing.scale(file, out, bandwidth))


def cut(
    source: SourceArgument,
    target: TargetArgument,
    begin: FromOption = 0.0,
    end: ToOption = None,
    force: ForceOption = False,
) -> None:
    """Keep what sounds between two times, without decoding."""
    from encodec_rt.bitstream import editing

    with open_input(source) as file:
        _write(target, force, lambda out: editing.cut(file, out, begin, end))


def cat(
    sources: Annotated[list[str], typer.Argument(metavar="IN.encodec...", help="The files.")],
    target: Annotated[
        str, typer.Option("-o", "--output", metavar="OUT.encodec", help="The new file, or '-'.")
    ],
    force: ForceOption = False,
) -> None:
    """Put streams one after the other, without decoding."""
    from encodec_rt.bitstream import editing

    with ExitStack() as stack:
        files = [stack.enter_context(open_input(source)) for source in sources]
        _write(target, force, lambda out: editing.join(files, out))


def _write(target: str, force: bool, edit: Callable[[BinaryIO], int]) -> None:
    check_output(target, suffix=SUFFIX, force=force)
    with new_file(target, force=force) as out:
        size = edit(out)
    say(f"{size} bytes")


@contextmanager
def new_file(target: str, *, force: bool) -> Iterator[BinaryIO]:
    """The file ``target`` to be, which appears when it is whole, or standard output for "-"."""
    from encodec_rt.atomic import replacing

    if target == PIPE:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with replacing(target, force=force) as path, path.open("wb") as file:
        yield file
