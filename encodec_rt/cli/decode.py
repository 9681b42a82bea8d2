"""encodec-rt decode: an .encodec or .ecdc file to audio."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from encodec_rt.cli.console import (
    BackendOption,
    DeviceOption,
    ForceOption,
    LmOption,
    Meter,
    ModelOption,
    StartOption,
    check_model,
    check_start,
    load_codec,
    load_paper_lm,
    look_at,
    model_folder,
    open_input,
    say,
    warn_of_clipping,
)
from encodec_rt.cli.edit import FromOption, ToOption
from encodec_rt.errors import ConfigError, PacketError

if TYPE_CHECKING:
    from encodec_rt.container_audio import ContainerAudio


def decode(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="The .encodec or .ecdc file, or '-'.")
    ],
    target: Annotated[str, typer.Argument(metavar="OUT.wav", help="The new audio file, or '-'.")],
    model: ModelOption = "default",
    device: DeviceOption = "cpu",
    backend: BackendOption = "auto",
    start: StartOption = "exact",
    force: ForceOption = False,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Decode what is whole of a damaged file.")
    ] = False,
    begin: FromOption = 0.0,
    end: ToOption = None,
    lm: LmOption = None,
) -> None:
    """Decode a file to 16-bit audio; the suffix of the output names its format.

    --start is for .ecdc; an .encodec file says how it was started.
    """
    from encodec_rt.audio import AudioWriter, check_target_format
    from encodec_rt.bitstream.ecdc import EcdcReader, read_header
    from encodec_rt.lm.paper import PaperDecoder
    from encodec_rt.transcode import decode_blocks

    policy = check_start(start)
    check_target_format(target, force=force)
    with ExitStack() as stack:
        head, file = look_at(stack.enter_context(open_input(source)))
        if head == b"OggS":
            decode_container(file, target, model, device, backend, force, salvage, begin, end, lm)
            return
        if begin or end is not None:
            raise ConfigError("--from and --to are for .encodec files, and this is none")
        header = read_header(file)
        codec = load_codec(model, device, backend)
        check_model(header.model, codec)
        config = codec.config
        decoder = None
        if lm is not None and header.language_model:
            decoder = PaperDecoder(load_paper_lm(lm, config))
        blocks = EcdcReader(file, header, config, salvage=salvage, decoder=decoder)
        writer = AudioWriter(
            target,
            rate_hz=config.sampling_rate,
            channels=config.audio_channels,
            force=force,
            samples=header.samples,
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


def decode_container(
    file: BinaryIO,
    target: str,
    model: str,
    device: str,
    backend: str,
    force: bool,
    salvage: bool,
    begin: float,
    end: float | None,
    lm: Path | None,
) -> None:
    """Decode an .encodec file."""
    from encodec_rt.audio import AudioWriter
    from encodec_rt.container_audio import ContainerAudio

    codec = load_codec(model, device, backend)
    config = codec.config
    sound = ContainerAudio(
        codec, file, begin_s=begin, end_s=end, salvage=salvage, folder=model_folder(model), lm=lm
    )
    writer = AudioWriter(
        target, rate_hz=config.sampling_rate, channels=config.audio_channels, force=force
    )
    total_s = None if end is None else end - begin
    audio = Meter(sound, label="decoding", rate_hz=config.sampling_rate, total_s=total_s)
    with writer:
        for pcm in audio:
            writer.write(pcm)
    say(audio.summary())
    warn_of_clipping(writer.clipped, writer.samples)
    warn_of_damage(sound, config.sampling_rate)


def warn_of_damage(sound: ContainerAudio, rate_hz: int) -> None:
    """Say what was passed over of a stream, and whether it had an end."""
    for problem in sound.reader.problems:
        say(f"warning: {problem}")
    if sound.lost:
        say(f"warning: {sound.lost / rate_hz:.2f} s were lost, and concealed or silent")
    if sound.unfinished:
        say("warning: the stream has no end mark; its writer was stopped, or it was cut off")
