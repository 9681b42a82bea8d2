"""Decoders for uncompressed samples (WAV and raw PCM), and for what is left to libsndfile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from encodec_rt.audio.damage import Damage
from encodec_rt.audio.pcm import RAW_FORMATS, RawFormat, read_pcm
from encodec_rt.audio.source import ByteSource
from encodec_rt.audio.wav import WavHeader, more_follows, next_wav_header, read_wav_header
from encodec_rt.errors import InputError
from encodec_rt.types import Audio

Pieces = Iterator[tuple[int, Audio]]
"""(rate in Hz, float32 [channels, n]); rate and channels may change from one to the next."""

_BLOCK_FRAMES = 1 << 14
# FFmpeg does not read these, or not correctly; libsndfile does.
_SNDFILE_MAGIC = (b"caff", b"ALawSoundFile**", b"2BIT", b"Extended Instrument: ", b"\xf0\x7e")
_AU_G72X = (23, 25, 26)
_WAV_G72X = (0x38, 0x40)


@dataclass
class Decoded:
    """A source as a decoder opened it. ``announced_s`` is what a header claims, if any does."""

    pieces: Pieces
    description: str
    rate_hz: int
    channels: int
    announced_s: float | None = None
    tags: dict[str, str] = field(default_factory=dict)


def open_raw(source: ByteSource, raw: RawFormat) -> Decoded:
    """Samples without a header. Raises InputError for a format that is not one of RAW_FORMATS."""
    form = RAW_FORMATS.get(raw.name)
    if form is None:
        raise InputError(f"raw format {raw.name!r}; accepted: {', '.join(RAW_FORMATS)}")
    pieces = ((raw.rate_hz, block) for block in read_pcm(source, form, raw.channels, None))
    return Decoded(pieces, f"raw, {form.description}", raw.rate_hz, raw.channels)


def open_wav(source: ByteSource, damage: Damage) -> Decoded | None:
    """WAV with uncompressed samples, or None."""
    header = read_wav_header(source)
    if header is None:
        return None
    return Decoded(
        _wav_pieces(source, header, damage),
        f"WAV, {header.form.description}",
        header.rate_hz,
        header.channels,
        header.seconds,
        header.tags,
    )


def _wav_pieces(source: ByteSource, first: WavHeader, damage: Damage) -> Pieces:
    """The samples after ``first``, and those of WAV files appended to it."""
    header: WavHeader | None = first
    while header is not None:
        if header.unfinished:
            damage.remark("was never finished: its header has no length; read to its end")
        samples = 0
        for block in read_pcm(source, header.form, header.channels, header.data_bytes):
            samples += block.shape[1]
            yield header.rate_hz, block
        announced_s, seconds = header.seconds, samples / header.rate_hz
        if announced_s is not None and announced_s - seconds > 0.5 / header.rate_hz:
            damage.remark(f"ends after {seconds:.2f} s; its header announces {announced_s:.2f} s")
        elif header.data_bytes is not None and more_follows(source):
            damage.remark("continues beyond the length in its header; the rest was left out")
        header = next_wav_header(source)


def wants_libsndfile(source: ByteSource) -> bool:
    """Whether ``source`` begins like a format that FFmpeg does not read well."""
    head = source.peek(64)
    if head.startswith(b".snd") and int.from_bytes(head[12:16], "big") in _AU_G72X:
        return True
    is_wav = head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt "
    if is_wav and int.from_bytes(head[20:22], "little") in _WAV_G72X:
        return True
    return head.startswith(_SNDFILE_MAGIC)


def open_sndfile(source: ByteSource, damage: Damage, stack: ExitStack) -> Decoded | None:
    """What libsndfile reads, or None."""
    import soundfile

    head = source.peek(3)
    if head == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        # What FFmpeg did not read as MP3 is not, and mpg123 would talk to standard error.
        return None
    try:
        file = stack.enter_context(soundfile.SoundFile(_Calm(source.seekable())))
    except (soundfile.LibsndfileError, TypeError):
        return None

    def pieces() -> Pieces:
        while True:
            try:
                block = file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                damage.gap(str(error))
                return
            if not len(block):
                return
            yield file.samplerate, np.ascontiguousarray(block.T)

    known = 0 <= file.frames < 2**62
    description = f"{file.format_info}, {file.subtype_info}"
    announced_s = file.frames / file.samplerate if known else None
    return Decoded(pieces(), description, file.samplerate, file.channels, announced_s)


class _Calm:
    """A file for libsndfile, which may seek to positions that a damaged header made up."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.tell, self._seek = file.read, file.tell, file.seek

    def seek(self, offset: int, whence: int = 0) -> int:
        with suppress(OSError, ValueError):
            return self._seek(offset, whence)
        return self.tell()

    def write(self, data: bytes) -> int:
        return 0
