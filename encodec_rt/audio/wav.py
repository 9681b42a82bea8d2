"""WAV headers, read and written without seeking, so that files and pipes are the same thing.

RIFF, RF64 (EBU Tech 3306) and their relatives RIFX (big-endian) and BW64. libsndfile and FFmpeg
both refuse, cut or need to seek in some streams.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from encodec_rt.audio.pcm import SampleFormat
from encodec_rt.audio.source import ByteSource

MAX_RIFF_BYTES = 2**32 - 1
"""The largest size of a RIFF chunk; 2^32 - 1 itself means "until the end"."""
HEADER_BYTES = 44
DS64_BYTES = 36

_FORMS = {b"RIFF": "<", b"RF64": "<", b"BW64": "<", b"RIFX": ">"}
_UNKNOWN = MAX_RIFF_BYTES
# SoX and others announce such a size if they do not know it.
_ANNOUNCED_UNKNOWN = 0x7FFF0000
_PCM, _FLOAT, _ALAW, _MULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
_MAX_HEADER_BYTES = 1 << 20
_FILLING_BYTES = 1 << 12
_INFO_NAMES = {
    b"INAM": "title",
    b"IART": "artist",
    b"IPRD": "album",
    b"ICMT": "comment",
    b"ICRD": "date",
    b"IGNR": "genre",
    b"ICOP": "copyright",
    b"ITRK": "tracknumber",
    b"IPRT": "tracknumber",
}


@dataclass(slots=True)
class WavHeader:
    """What precedes the samples; ``data_bytes`` is None if it is missing or unknown.

    ``unfinished`` is set if the header has no length because its writer never completed it.
    """

    form: SampleFormat
    rate_hz: int
    channels: int
    data_bytes: int | None = None
    unfinished: bool = False
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """How long the audio is, as far as the header knows."""
        if self.data_bytes is None:
            return None
        return self.data_bytes // (self.form.width * self.channels) / self.rate_hz


def read_wav_header(source: ByteSource) -> WavHeader | None:
    """The header, with ``source`` left at the first sample.

    None, and ``source`` must be rewound, if it is not WAV, or its samples are compressed.
    """
    magic = source.peek(12)
    if magic[:4] not in _FORMS or magic[8:12] != b"WAVE":
        return None
    order = _FORMS[magic[:4]]
    source.skip(12)
    header: WavHeader | None = None
    long_bytes: int | None = None
    tags: dict[str, str] = {}
    passed = 12
    while passed < _MAX_HEADER_BYTES or header is not None:
        start = source.peek(8)
        if len(start) < 8:
            break
        name, size = struct.unpack(f"{order}4sI", start)
        source.skip(8)
        if name == b"data":
            if header is None:
                return None
            header.tags = tags
            _set_length(header, source, size, long_bytes)
            return header
        body = source.peek(size) if name in (b"fmt ", b"ds64", b"LIST") and size < 1 << 16 else b""
        if name == b"fmt ":
            header = _parse_format(body, order)
            if header is None:
                return None
        elif name == b"ds64" and len(body) >= 16:
            long_bytes = struct.unpack_from("<Q", body, 8)[0]
        elif name == b"LIST" and body[:4] == b"INFO":
            tags |= _parse_info(body[4:], order)
        source.skip(size)
        # An odd chunk is followed by a zero, which some writers leave out.
        if size % 2 and source.peek(1) == b"\0":
            source.skip(1)
        passed += 8 + size
    if header is not None:
        header.data_bytes = 0
    return header


def more_follows(source: ByteSource) -> bool:
    """Whether much more follows the samples that is neither another chunk nor zeros."""
    after = source.peek(_FILLING_BYTES)
    return len(after) == _FILLING_BYTES and any(after) and not _is_chunk(after)


def next_wav_header(source: ByteSource) -> WavHeader | None:
    """The header of a WAV file appended to the last one, after its other chunks."""
    while _is_chunk(start := source.peek(12)):
        if start[:4] in _FORMS and start[8:12] == b"WAVE":
            return read_wav_header(source)
        size = struct.unpack_from("<I", start, 4)[0] if len(start) >= 8 else 0
        source.skip(8 + size + size % 2)
    return None


def wav_header(
    rate_hz: int, channels: int, data_bytes: int | None, tags: dict[str, str] | None = None
) -> bytes:
    """The header for ``data_bytes`` of 16-bit samples, or for an unknown number if None.

    It is RF64 if 32 bits are too few for the length. ``tags`` go into an INFO list.
    """
    info = _info_chunk(tags or {})
    form = struct.pack(
        "<4sIHHIIHH", b"fmt ", 16, _PCM, channels, rate_hz, rate_hz * channels * 2, channels * 2, 16
    )
    if data_bytes is None:
        riff, data, ds64 = _UNKNOWN, _UNKNOWN, b""
    else:
        riff, data = 4 + len(form) + len(info) + 8 + data_bytes, data_bytes
        ds64 = b""
        if riff >= MAX_RIFF_BYTES:
            samples = data_bytes // (2 * channels)
            ds64 = struct.pack("<4sIQQQI", b"ds64", 28, riff + DS64_BYTES, data_bytes, samples, 0)
            riff = data = _UNKNOWN
    name = b"RF64" if ds64 else b"RIFF"
    start = struct.pack("<4sI4s", name, riff, b"WAVE")
    return start + ds64 + form + info + struct.pack("<4sI", b"data", data)


def growing_wav_header(rate_hz: int, channels: int, data_bytes: int) -> bytes:
    """As ``wav_header``, but of fixed size: the space that RF64 needs is reserved.

    EBU Tech 3306, 3.5.
    """
    header = wav_header(rate_hz, channels, data_bytes)
    if header.startswith(b"RF64"):
        return header
    free = struct.pack("<4sI28x", b"JUNK", DS64_BYTES - 8)
    (riff,) = struct.unpack_from("<I", header, 4)
    return b"RIFF" + struct.pack("<I", riff + len(free)) + header[8:12] + free + header[12:]


def _parse_format(body: bytes, order: str) -> WavHeader | None:
    if len(body) < 16:
        return None
    tag, channels, rate_hz, _, align, bits = struct.unpack_from(f"{order}HHIIHH", body)
    if tag == _EXTENSIBLE and len(body) >= 40 and body[26:40] == _GUID_TAIL:
        tag = struct.unpack_from(f"{order}H", body, 24)[0]
    if not channels or not rate_hz:
        return None
    # 12 bits are in the upper part of two bytes, and so on; the block size gives the bytes.
    width = -(-bits // 8)
    if align % channels == 0 and width < align // channels <= 4 and tag == _PCM:
        width = align // channels
    big = order == ">"
    form = {
        (_PCM, 1): SampleFormat("u", 1),
        (_PCM, 2): SampleFormat("s", 2, big),
        (_PCM, 3): SampleFormat("s", 3, big),
        (_PCM, 4): SampleFormat("s", 4, big),
        (_FLOAT, 4): SampleFormat("f", 4, big),
        (_FLOAT, 8): SampleFormat("f", 8, big),
        (_ALAW, 1): SampleFormat("alaw", 1),
        (_MULAW, 1): SampleFormat("mulaw", 1),
    }.get((tag, width))
    return None if form is None else WavHeader(form, rate_hz, channels)


def _set_length(header: WavHeader, source: ByteSource, size: int, long_bytes: int | None) -> None:
    if size == _UNKNOWN and long_bytes is not None:
        size = long_bytes if long_bytes < 2**63 else 0
    if size >= _ANNOUNCED_UNKNOWN and long_bytes is None:
        header.data_bytes = None
    elif size == 0:
        after = source.peek(8)
        header.unfinished = bool(after) and not _is_chunk(after)
        header.data_bytes = None if header.unfinished else 0
    else:
        header.data_bytes = size


def _is_chunk(data: bytes) -> bool:
    """Whether ``data`` begins like another chunk: four printable characters."""
    return len(data) >= 4 and all(32 <= byte < 127 for byte in data[:4])


def _parse_info(body: bytes, order: str) -> dict[str, str]:
    tags = {}
    while len(body) >= 8:
        name, size = struct.unpack_from(f"{order}4sI", body)
        if name in _INFO_NAMES:
            text = body[8 : 8 + size].split(b"\0")[0]
            tags[_INFO_NAMES[name]] = text.decode("utf-8", "replace")
        body = body[8 + size + size % 2 :]
    return tags


def _info_chunk(tags: dict[str, str]) -> bytes:
    entries = b""
    for name, key in _INFO_NAMES.items():
        if name != b"IPRT" and (text := tags.get(key, "")):
            data = text.encode("utf-8", "replace") + b"\0"
            entries += struct.pack("<4sI", name, len(data)) + data + b"\0" * (len(data) % 2)
    return struct.pack("<4sI4s", b"LIST", 4 + len(entries), b"INFO") + entries if entries else b""
