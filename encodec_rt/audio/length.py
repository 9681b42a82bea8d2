"""Where the audio of an MP3 or Ogg stream ends within its last packets, and whether it got there.

FFmpeg finds this out by seeking to the end, which is impossible in a pipe; a header at the start
says it too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from encodec_rt.audio.source import ByteSource
from encodec_rt.types import Audio

_MAX_ID3_BYTES = 1 << 23
_MAX_OGG_BYTES = 1 << 17
_VORBIS_BLOCK = 8192
TAIL_BYTES = 27 + 255 + 255 * 255
"""The longest page of Ogg."""


@dataclass(frozen=True, slots=True)
class Length:
    """``samples`` of audio, followed by at most ``padding`` samples of padding.

    ``replaces_skip`` is set where FFmpeg's own idea of the end is wrong and must not be applied.
    """

    samples: int
    padding: int
    replaces_skip: bool = False


def true_length(source: ByteSource) -> Length | None:
    """What the start of ``source`` says, if it is MP3 with LAME's tag or one page of Vorbis."""
    head = source.peek(10)
    if head[:4] == b"OggS":
        return _ogg_length(source.peek(_MAX_OGG_BYTES + 1))
    start = 0
    if head[:3] == b"ID3" and len(head) == 10:
        a, b, c, d = head[6:10]
        start = 10 + (a << 21 | b << 14 | c << 7 | d)
        if start > _MAX_ID3_BYTES:
            return None
    return _lame_length(source.peek(start + 512)[start:])


def trimmed(pieces: Iterator[tuple[int, Audio]], length: Length) -> Iterator[tuple[int, Audio]]:
    """``pieces`` without the padding after ``length``.

    If more than padding follows, another stream was appended, and all of it is audio.
    """
    samples = 0
    held: list[tuple[int, Audio]] = []
    for rate_hz, audio in pieces:
        samples += audio.shape[1]
        if held or samples > length.samples:
            held.append((rate_hz, audio))
        else:
            yield rate_hz, audio
        if samples > length.samples + length.padding:
            yield from held
            yield from pieces
            return
    excess = max(0, samples - length.samples)
    rest = sum(audio.shape[1] for _, audio in held) - excess
    for rate_hz, audio in held:
        yield rate_hz, np.ascontiguousarray(audio[:, : max(0, rest)])
        rest -= audio.shape[1]


def ogg_end(tail: bytes) -> int | None:
    """The granule position at which an Ogg stream that ends with ``tail`` ends.

    None if its last page is cut, damaged, or not marked as the last of its stream.
    """
    at = tail.rfind(b"OggS")
    if at < 0 or at + 27 > len(tail):
        return None
    segments = tail[at + 26]
    end = at + 27 + segments + sum(tail[at + 27 : at + 27 + segments])
    if end > len(tail) or not tail[at + 5] & 4:
        return None
    granule, checksum = struct.unpack_from("<q8xI", tail, at + 6)
    if _ogg_checksum(tail[at : at + 22] + bytes(4) + tail[at + 26 : end]) != checksum:
        return None
    return int(granule)


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 of RFC 3533: polynomial 04c11db7, from the highest bit, from 0, not inverted."""
    crc = 0
    for byte in page:
        crc = (crc << 8 & 0xFFFFFFFF) ^ _CRC_TABLE[crc >> 24 ^ byte]
    return crc


def _crc_entry(value: int) -> int:
    value <<= 24
    for _ in range(8):
        value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return value


_CRC_TABLE = tuple(map(_crc_entry, range(256)))


def _lame_length(frame: bytes) -> Length | None:
    """The Xing header's number of frames and LAME's padding (gabriel.mp3-tech.org/mp3infotag)."""
    if len(frame) < 192 or frame[0] != 0xFF or frame[1] & 0xE6 != 0xE2:
        return None
    is_mpeg1, mono = frame[1] & 0x18 == 0x18, frame[3] >> 6 == 3
    at = 4 + ((17 if mono else 32) if is_mpeg1 else (9 if mono else 17))
    if frame[at : at + 4] not in (b"Xing", b"Info"):
        return None
    flags = struct.unpack_from(">I", frame, at + 4)[0]
    if not flags & 1:
        return None
    frames = struct.unpack_from(">I", frame, at + 8)[0]
    lame = at + 12 + 4 * bool(flags & 2) + 100 * bool(flags & 4) + 4 * bool(flags & 8)
    if frame[lame : lame + 4] not in (b"LAME", b"Lavf", b"Lavc") or len(frame) < lame + 24:
        return None
    delays = int.from_bytes(frame[lame + 21 : lame + 24], "big")
    delay, padding = delays >> 12, delays & 4095
    samples = frames * (1152 if is_mpeg1 else 576) - delay - padding
    return Length(samples, padding) if samples > 0 else None


def _ogg_length(data: bytes) -> Length | None:
    """The granule position of the only page with samples (Vorbis I, A.2); for Vorbis alone.

    FFmpeg needs two such pages to know where one ends, and is off by up to a block otherwise.
    """
    if len(data) > _MAX_OGG_BYTES or b"\x01vorbis" not in data[:64]:
        return None
    granules = []
    at = 0
    while data[at : at + 4] == b"OggS" and at + 27 <= len(data):
        granule = struct.unpack_from("<q", data, at + 6)[0]
        is_last = bool(data[at + 5] & 4)
        if granule > 0:
            granules.append((granule, is_last))
        segments = data[at + 26]
        at += 27 + segments + sum(data[at + 27 : at + 27 + segments])
    if len(granules) == 1 and granules[0][1]:
        return Length(granules[0][0], _VORBIS_BLOCK, replaces_skip=True)
    return None
