"""encodec-rt encode: audio to an .ecdc file."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from encodec_rt.cli.console import (
    CodecOptions,
    Meter,
    RawOptions,
    StartOption,
    StrictOption,
    check_output,
    check_start,
    open_output,
    say,
    warn,
    with_groups,
)


@with_groups
def encode(
    source: Annotated[str, typer.Argument(metavar="IN", help="Audio of any kind, or '-'.")],
    target: Annotated[str, typer.Argument(metavar="OUT.ecdc", help="The new file, or '-'.")],
    options: CodecOptions,
    raw: RawOptions,
    start: StartOption = "exact",
    strict: StrictOption = False,
) -> None:
    """Encode audio to an .ecdc file, in memory that does not grow with its length."""
    from encodec_rt.audio import AudioReader
    from encodec_rt.bitstream.ecdc import EcdcWriter
    from encodec_rt.transcode import encode_blocks

    policy = check_start(start)
    check_output(target, suffix=".ecdc", force=options.force)
    with ExitStack() as stack:
        reader = stack.enter_context(AudioReader(source, raw=raw.format(), strict=strict))
        codec = options.load()
        config = codec.config
        books = config.codebooks_for(options.bandwidth)
        writer = stack.enter_context(EcdcWriter(config, codec.name, books))
        audio = Meter(
            reader.blocks(config.sampling_rate, config.audio_channels),
            label="encoding",
            rate_hz=config.sampling_rate,
            total_s=reader.duration_s,
        )
        for block in encode_blocks(codec, audio, bandwidth_kbps=options.bandwidth, start=policy):
            writer.write(block.codes, block.scale)
        with open_output(target, force=options.force) as file:
            size = writer.finish(file, audio.samples)
    kbps = size * 8e-3 / audio.seconds if audio.samples else 0.0
    say(f"{audio.summary()}: {books} codebooks, {size} bytes ({kbps:.2f} kbps)")
    warn(reader)
