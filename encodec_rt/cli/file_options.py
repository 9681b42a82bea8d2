"""Options and helpers of the commands that read audio and write files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, BinaryIO, cast

import typer

from encodec_rt.audio.excerpt import excerpt
from encodec_rt.cli.console import PIPE, say
from encodec_rt.errors import ConfigError, InputError, PacketError

if TYPE_CHECKING:
    from encodec_rt.audio import AudioReader, RawFormat
    from encodec_rt.types import Audio

FromOption = Annotated[
    float, typer.Option("--from", help="Begin this many seconds in.", metavar="SECONDS", min=0.0)
]


ToOption = Annotated[
    float | None, typer.Option("--to", help="End this many seconds in.", metavar="SECONDS", min=0.0)
]


StrictOption = Annotated[
    bool, typer.Option("--strict", help="Refuse audio that is damaged or cut short.")
]


@dataclasses.dataclass(frozen=True)
class RawOptions:
    """What the samples of an input without a header are."""

    raw: Annotated[
        str | None,
        typer.Option(
            "--raw", help="Input without a header: s16le, f32le, mulaw, ...", metavar="PCM"
        ),
    ] = None
    rate: Annotated[
        int | None,
        typer.Option(
            "--rate",
            help="With --raw, its sampling rate in Hz.",
            min=100,
            max=10_000_000,
            show_default="24000",
        ),
    ] = None
    channels: Annotated[
        int | None,
        typer.Option(
            "--channels",
            help="With --raw, its number of channels.",
            min=1,
            max=64,
            show_default="1",
        ),
    ] = None

    def format(self) -> RawFormat | None:
        """What they say, or None for audio that says so itself. Raises ConfigError."""
        from encodec_rt.audio import RawFormat

        if self.raw is not None:
            return RawFormat(self.raw, self.rate or 24_000, self.channels or 1)
        if (self.rate, self.channels) != (None, None):
            raise ConfigError("--rate and --channels are for --raw; other audio has its own")
        return None


@contextmanager
def open_output(target: str, *, force: bool) -> Iterator[BinaryIO]:
    """A file to write bytes to, which says its own name in an error.

    ``target`` appears under its name when the block succeeds; "-" is standard output.
    """
    from encodec_rt.atomic import WholeWrites, replacing, standard_output

    if target == PIPE:
        yield cast("BinaryIO", WholeWrites(standard_output(), "standard output"))
        return
    with replacing(target, force=force) as path, path.open("wb", buffering=0) as file:
        yield cast("BinaryIO", WholeWrites(file, target))


@contextmanager
def about(source: str) -> Iterator[None]:
    """Make a PacketError in the block name the input ``source`` if it names no file."""
    try:
        yield
    except PacketError as error:
        if source != PIPE and source in str(error):
            raise
        name = "standard input" if source == PIPE else source
        raise PacketError(f"{name}: {error}") from error


def between(
    blocks: Iterable[Audio], rate_hz: int, begin_s: float, end_s: float | None
) -> Iterator[Audio]:
    """The part of ``blocks`` [channels, n] from ``begin_s`` to ``end_s``, reading no further.

    Raises ConfigError if nothing can lie between them, InputError if the audio ends before.
    """
    if not 0 <= begin_s < (math.inf if end_s is None else end_s):
        raise ConfigError(
            f"--from {begin_s:g} --to {end_s}; give 0 s or later, and --to after --from"
        )
    read = yield from excerpt(blocks, rate_hz, begin_s, end_s)
    if 0 < round(begin_s * rate_hz) >= read:
        raise InputError(f"--from {begin_s:g}: the audio ends after {read / rate_hz:.2f} s")


def warn(reader: AudioReader) -> None:
    """Say what was wrong with what was read."""
    for sentence in reader.warnings:
        say(f"warning: {sentence}")
