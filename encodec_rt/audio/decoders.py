"""What reads which kind of file: WAV and raw samples here, FFmpeg and libsndfile the others.

FFmpeg (through PyAV) reads packet by packet and does not ask a header how long a file is, so that
what is joined, cut, damaged or still unfinished gives all the audio that it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from encodec_rt.audio.damage import Damage
from encodec_rt.audio.length import trimmed, true_length
from encodec_rt.audio.pcm import RAW_FORMATS, Audio, RawFormat, read_pcm
from encodec_rt.audio.source import ByteSource
from encodec_rt.audio.wav import read_wav_header, trailing_bytes_are_lost
from encodec_rt.errors import InputError

Pieces = Iterator[tuple[int, Audio]]
"""(rate in Hz, float32 [channels, n]); rate and channels may change from one to the next."""

_BLOCK_FRAMES = 1 << 14
_MAX_FAILURES = 64
# Without a header; recognised by their name alone.
_HEADERLESS = {".g722": "g722", ".gsm": "gsm"}
# FFmpeg does not read these, or not as their makers meant; libsndfile does.
_SNDFILE_MAGIC = (b"caff", b"ALawSoundFile**", b"2BIT", b"Extended Instrument: ", b"\xf0\x7e")
_AU_G72X = (23, 25, 26)
_WAV_G72X = (0x38, 0x40)
_MAX_ANNOUNCED_S = 1e8
_OPTIONS = {
    # A playlist may not make us open other files or addresses.
    "protocol_whitelist": "none",
    "err_detect": "crccheck+explode",
}


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
        raise InputError(f"raw format {raw.name!r}; one of {', '.join(RAW_FORMATS)}")
    pieces = ((raw.rate_hz, block) for block in read_pcm(source, form, raw.channels, None))
    return Decoded(pieces, f"raw, {form.description}", raw.rate_hz, raw.channels)


def open_wav(source: ByteSource, damage: Damage) -> Decoded | None:
    """WAV whose samples are their bytes, or None."""
    header = read_wav_header(source)
    if header is None:
        return None
    frame = header.form.width * header.channels
    announced = header.data_bytes

    def pieces() -> Pieces:
        samples = 0
        if header.unfinished:
            damage.remark("was never finished, its header has no length; read to its end")
        for block in read_pcm(source, header.form, header.channels, announced):
            samples += block.shape[1]
            yield header.rate_hz, block
        if announced is not None and samples < announced // frame:
            damage.remark(
                f"ends after {samples / header.rate_hz:.2f} s; its header announces "
                f"{announced // frame / header.rate_hz:.2f} s"
            )
        elif announced is not None and trailing_bytes_are_lost(source):
            damage.remark("goes on after the length that its header announces; that was left out")

    return Decoded(
        pieces(),
        f"WAV, {header.form.description}",
        header.rate_hz,
        header.channels,
        None if announced is None else announced / frame / header.rate_hz,
        header.tags,
    )


def wants_libsndfile(source: ByteSource) -> bool:
    """Whether ``source`` begins like a kind that FFmpeg does not read well."""
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

    try:
        file = stack.enter_context(soundfile.SoundFile(source.seekable()))
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


def open_ffmpeg(source: ByteSource, damage: Damage, stack: ExitStack) -> Decoded | None:
    """What FFmpeg reads, or None. Raises InputError for a file that has no audio in it."""
    import av

    known_length = true_length(source)
    form = _HEADERLESS.get(source.suffix)
    try:
        container = stack.enter_context(
            av.open(_view(source), format=form, metadata_errors="ignore", options=dict(_OPTIONS))
        )
    except (av.FFmpegError, ValueError):
        return None
    if not container.streams.audio:
        raise InputError(f"{source.name} has no audio in it")
    stream = container.streams.audio[0]
    seconds = None
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
        # Some headers of streams announce an impossible length for one that they do not know.
        seconds = seconds if seconds < _MAX_ANNOUNCED_S else None
    pieces: Pieces = _Packets(container, stream, damage).pieces()
    if known_length is not None:
        pieces = trimmed(pieces, known_length)
    return Decoded(
        pieces,
        f"{container.format.long_name}, {stream.codec_context.codec.long_name}",
        stream.rate or 0,
        stream.channels,
        seconds,
        {**container.metadata, **stream.metadata},
    )


class _Packets:
    """Decodes one stream of a container, passing over what is damaged."""

    def __init__(self, container: Any, stream: Any, damage: Damage) -> None:
        self._container = container
        self._stream = stream
        self._damage = damage
        self._form: object = None
        self._resampler: Any = None

    def pieces(self) -> Pieces:
        import av

        for packet in self._packets():
            try:
                frames = packet.decode()
            except EOFError:
                continue
            except (av.FFmpegError, ValueError) as error:
                self._damage.gap(_reason(error), self._duration_s(packet))
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self._damage.gap("a frame is incomplete")
                yield frame.sample_rate, self._floats(frame)

    def _packets(self) -> Iterator[Any]:
        import av

        failures = 0
        while failures < _MAX_FAILURES:
            try:
                for packet in self._container.demux(self._stream):
                    failures = 0
                    yield packet
            except av.FFmpegError as error:
                failures += 1
                self._damage.gap(_reason(error))
            else:
                return

    def _floats(self, frame: Any) -> Audio:
        """float32 [channels, n] of ``frame``.

        By way of interleaved samples: PyAV counts nine planes for more than eight channels.
        """
        import av

        channels = frame.layout.nb_channels
        form = (frame.format.name, frame.sample_rate, frame.layout.name, channels)
        if form != self._form:
            self._form, self._resampler = form, av.AudioResampler(format="flt")
        parts = [
            part.to_ndarray().reshape(-1, channels) for part in self._resampler.resample(frame)
        ]
        return np.ascontiguousarray(np.concatenate(parts).T, dtype=np.float32)

    def _duration_s(self, packet: Any) -> float:
        known = packet.duration is not None and packet.time_base is not None
        return float(packet.duration * packet.time_base) if known else 0.0


class _Bytes:
    """The bytes of a source for PyAV, without a name by which it would guess a format."""

    def __init__(self, source: ByteSource) -> None:
        self.read = source.read


class _Seekable:
    """The same for the kinds that cannot be read in order."""

    def __init__(self, source: ByteSource) -> None:
        file = source.seekable()
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _view(source: ByteSource) -> _Bytes | _Seekable:
    """MP4 may have its table of contents at the end, AIFF its format after the samples."""
    head = source.peek(12)
    boxes = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
    if head[4:8] in boxes or head[:4] in (b"FORM", b"caff"):
        return _Seekable(source)
    return _Bytes(source)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
