"""encodec-rt decode: an .encodec or .ecdc file to audio."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from encodec_rt.cli.batch import Naming, several
from encodec_rt.cli.console import (
    Meter,
    check_model,
    check_start,
    detail,
    load_codec,
    load_paper_lm,
    look_at,
    model_folder,
    open_input,
    report,
    say,
    warn_of_clipping,
)
from encodec_rt.cli.container_info import container_samples
from encodec_rt.cli.file_options import FromOption, ToOption, between
from encodec_rt.cli.options import (
    BackendOption,
    DeviceOption,
    ForceOption,
    LmOption,
    ModelOption,
    StartOption,
)
from encodec_rt.errors import PacketError
from encodec_rt.pcm import sample_at
from encodec_rt.suffixes import AUDIO_SUFFIXES

if TYPE_CHECKING:
    from encodec_rt.audio import RawFormat
    from encodec_rt.container_audio import ContainerAudio

NAMING = Naming(".wav", frozenset({".encodec", ".ecdc"}), AUDIO_SUFFIXES)


def decode_file(
    source: str,
    target: str,
    model: ModelOption = "default",
    device: DeviceOption = "cpu",
    backend: BackendOption = "auto",
    start: StartOption = "exact",
    force: ForceOption = False,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Decode the intact parts of a damaged file.")
    ] = False,
    begin: FromOption = 0.0,
    end: ToOption = None,
    lm: LmOption = None,
    raw: Annotated[
        str | None,
        typer.Option(
            "--raw", help="Write samples without a header: s16le, f32le, ...", metavar="PCM"
        ),
    ] = None,
) -> None:
    """Decode a file of codes to 16-bit audio.

    The suffix of the output chooses its format. --start applies to .ecdc only; an .encodec file
    records how it was started.
    """
    from encodec_rt.audio import AudioWriter, RawFormat, check_target_format
    from encodec_rt.bitstream.ecdc import EcdcReader, read_header
    from encodec_rt.lm.paper import PaperDecoder
    from encodec_rt.transcode import decode_blocks

    policy = check_start(start)
    bare = None if raw is None else RawFormat(raw, 0, 0)
    check_target_format(target, force=force, raw=bare)
    with ExitStack() as stack:
        head, file = look_at(stack.enter_context(open_input(source)))
        if head == b"OggS":
            known = container_samples(Path(source)) if Path(source).is_file() else None
            decode_container(
                file, target, known, model, device, backend, force, salvage, begin, end, lm, bare
            )
            return
        header = read_header(file)
        codec = load_codec(model, device, backend)
        check_model(header.model, codec)
        config, rate = codec.config, codec.config.sampling_rate
        decoder = None
        if lm is not None and header.language_model:
            decoder = PaperDecoder(load_paper_lm(lm, config))
        blocks = EcdcReader(file, header, config, salvage=salvage, decoder=decoder)
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
    if blocks.continued:
        say("warning: more bytes follow after the stream; they were left out")


def decode_container(
    file: BinaryIO,
    target: str,
    samples: int | None,
    model: str,
    device: str,
    backend: str,
    force: bool,
    salvage: bool,
    begin: float,
    end: float | None,
    lm: Path | None,
    raw: RawFormat | None,
) -> None:
    """Decode an .encodec file, of ``samples`` if that is known."""
    from encodec_rt.audio import AudioWriter
    from encodec_rt.container_audio import ContainerAudio

    codec = load_codec(model, device, backend)
    config = codec.config
    sound = ContainerAudio(
        codec, file, begin_s=begin, end_s=end, salvage=salvage, folder=model_folder(model), lm=lm
    )
    rate = config.sampling_rate
    writer = AudioWriter(
        target,
        rate_hz=rate,
        channels=config.audio_channels,
        force=force,
        samples=None if samples is None else _samples_between(samples, rate, begin, end),
        raw=raw,
        tags=dict(sound.reader.comments.fields),
    )
    total_s = None if end is None else end - begin
    audio = Meter(sound, label="decoding", rate_hz=config.sampling_rate, total_s=total_s)
    with writer:
        for pcm in audio:
            writer.write(pcm)
        if sound.reader.problems and not audio.samples:
            reason = sound.reader.problems[0]
            raise PacketError(f"{reason}, and no part of the stream is intact before or after it")
    report(audio.summary())
    warn_of_clipping(writer.clipped, writer.samples)
    warn_of_damage(sound, config.sampling_rate)


def warn_of_damage(sound: ContainerAudio, rate_hz: int) -> None:
    """Say what was passed over of a stream, and whether it had an end."""
    for problem in sound.reader.problems:
        say(f"warning: {problem}")
    if sound.lost:
        say(f"warning: {sound.lost / rate_hz:.2f} s were lost, and are concealed or silent")
    if sound.unfinished:
        say("warning: the stream has no end mark; its writer was stopped, or it was cut off")


def _samples_between(samples: int, rate_hz: int, begin_s: float, end_s: float | None) -> int:
    last = samples if end_s is None else min(samples, sample_at(end_s, rate_hz))
    return max(0, last - sample_at(begin_s, rate_hz))


decode = several(NAMING)(decode_file)
