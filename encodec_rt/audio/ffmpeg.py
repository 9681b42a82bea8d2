"""What FFmpeg reads, through PyAV, packet by packet.

It does not rely on a header for the length, so that joined, cut, damaged or unfinished files give
all the audio they hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np

from encodec_rt.audio.damage import Damage
from encodec_rt.audio.decoders import Decoded, Pieces
from encodec_rt.audio.length import TAIL_BYTES, ogg_end, trimmed, true_length
from encodec_rt.audio.source import ByteSource
from encodec_rt.errors import InputError
from encodec_rt.types import Audio

_MAX_FAILURES = 64
_MAX_ANNOUNCED_S = 1e8
# Without a header; recognised by their name alone.
_HEADERLESS = {".g722": "g722", ".gsm": "gsm"}
# FFmpeg recognises such a start only after some packets, and a short clip has too few.
_SHORT = ((b"\xff\xf1", "aac"), (b"\xff\xf9", "aac"), (b"G@", "mpegts"))
_OPTIONS = {
    # A playlist may not make us open other files or addresses.
    "protocol_whitelist": "none",
    # Pages of Ogg with a wrong checksum are left out.
    "err_detect": "crccheck",
}
# Their time stamps count samples, so that a hole in them is lost audio.
# Chained Opus leaves one of its pre-skip, 6.5 ms as a rule.
_OGG_END_S = 0.1
_HOLE_S = {"flac": 1e-3, "ogg": 1e-2}


def open_ffmpeg(source: ByteSource, damage: Damage, stack: ExitStack) -> Decoded | None:
    """What FFmpeg reads, or None. Raises InputError for a file that contains no audio."""
    import av

    length = true_length(source)
    opened = None
    for form in _formats(source):
        source.rewind()
        view = _view(source)
        with suppress(av.FFmpegError, ValueError):
            opened = av.open(view, format=form, metadata_errors="ignore", options=dict(_OPTIONS))
            break
    if opened is None:
        return None
    container = stack.enter_context(opened)
    if not container.streams.audio:
        raise InputError(f"{source.name} contains no audio")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        # A codec that FFmpeg does not know; a damaged header names one.
        return None
    if length is not None and length.replaces_skip:
        stream.codec_context.options = {"flags2": "skip_manual"}
    elif stream.codec_context.name == "flac":
        # Without this a frame with a wrong checksum is decoded to noise, and nothing says so.
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    seconds = None
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
        # Some stream headers give an impossible length if it is unknown.
        seconds = seconds if seconds < _MAX_ANNOUNCED_S else None
    pieces: Pieces = _Packets(container, stream, damage, view).pieces()
    if length is not None:
        pieces = trimmed(pieces, length)
    return Decoded(
        pieces,
        f"{container.format.long_name}, {stream.codec_context.codec.long_name}",
        stream.rate or 0,
        stream.channels,
        seconds,
        {**container.metadata, **stream.metadata},
    )


def _formats(source: ByteSource) -> list[str | None]:
    """FFmpeg's names of the formats to try; None lets it probe."""
    if source.suffix in _HEADERLESS:
        return [_HEADERLESS[source.suffix]]
    head = source.peek(2)
    return [None, *(form for magic, form in _SHORT if head == magic)]


class _Packets:
    """Decodes one stream of a container, skipping what is damaged."""

    def __init__(self, container: Any, stream: Any, damage: Damage, view: _View) -> None:
        self._container = container
        self._stream = stream
        self._damage = damage
        self._view = view
        self._hole_s = _HOLE_S.get(container.format.name)
        self._next_s: float | None = None
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
                self._look_for_hole(frame)
                # What precedes the first sample, which FFmpeg was told to leave to us.
                skipped = sum(_start_skip(data) for data in frame.side_data)
                yield frame.sample_rate, self._floats(frame)[:, skipped:]
        if self._container.format.name == "ogg":
            self._check_end()

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

    def _look_for_hole(self, frame: Any) -> None:
        if self._hole_s is None:
            return
        if frame.time is not None:
            if self._next_s is not None and frame.time - self._next_s > self._hole_s:
                self._damage.gap("samples are missing", frame.time - self._next_s)
            self._next_s = frame.time
        if self._next_s is not None:
            self._next_s += frame.samples / frame.sample_rate

    def _check_end(self) -> None:
        granule = ogg_end(self._view.tail)
        if granule is None:
            self._damage.remark("is damaged or cut off at its end")
            return
        missing_s = float(granule * self._stream.time_base) - (self._next_s or 0.0)
        if missing_s > _OGG_END_S:
            self._damage.gap("samples are missing", missing_s)

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


class _View:
    """A source for PyAV, without a name by which it would guess a format.

    Only formats that cannot be read in order may seek. ``tail`` is the end of what was read.
    """

    def __init__(self, source: ByteSource, *, seekable: bool) -> None:
        self.tail = b""
        self._file = source.seekable() if seekable else source
        if seekable:
            self.seek, self.tell = self._file.seek, self._file.tell  # type: ignore[union-attr]

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.tail = (self.tail + data)[-TAIL_BYTES:]
        return data


def _view(source: ByteSource) -> _View:
    """MP4 may have its table of contents at the end, AIFF its format after the samples."""
    head = source.peek(12)
    boxes = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
    return _View(source, seekable=head[4:8] in boxes or head[:4] in (b"FORM", b"caff"))


def _start_skip(data: Any) -> int:
    """AV_FRAME_DATA_SKIP_SAMPLES: how many to drop at the start, at the end, and why."""
    return int.from_bytes(bytes(data)[:4], "little") if data.type.name == "SKIP_SAMPLES" else 0


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
