"""encodec-rt decode: an .ecdc file to audio."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from encodec_rt.cli.batch import AUDIO_SUFFIXES, Naming, several
from encodec_rt.cli.console import (
    BackendOption,
    DeviceOption,
    ForceOption,
    Meter,
    ModelOption,
    StartOption,
    check_model,
    check_start,
    detail,
    load_codec,
    open_input,
    report,
    say,
    warn_of_clipping,
)
from encodec_rt.cli.file_options import FromOption, ToOption, between
from encodec_rt.errors import PacketError

NAMING = Naming(".wav", frozenset({".ecdc"}), AUDIO_SUFFIXES)


def decode_file(
    source: str,
    target: str,
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
    begin: FromOption = 0.0,
    end: ToOption = None,
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
        config, rate = codec.config, codec.config.sampling_rate
        blocks = EcdcReader(file, header, config, salvage=salvage)
        writer = AudioWriter(
            target,
            rate_hz=rate,
            channels=config.audio_channels,
            force=force,
            samples=None if salvage else _samples_between(header.samples, rate, begin, end),
            raw=bare,
        )
        heard = decode_blocks(codec, blocks, codebooks=header.codebooks, start=policy)
        audio = Meter(
            between(heard, rate, begin, end),
            label="decoding",
            rate_hz=rate,
            total_s=header.samples / rate,
        )
        detail(f"{source}: {header.samples / rate:.2f} s of {header.codebooks} codebooks")
        stack.enter_context(writer)
        for pcm in audio:
            writer.write(pcm)
        if blocks.truncated and not audio.samples:
            raise PacketError("the stream ends before its first frame; there is nothing to salvage")
    report(audio.summary())
    warn_of_clipping(writer.clipped, writer.samples)
    if blocks.truncated:
        whole = header.samples / rate
        say(f"warning: the stream ended early; {audio.seconds:.2f} s of {whole:.2f} s were there")


def _samples_between(samples: int, rate_hz: int, begin_s: float, end_s: float | None) -> int:
    last = samples if end_s is None else min(samples, round(end_s * rate_hz))
    return max(0, last - round(begin_s * rate_hz))


decode = several(NAMING)(decode_file)
