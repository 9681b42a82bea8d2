"""encodec-rt decode: an .ecdc file to audio."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from encodec_rt.cli.console import (
    BackendOption,
    DeviceOption,
    ForceOption,
    Meter,
    ModelOption,
    StartOption,
    check_model,
    check_start,
    load_codec,
    open_input,
    say,
    warn_of_clipping,
)
from encodec_rt.errors import PacketError


def decode(
    source: Annotated[str, typer.Argument(metavar="IN.ecdc", help="The file, or '-'.")],
    target: Annotated[str, typer.Argument(metavar="OUT.wav", help="The new audio file, or '-'.")],
    model: ModelOption = "default",
    device: DeviceOption = "cpu",
    backend: BackendOption = "auto",
    start: StartOption = "exact",
    force: ForceOption = False,
    raw: Annotated[
        str | None,
        typer.Option(
            "--raw", help="Write samples without a header: s16le, f32le, ...", metavar="PCM"
        ),
    ] = None,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Decode a file that ends early up to its end.")
    ] = False,
) -> None:
    """Decode an .ecdc file to 16-bit audio; the suffix of the output names its format."""
    from encodec_rt.audio import AudioWriter, RawFormat, check_target_format
    from encodec_rt.bitstream.ecdc import EcdcReader, read_header
    from encodec_rt.transcode import decode_blocks

    policy = check_start(start)
    bare = None if raw is None else RawFormat(raw, 0, 0)
    check_target_format(target, force=force, raw=bare)
    with ExitStack() as stack:
        file = stack.enter_context(open_input(source))
        header = read_header(file)
        codec = load_codec(model, device, backend)
        check_model(header.model, codec)
        config = codec.config
        blocks = EcdcReader(file, header, config, salvage=salvage)
        writer = AudioWriter(
            target,
            rate_hz=config.sampling_rate,
            channels=config.audio_channels,
            force=force,
            samples=None if salvage else header.samples,
            raw=bare,
        )
        audio = Meter(
            decode_blocks(codec, blocks, codebooks=header.codebooks, start=policy),
            label="decoding",
            rate_hz=config.sampling_rate,
            total_s=header.samples / config.sampling_rate,
        )
        stack.enter_context(writer)
        for pcm in audio:
            writer.write(pcm)
        if header.samples and not audio.samples:
            raise PacketError("the stream ends before its first frame; there is nothing to salvage")
    say(audio.summary())
    warn_of_clipping(writer.clipped, writer.samples)
    if blocks.truncated:
        whole = header.samples / config.sampling_rate
        say(f"warning: the stream ended early; {audio.seconds:.2f} s of {whole:.2f} s were there")
