"""Audio to a file named by its suffix, to a pipe, or to a device."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from encodec_rt.arrays import check_audio
from encodec_rt.atomic import check_target, is_stream, replacing, standard_output
from encodec_rt.audio.pcm import RAW_OUTPUT_FORMATS, RawFormat
from encodec_rt.audio.sinks import OutputFormat, RawSink, SndfileSink, WavSink
from encodec_rt.audio.source import PIPE
from encodec_rt.errors import InputError
from encodec_rt.types import Audio

OUTPUT_FORMATS = {
    ".wav": OutputFormat("WAV"),
    ".flac": OutputFormat("FLAC"),
    ".ogg": OutputFormat("OGG", "VORBIS"),
    ".opus": OutputFormat("OGG", "OPUS"),
    ".mp3": OutputFormat("MP3", "MPEG_LAYER_III"),
    ".aif": OutputFormat("AIFF", max_bytes=2**31 - 2**12),
    ".aiff": OutputFormat("AIFF", max_bytes=2**31 - 2**12),
    ".au": OutputFormat("AU", max_bytes=2**31 - 2**12),
    ".caf": OutputFormat("CAF"),
    ".w64": OutputFormat("W64"),
}
_WAV = OUTPUT_FORMATS[".wav"]
MAX_CHANNELS = 1024
KEPT_TAGS = ("title", "artist", "album", "comment", "date", "genre", "copyright", "tracknumber")


class AudioWriter:
    """Writes audio to a file named by its suffix, or WAV to standard output for "-".

    Formats without lossy compression have 16 bits. The file appears under its name only if the
    ``with`` block succeeds and what was written could be read back. ``clipped`` counts samples
    beyond full scale; ``samples`` is the length to come, if known, which the header of a pipe
    needs. ``raw`` writes samples without a header.
    """

    def __init__(
        self,
        target: str | Path,
        *,
        rate_hz: int,
        channels: int,
        force: bool = False,
        samples: int | None = None,
        raw: RawFormat | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        self.clipped = 0
        self.samples = 0
        self._target = str(target)
        self._channels = channels
        self._force = force
        if not (1 <= rate_hz < 2**31 and 1 <= channels <= MAX_CHANNELS):
            raise InputError(f"{target}: {rate_hz} Hz and {channels} channels cannot be written")
        self._stack = ExitStack()
        form = check_target_format(target, force=force, raw=raw)
        known = {name.lower(): text for name, text in (tags or {}).items()}
        kept = {name: known[name] for name in KEPT_TAGS if known.get(name)}
        self._sink: RawSink | WavSink | SndfileSink
        if raw is not None:
            self._sink = RawSink(RAW_OUTPUT_FORMATS[raw.name])
        elif form == _WAV:
            self._sink = WavSink(rate_hz, channels, samples, kept)
        else:
            self._sink = SndfileSink(form, rate_hz, channels, kept)
            self._sink.check(self._target)

    def __enter__(self) -> AudioWriter:
        """Self, ready to be written to."""
        with ExitStack() as opening:
            if self._target == PIPE:
                file, name = standard_output(), "standard output"
            else:
                path = opening.enter_context(replacing(self._target, force=self._force))
                name = self._target
                # A named pipe may be opened for writing only.
                mode = "wb" if is_stream(path) else "w+b"
                file = cast("BinaryIO", opening.enter_context(path.open(mode, buffering=0)))
            can_seek = self._target != PIPE and not is_stream(self._target)
            self._sink.begin(file, name, can_seek=can_seek, stack=opening)
            opening.push(self._finish)
            self._stack = opening.pop_all()
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        """Finish the file, or drop it if the block ended with an exception."""
        return self._stack.__exit__(*exception)

    def write(self, block: Audio) -> None:
        """Append ``block`` [channels, n], clipped to full scale.

        Raises InputError for another shape or type, and for samples that are not finite.
        """
        block = check_audio(block, self._channels)
        self.clipped += int((np.abs(block) > 1.0).sum())
        self.samples += block.shape[1]
        if block.shape[1]:
            self._sink.write(block)

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        self._sink.end(complete=kind is None, samples=self.samples)


def check_target_format(
    target: str | Path, *, force: bool, raw: RawFormat | None = None
) -> OutputFormat:
    """The format that the suffix of ``target`` names; WAV for "-" and for devices.

    Raises InputError for another suffix, and if nothing may be written there.
    """
    if raw is not None and raw.name not in RAW_OUTPUT_FORMATS:
        accepted = ", ".join(RAW_OUTPUT_FORMATS)
        raise InputError(f"raw format {raw.name!r} cannot be written; use {accepted}")
    if str(target) == PIPE:
        _ = standard_output()
        return _WAV
    suffix = Path(target).suffix.lower()
    if suffix not in OUTPUT_FORMATS and raw is None and not is_stream(target):
        accepted = ", ".join(OUTPUT_FORMATS)
        raise InputError(f"{target}: {suffix!r} does not name an audio format; use {accepted}")
    check_target(target, force=force)
    return OUTPUT_FORMATS.get(suffix, _WAV)
