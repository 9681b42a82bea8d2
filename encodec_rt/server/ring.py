"""Records through memory that two processes share: one writes, the other reads, neither waits.

The memory has no name: it is an open, unlinked file, passed on as a descriptor, and vanishes with
the last process that has it, however that ends. Its layout, in the machine's byte order:

| bytes | |
|---|---|
| 0 | uint64: bytes that were ever written; the writer's |
| 64 | uint64: bytes that were ever read; the reader's |
| 128 | uint64: 1 while the reader sleeps and wants to be woken |
| 192 | the records, around and around |

A record is its length (uint32), the CRC-32 of its content, and the content, filled up to 8 bytes;
it never goes around the end: what is left there is skipped, by a length of SKIP.
"""

from __future__ import annotations

import mmap
import struct
import tempfile
import threading
import zlib
from pathlib import Path

from encodec_rt.errors import PacketError

MAX_RECORD_BYTES = 128 * 1024
_WRITTEN, _READ, _ASLEEP, _CONTENT = 0, 64 // 8, 128 // 8, 192
_HEADER = struct.Struct("=II")
_SKIP = 0xFFFFFFFF
_SHARED_MEMORY = Path("/dev/shm")


def make_ring_file(capacity: int) -> int:
    """The descriptor of an unnamed ring of ``capacity`` bytes. Raises OSError."""
    folder = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
    descriptor, name = tempfile.mkstemp(prefix="encodec-rt-", dir=folder)
    Path(name).unlink()
    with open(descriptor, "wb", closefd=False) as file:
        # Written, not only extended: writing to memory that cannot be provided kills the process.
        file.write(bytes(_CONTENT + _padded(capacity)))
    return descriptor


class _Ring:
    """What both ends of a ring share."""

    def __init__(self, descriptor: int) -> None:
        """Map what ``make_ring_file`` made; ``descriptor`` stays the caller's."""
        self._map = mmap.mmap(descriptor, 0)
        self._bytes = memoryview(self._map)
        self._words = self._bytes[:_CONTENT].cast("Q")
        self.capacity = len(self._bytes) - _CONTENT
        self._barrier = threading.Lock()

    def close(self) -> None:
        """Release the memory. Nothing may be called afterwards."""
        self._words.release()
        self._bytes.release()
        self._map.close()

    def _fence(self) -> None:
        """A memory barrier: earlier stores are visible before later stores and loads.

        Locking twice: nothing is reordered across both, whatever the machine's memory order is.
        """
        with self._barrier:
            pass
        with self._barrier:
            pass


class RingWriter(_Ring):
    """The end that writes."""

    def __init__(self, descriptor: int) -> None:
        """As ``_Ring``."""
        super().__init__(descriptor)
        self._at = self._words[_WRITTEN]

    def write(self, record: bytes, spare: int = 0) -> bool:
        """Add ``record``, if there is room for it and ``spare`` more bytes.

        Raises PacketError for one that is too long, and for a ring that is damaged.
        """
        if len(record) > MAX_RECORD_BYTES:
            raise PacketError(f"a record of {len(record)} bytes; at most {MAX_RECORD_BYTES}")
        length = _padded(_HEADER.size + len(record))
        skipped = self._before_end() if length > self._before_end() else 0
        used = self._at - self._words[_READ]
        if not 0 <= used <= self.capacity:
            raise PacketError(f"a ring of {self.capacity} bytes, of which {used} are not read")
        if length + skipped + spare > self.capacity - used:
            return False
        if skipped:
            _HEADER.pack_into(self._bytes, self._place(), _SKIP, 0)
            self._at += skipped
        place = self._place()
        _HEADER.pack_into(self._bytes, place, len(record), zlib.crc32(record))
        place += _HEADER.size
        self._bytes[place : place + len(record)] = record
        self._at += length
        self._fence()
        self._words[_WRITTEN] = self._at
        return True

    def must_wake(self) -> bool:
        """Whether the reader sleeps and the caller must wake it: True once for each sleep."""
        self._fence()
        if not self._words[_ASLEEP]:
            return False
        self._words[_ASLEEP] = 0
        return True

    def _place(self) -> int:
        return _CONTENT + self._at % self.capacity

    def _before_end(self) -> int:
        return self.capacity - self._at % self.capacity


class RingReader(_Ring):
    """The reading end. It trusts nothing that it finds."""

    def __init__(self, descriptor: int) -> None:
        """As ``_Ring``."""
        super().__init__(descriptor)
        self._at = self._words[_READ]

    def read(self) -> bytes | None:
        """The next record, or None. Raises PacketError for a ring that is damaged; it stays so."""
        while (there := self._words[_WRITTEN] - self._at) != 0:
            self._fence()
            place = self._at % self.capacity
            if not 0 < there <= self.capacity or there % 8:
                raise PacketError(f"a ring of {self.capacity} bytes that says {there} of them wait")
            length, check = _HEADER.unpack_from(self._bytes, _CONTENT + place)
            if length != _SKIP:
                return self._take(place, length, check, there)
            if self.capacity - place > there:
                raise PacketError(f"a ring whose end is {there} bytes away, and further")
            self._move(self.capacity - place)
        return None

    def sleeps(self) -> bool:
        """Ask to be woken from now on; returns False, without asking, if a record has arrived."""
        self._words[_ASLEEP] = 1
        self._fence()
        if self._words[_WRITTEN] == self._at:
            return True
        self._words[_ASLEEP] = 0
        return False

    def _take(self, place: int, length: int, check: int, there: int) -> bytes:
        whole = _padded(_HEADER.size + length)
        if length > MAX_RECORD_BYTES or whole > min(there, self.capacity - place):
            raise PacketError(f"a record of {length} bytes; {there} bytes wait")
        begin = _CONTENT + place + _HEADER.size
        record = bytes(self._bytes[begin : begin + length])
        if zlib.crc32(record) != check:
            raise PacketError(f"a record of {length} bytes that is damaged")
        self._move(whole)
        return record

    def _move(self, count: int) -> None:
        self._at += count
        self._fence()
        self._words[_READ] = self._at


def _padded(count: int) -> int:
    return -(-count // 8) * 8
