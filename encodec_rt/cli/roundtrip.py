"""encodec-rt roundtrip: audio through the codec and back."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from encodec_rt.cli.batch import Naming, several
from encodec_rt.cli.console import Meter, check_start, detail, report, warn_of_clipping
from encodec_rt.cli.file_options import (
    FromOption,
    RawOptions,
    StrictOption,
    ToOption,
    between,
    warn,
)
from encodec_rt.cli.options import FileCodecOptions, StartOption, with_groups
from encodec_rt.suffixes import AUDIO_SUFFIXES

NAMING = Naming(".coded.wav", AUDIO_SUFFIXES, None)


def roundtrip_file(
    source: str,
    target: str,
    options: FileCodecOptions,
    raw: RawOptions,
    start: StartOption = "exact",
    strict: StrictOption = False,
    begin: FromOption = 0.0,
    end: ToOption = None,
    raw_out: Annotated[
        str | None,
        typer.Option("--raw-out", help="Output without a header: s16le, ...", metavar="PCM"),
    ] = None,
) -> None:
    """Encode and decode audio, to hear what the codec does to it."""
    from encodec_rt.audio import AudioReader, AudioWriter, RawFormat, check_target_format
    from encodec_rt.transcode import decode_blocks, encode_blocks

    policy = check_start(start)
    bare = None if raw_out is None else RawFormat(raw_out, 0, 0)
    check_target_format(target, force=options.force, raw=bare)
    with ExitStack() as stack:
        reader = stack.enter_context(AudioReader(source, raw=raw.format(), strict=strict))
        codec = options.load()
        config = codec.config
        rate, channels = config.sampling_rate, config.audio_channels
        books = config.codebooks_for(options.bandwidth)
        writer = AudioWriter(
            target,
            rate_hz=rate,
            channels=channels,
            force=options.force,
            raw=bare,
            tags=reader.tags,
        )
        heard = between(reader.blocks(rate, channels), rate, begin, end)
        audio = Meter(heard, label="coding", rate_hz=rate, total_s=reader.duration_s)
        detail(f"{reader.name}: {reader.description}, {reader.rate_hz} Hz")
        stack.enter_context(writer)
        blocks = encode_blocks(codec, audio, bandwidth_kbps=options.bandwidth, start=policy)
        for pcm in decode_blocks(codec, blocks, codebooks=books, start=policy):
            writer.write(pcm)
    report(f"{audio.summary()}: {books} codebooks")
    warn_of_clipping(writer.clipped, writer.samples)
    warn(reader)


roundtrip = with_groups(several(NAMING)(roundtrip_file))
