"""encodec-rt roundtrip: audio through the codec and back."""

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
    check_start,
    say,
    warn,
    warn_of_clipping,
    with_groups,
)


@with_groups
def roundtrip(
    source: Annotated[str, typer.Argument(metavar="IN", help="Audio of any kind, or '-'.")],
    target: Annotated[str, typer.Argument(metavar="OUT.wav", help="The new audio file, or '-'.")],
    options: CodecOptions,
    raw: RawOptions,
    start: StartOption = "exact",
    strict: StrictOption = False,
) -> None:
    """Encode and decode audio at once, to hear what the codec makes of it."""
    from encodec_rt.audio import AudioReader, AudioWriter, check_target_format
    from encodec_rt.transcode import decode_blocks, encode_blocks

    policy = check_start(start)
    check_target_format(target, force=options.force)
    with ExitStack() as stack:
        reader = stack.enter_context(AudioReader(source, raw=raw.format(), strict=strict))
        codec = options.load()
        config = codec.config
        rate, channels = config.sampling_rate, config.audio_channels
        books = config.codebooks_for(options.bandwidth)
        writer = AudioWriter(target, rate_hz=rate, channels=channels, force=options.force)
        audio = Meter(
            reader.blocks(rate, channels), label="coding", rate_hz=rate, total_s=reader.duration_s
        )
        stack.enter_context(writer)
        blocks = encode_blocks(codec, audio, bandwidth_kbps=options.bandwidth, start=policy)
        for pcm in decode_blocks(codec, blocks, codebooks=books, start=policy):
            writer.write(pcm)
    say(f"{audio.summary()}: {books} codebooks")
    warn_of_clipping(writer.clipped, writer.samples)
    warn(reader)
