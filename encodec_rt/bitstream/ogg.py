"""Ogg pages (RFC 3533): reading with resynchronisation, writing without seeking.

Only the framing: ``container`` interprets the packets. Memory is bounded by a few pages, whatever
the bytes claim.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from encodec_rt.errors import InputError, PacketError

CAPTURE = b"OggS"
NO_GRANULE = -1
"""The granule position of a page on which no packet ends."""
MAX_SEGMENTS = 255
MAX_GRANULE = 2**63 - 1

_HEADER = struct.Struct("<4sBBqIIIB")
_CONTINUED, _FIRST, _LAST = 1, 2, 4
_CHECKSUM_AT = 22
_READ_BYTES = 1 << 16
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class ByteSink(Protocol):
    """What pages are written to."""

    def write(self, data: bytes, /) -> object:
        """Take ``data`` whole."""


def checksum(data: bytes) -> int:
    """The CRC-32 of an Ogg page: polynomial 0x04c11db7, most significant bit first, from zero.

    zlib's has the same polynomial with all bit orders reversed, and inverts the start and end
    values.
    """
    found = zlib.crc32(data.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{found:032b}"[::-1], 2)


@dataclass(frozen=True, slots=True)
class Page:
    """One page. ``offset`` is its place in the file, ``intact`` whether its checksum is right.

    If the file ends within it, it is ``cut``: it has the packets before that, and no position.
    """

    serial: int
    sequence: int
    granule: int
    segments: bytes
    body: bytes
    continued: bool = False
    first: bool = False
    last: bool = False
    intact: bool = True
    cut: bool = False
    offset: int = 0

    def to_bytes(self) -> bytes:
        """The page's bytes, with its checksum."""
        flags = _CONTINUED * self.continued | _FIRST * self.first | _LAST * self.last
        fields = (CAPTURE, 0, flags, self.granule, self.serial, self.sequence, 0)
        data = bytearray(_HEADER.pack(*fields, len(self.segments)) + self.segments + self.body)
        struct.pack_into("<I", data, _CHECKSUM_AT, checksum(bytes(data)))
        return bytes(data)

    def pieces(self) -> list[tuple[bytes, bool]]:
        """The packets, or parts of packets, on this page; the flag says whether one ends here."""
        pieces, start, size = [], 0, 0
        for segment in self.segments:
            size += segment
            if segment < 255:
                pieces.append((self.body[start : start + size], True))
                start, size = start + size, 0
        if self.segments and self.segments[-1] == 255:
            pieces.append((self.body[start:], False))
        return pieces


@dataclass(frozen=True, slots=True)
class Junk:
    """``size`` bytes at ``offset`` that are not a page, and why."""

    offset: int
    size: int
    reason: str


