"""encodec-rt play: a coded file to the speaker."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from encodec_rt.cli.console import (
    Meter,
    check_model,
    device_choice,
    load_codec,
    load_paper_lm,
    look_at,
    model_folder,
    open_input,
    report,
)
from encodec_rt.cli.decode import warn_of_damage
from encodec_rt.cli.file_options import FromOption, ToOption, about, between
from encodec_rt.cli.options import BackendOption, DeviceOption, LmOption, ModelOption, OutputOption

if TYPE_CHECKING:
    from encodec_rt.container_audio import ContainerAudio
    from encodec_rt.types import Audio


def play(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="The .encodec or .ecdc file, or '-'.")
    ],
    model: ModelOption = "default",
    device: DeviceOption = "cpu",
    backend: BackendOption = "auto",
    sink: OutputOption = None,
    begin: FromOption = 0.0,
    end: ToOption = None,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Play the intact parts of a damaged file.")
    ] = False,
    lm: LmOption = None,
) -> None:
    """Play a file of codes."""
    from encodec_rt.bitstream.ecdc import EcdcReader, read_header
    from encodec_rt.container_audio import ContainerAudio
    from encodec_rt.lm.paper import PaperDecoder
    from encodec_rt.sound.playback import play_blocks
    from encodec_rt.sound.portaudio import PortAudio
    from encodec_rt.transcode import decode_blocks

    sound: ContainerAudio | None = None
    with ExitStack() as stack:
        stack.enter_context(about(source))
        head, file = look_at(stack.enter_context(open_input(source)))
        codec = load_codec(model, device, backend)
        blocks: Iterable[Audio]
        if head == b"OggS":
            blocks = sound = ContainerAudio(
                codec,
                file,
                begin_s=begin,
                end_s=end,
                salvage=salvage,
                folder=model_folder(model),
                lm=lm,
            )
        else:
            header = read_header(file)
            check_model(header.model, codec)
            decoder = None
            if lm is not None and header.language_model:
                decoder = PaperDecoder(load_paper_lm(lm, codec.config))
            reader = EcdcReader(file, header, codec.config, salvage=salvage, decoder=decoder)
            heard = decode_blocks(codec, reader, codebooks=header.codebooks)
            blocks = between(heard, codec.config.sampling_rate, begin, end)
        rate_hz = codec.config.sampling_rate
        audio = Meter(blocks, label="playing", rate_hz=rate_hz, total_s=None)
        system = PortAudio(rate_hz, sink=device_choice(sink))
        play_blocks(system, audio, rate_hz)
    report(f"{audio.seconds:.2f} s played")
    if sound is not None:
        warn_of_damage(sound, rate_hz)
