"""What a call hears and says: a microphone or a file, a speaker or a recording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from encodec_rt.cli.console import detail, device_choice

if TYPE_CHECKING:
    from encodec_rt.cli.link_options import LinkOptions
    from encodec_rt.link.device_pair import DevicePair
    from encodec_rt.streaming.codec import Codec
    from encodec_rt.voice.transport import CallSink, CallSource


@dataclass(frozen=True)
class CallEndpoints:
    """A call's audio source and sink, and its devices."""

    source: CallSource
    sink: CallSink
    devices: DevicePair | None


def rehearse(codec: Codec, link: LinkOptions, *, force: bool) -> None:
    """Open what a call needs, and close it again, so that errors are raised now.

    Raises AudioDeviceError, InputError and ConfigError.
    """
    endpoints = open_endpoints(codec, link, link.record, on_event=detail, force=force)
    endpoints.source.close()
    endpoints.sink.close()


def open_endpoints(
    codec: Codec,
    link: LinkOptions,
    record: Path | None,
    *,
    on_event: Callable[[str], None],
    force: bool,
) -> CallEndpoints:
    """The microphone or ``--play``, and the speaker or ``record``; on an error none stays open."""
    from encodec_rt.link.endpoints import FileSink, FileSource

    config = codec.config
    source: CallSource | None = FileSource(link.play, config) if link.play is not None else None
    devices = sink = None
    try:
        if source is None or record is None:
            devices = _open_devices(codec, link, speaker=record is None, on_event=on_event)
        if record is not None:
            sink = FileSink(record, config, force=force)
    except BaseException:
        for opened in (source, devices):
            if opened is not None:
                opened.close()
        raise
    if devices is not None:
        return CallEndpoints(source or devices.source, sink or devices.sink, devices)
    assert source is not None
    assert sink is not None
    return CallEndpoints(source, sink, None)


def _open_devices(
    codec: Codec, link: LinkOptions, *, speaker: bool, on_event: Callable[[str], None]
) -> DevicePair:
    from encodec_rt.link.device_pair import DevicePair
    from encodec_rt.sound.portaudio import PortAudio
    from encodec_rt.sound.processing import BLOCKS_PER_S
    from encodec_rt.sound.streams import BLOCK_S

    rate_hz = codec.config.sampling_rate
    voice = link.voice(rate_hz)
    system = PortAudio(
        rate_hz,
        source=device_choice(link.source),
        sink=device_choice(link.sink),
        block_s=BLOCK_S if voice is None else 1 / BLOCKS_PER_S,
    )
    return DevicePair(
        system,
        codec.config,
        microphone=link.play is None,
        speaker=speaker,
        voice=voice,
        buffer_ms=link.buffer_ms,
        on_event=on_event,
    )
