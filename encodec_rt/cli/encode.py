"""encodec-rt encode: audio to an .encodec or .ecdc file."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from encodec_rt.cli.batch import Naming, several
from encodec_rt.cli.console import (
    PIPE,
    Meter,
    check_output,
    check_start,
    detail,
    load_paper_lm,
    model_folder,
    report,
)
from encodec_rt.cli.file_options import (
    FromOption,
    RawOptions,
    StrictOption,
    ToOption,
    between,
    open_output,
    warn,
)
from encodec_rt.cli.options import FileCodecOptions, LmOption, StartOption, with_groups
from encodec_rt.errors import ConfigError
from encodec_rt.suffixes import AUDIO_SUFFIXES

if TYPE_CHECKING:
    from encodec_rt.bitstream.ecdc import Block
    from encodec_rt.container_audio import CodingChoice
    from encodec_rt.streaming.codec import Codec
    from encodec_rt.streaming.weights import Start

FORMATS = ("encodec", "ecdc")


NAMING = Naming(".encodec", AUDIO_SUFFIXES, frozenset({".encodec", ".ecdc"}))


def encode_file(
    source: str,
    target: str,
    options: FileCodecOptions,
    raw: RawOptions,
    start: StartOption = "exact",
    file_format: Annotated[
        str | None,
        typer.Option("--format", help="encodec or ecdc; required if OUT is '-'.", metavar="FORMAT"),
    ] = None,
    coding: Annotated[
        str,
        typer.Option(
            "--coding", help="Coding of .encodec: auto, raw, tables or lm.", metavar="CODING"
        ),
    ] = "auto",
    lm: LmOption = None,
    strict: StrictOption = False,
    begin: FromOption = 0.0,
    end: ToOption = None,
) -> None:
    """Encode audio to a file of codes.

    .encodec is this package's container, .ecdc the original package's format. Memory use does not
    grow with the length of the audio.
    """
    from encodec_rt.audio import AudioReader
    from encodec_rt.container_audio import container_tags
    from encodec_rt.transcode import encode_blocks

    policy = check_start(start)
    kind = _format_of(target, file_format)
    choice = _check_coding(coding)
    if kind == "ecdc" and choice != "auto":
        raise ConfigError(f"--coding {choice} for .ecdc; it is for .encodec, so change the suffix")
    check_output(target, suffix=tuple(f".{name}" for name in FORMATS), force=options.force)
    with ExitStack() as stack:
        reader = stack.enter_context(AudioReader(source, raw=raw.format(), strict=strict))
        codec = options.load()
        config = codec.config
        books = config.codebooks_for(options.bandwidth)
        rate = config.sampling_rate
        heard = reader.blocks(rate, config.audio_channels)
        audio = Meter(
            between(heard, rate, begin, end),
            label="encoding",
            rate_hz=rate,
            total_s=reader.duration_s,
        )
        detail(f"{reader.name}: {reader.description}, {reader.rate_hz} Hz")
        blocks = encode_blocks(codec, audio, bandwidth_kbps=options.bandwidth, start=policy)
        if kind == "ecdc":
            size = _write_ecdc(codec, blocks, audio, target, books, lm, options.force)
        else:
            tags = container_tags(reader.tags)
            size = _write_container(codec, blocks, audio, target, policy, choice, lm, tags, options)
    kbps = size * 8e-3 / audio.seconds if audio.samples else 0.0
    report(f"{audio.summary()}: {books} codebooks, {size} bytes ({kbps:.2f} kbps)")
    warn(reader)


encode = with_groups(several(NAMING)(encode_file))


def _format_of(target: str, named: str | None) -> str:
    if named is not None and named not in FORMATS:
        raise ConfigError(f"format {named!r}; accepted: {', '.join(FORMATS)}")
    suffix = target.rpartition(".")[2]
    if target == PIPE:
        if named is None:
            raise ConfigError("standard output has no suffix; add --format encodec or ecdc")
        return named
    if named is not None and suffix in FORMATS and suffix != named:
        raise ConfigError(f"{target} with --format {named}; change it or the suffix")
    return named or suffix


def _check_coding(coding: str) -> CodingChoice:
    from encodec_rt.container_audio import CodingChoice

    for choice in get_args(CodingChoice):
        if coding == choice:
            return cast("CodingChoice", choice)
    raise ConfigError(f"coding={coding!r}; accepted: {', '.join(get_args(CodingChoice))}")


def _write_ecdc(
    codec: Codec,
    blocks: Iterable[Block],
    audio: Meter,
    target: str,
    books: int,
    lm: Path | None,
    force: bool,
) -> int:
    from encodec_rt.bitstream.ecdc import EcdcWriter
    from encodec_rt.lm.paper import PaperEncoder

    model = None if lm is None else load_paper_lm(lm, codec.config)
    coder = None if model is None else partial(PaperEncoder, model)
    with EcdcWriter(codec.config, codec.name, books, coder=coder) as writer:
        for block in blocks:
            writer.write(block.codes, block.scale)
        with open_output(target, force=force) as file:
            return writer.finish(file, audio.samples)


def _write_container(
    codec: Codec,
    blocks: Iterable[Block],
    audio: Meter,
    target: str,
    start: Start,
    coding: CodingChoice,
    lm: Path | None,
    tags: list[tuple[str, str]],
    options: FileCodecOptions,
) -> int:
    from encodec_rt.bitstream.container_writer import ContainerWriter
    from encodec_rt.container_audio import coder_of, header_for

    books = codec.config.codebooks_for(options.bandwidth)
    header = header_for(codec, books, start=start)
    coder = coder_of(header, model_folder(options.model), wanted=coding, lm=lm)
    with open_output(target, force=options.force) as file:
        writer = ContainerWriter(file, header, coder, fields=[("MODEL", codec.name), *tags])
        for block in blocks:
            writer.write(block.codes, block.scale)
        return writer.finish(audio.samples)