class PageReader:
    """Iterates over the pages of a file, which may be a pipe.

    With ``salvage`` damage does not end the iteration: a page whose checksum is wrong comes with
    ``intact`` false where the next one follows it at once, the packets before the file's end come
    as a page that is ``cut``, and bytes that are not a page come as Junk. Without, all of this
    raises PacketError.
    """

    def __init__(self, file: BinaryIO, *, salvage: bool = False) -> None:
        self._file = file
        self._salvage = salvage
        self._held = bytearray()
        self._offset = 0
        self._ended = False

    def __iter__(self) -> Iterator[Page | Junk]:
        """The pages in order."""
        while self._fill(1):
            page = self._page()
            if isinstance(page, Junk):
                yield self._skip(page.reason)
            else:
                yield page

    def _page(self) -> Page | Junk:
        """The next page, consumed; or why there is none, with nothing consumed."""
        if not self._fill(_HEADER.size):
            return self._junk("the file ends within a page")
        fields = _HEADER.unpack_from(self._held)
        capture, version, flags, granule, serial, sequence, _, count = fields
        if capture != CAPTURE or version != 0:
            what = ", but the beginning of an .ecdc file" if capture == b"ECDC" else ""
            return self._junk(f"bytes that are not an Ogg page{what}")
        if not self._fill(_HEADER.size + count):
            return self._junk("the file ends within a page")
        segments = bytes(self._held[_HEADER.size : _HEADER.size + count])
        begin = _HEADER.size + count
        size = begin + sum(segments)
        cut = not self._fill(size)
        if cut:
            segments = self._whole(segments, begin)
            if not segments:
                return self._junk("the file ends within a page")
            granule, flags, size = NO_GRANULE, flags & ~_LAST, begin + sum(segments)
        data = bytes(self._held[:size])
        intact = not cut and _is_intact(data)
        if not intact and not cut and not (self._salvage and self._followed(size)):
            return self._junk("a page with a wrong checksum")
        page = Page(
            serial=serial,
            sequence=sequence,
            granule=granule,
            segments=segments,
            body=data[begin:],
            continued=bool(flags & _CONTINUED),
            first=bool(flags & _FIRST),
            last=bool(flags & _LAST),
            intact=intact,
            cut=cut,
            offset=self._offset,
        )
        self._drop(len(self._held) if cut else size)
        return page

    def _whole(self, segments: bytes, begin: int) -> bytes:
        """The segments of the complete packets of a page in which the file ends.

        None without ``salvage``, or if another page follows: then the lengths are damaged.
        """
        if not self._salvage or self._held.find(CAPTURE, 1) >= 0:
            return b""
        ends, size = 0, begin
        for index, segment in enumerate(segments):
            size += segment
            if size > len(self._held):
                break
            ends = index + 1 if segment < 255 else ends
        return segments[:ends]

    def _followed(self, size: int) -> bool:
        """Whether a page follows after ``size`` bytes, or the end: then the lengths are right."""
        if not self._fill(size + len(CAPTURE)):
            return len(self._held) == size
        return self._held[size : size + len(CAPTURE)] == CAPTURE

    def _skip(self, reason: str) -> Junk:
        """Skip everything up to the next capture pattern."""
        offset = self._offset
        self._drop(1)
        while self._fill(len(CAPTURE)):
            found = self._held.find(CAPTURE)
            if found >= 0:
                self._drop(found)
                return Junk(offset, self._offset - offset, reason)
            self._drop(len(self._held) - len(CAPTURE) + 1)
        self._drop(len(self._held))
        return Junk(offset, self._offset - offset, reason)

    def _junk(self, reason: str) -> Junk:
        if not self._salvage:
            if not self._offset:
                raise PacketError(f"{reason}, at the start of the file")
            remedy = "encodec-rt decode --salvage decodes what is whole"
            raise PacketError(f"{reason}, at byte {self._offset}; {remedy}")
        return Junk(self._offset, 0, reason)

    def _fill(self, size: int) -> bool:
        """Whether ``size`` bytes could be buffered."""
        while len(self._held) < size and not self._ended:
            piece = self._file.read(_READ_BYTES)
            self._ended = not piece
            self._held += piece
        return len(self._held) >= size

    def _drop(self, size: int) -> None:
        del self._held[:size]
        self._offset += size


class PageWriter:
    """Lays out packets on pages and writes each page in one call, without seeking."""

    def __init__(self, file: ByteSink, serial: int) -> None:
        self._file = file
        self._serial = serial
        self._sequence = 0
        self._segments = bytearray()
        self._body = bytearray()
        self._granule = NO_GRANULE
        self._continued = False
        self.bytes_written = 0

    def add(self, packet: bytes, granule: int) -> None:
        """Append ``packet``, at whose end the stream's position is ``granule``.

        A packet that fits on one page is not split. Raises InputError for a position that Ogg
        cannot express.
        """
        if not 0 <= granule <= MAX_GRANULE:
            raise InputError(f"granule position {granule}; Ogg has 0 to 2^63 - 1")
        lacing = b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
        if len(self._segments) + len(lacing) > MAX_SEGMENTS and self._segments:
            self.flush()
        while len(lacing) > MAX_SEGMENTS:
            self._segments += lacing[:MAX_SEGMENTS]
            self._body += packet[: 255 * MAX_SEGMENTS]
            lacing, packet = lacing[MAX_SEGMENTS:], packet[255 * MAX_SEGMENTS :]
            self.flush()
            self._continued = True
        self._segments += lacing
        self._body += packet
        self._granule = granule

    def flush(self, *, last: bool = False) -> None:
        """Write what was added as one page, the ``last`` one of the stream or not."""
        if not self._segments:
            assert not last, "the last page has a packet, even if an empty one"
            return
        page = Page(
            self._serial,
            self._sequence & 0xFFFFFFFF,
            self._granule,
            bytes(self._segments),
            bytes(self._body),
            continued=self._continued,
            first=self._sequence == 0,
            last=last,
        ).to_bytes()
        self._file.write(page)
        self.bytes_written += len(page)
        self._sequence += 1
        self._segments.clear()
        self._body.clear()
        self._granule = NO_GRANULE
        self._continued = False


def _is_intact(data: bytes) -> bool:
    found = int.from_bytes(data[_CHECKSUM_AT : _CHECKSUM_AT + 4], "little")
    cleared = data[:_CHECKSUM_AT] + b"\0\0\0\0" + data[_CHECKSUM_AT + 4 :]
    return checksum(cleared) == found
