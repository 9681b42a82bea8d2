"""A process's end of its link to another: a ring each way, and a socket beside them.

A byte on the socket wakes the other side, may carry an accepted connection, and the socket's end
shows that the other process has ended.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from encodec_rt.errors import CodecError, StateError
from encodec_rt.server.records import RecordKind, RingRecord, with_fields
from encodec_rt.server.ring import RingReader, RingWriter

RECORDS_AT_ONCE = 256
"""Records read before others get their turn on the event loop."""
SPARE_BYTES = 32 * 1024
"""The share of a ring that is reserved for what may not be dropped."""
WAITING_PER_SESSION = 32
"""A process that takes nothing for this long, while what may not be dropped waits, is given up."""
AGAIN_S = 0.01
_WAKE = b"w"


class RingLink:
    """Records to and from another process. It belongs to the event loop, and never waits."""

    def __init__(
        self,
        beside: socket.socket,
        writer: RingWriter,
        reader: RingReader,
        sessions: int,
        *,
        take: Callable[[RingRecord], None],
        ended: Callable[[CodecError | None], None],
        batch: Callable[[], None] = lambda: None,
        connection: Callable[[socket.socket], None] = socket.socket.close,
    ) -> None:
        """For up to ``sessions`` sessions.

        ``take`` gets each record, and ``batch`` is called after some of them.
        ``ended`` is called once: with None when the other process has gone, with an error when
        nothing that comes from it can be understood. ``connection`` gets the connections it sent.
        """
        self._beside, self._writer, self._reader = beside, writer, reader
        self._take, self._on_ended, self._batch = take, ended, batch
        self._connection = connection
        self._most = WAITING_PER_SESSION * (sessions + WAITING_PER_SESSION)
        self._waiting: deque[bytes] = deque()
        self._flushing: asyncio.TimerHandle | None = None
        self._reading: asyncio.Handle | None = None
        self.is_open = False

    @property
    def is_behind(self) -> bool:
        """Whether records that may not be dropped still wait for room."""
        return bool(self._waiting)

    def start(self) -> None:
        """Read from now on."""
        self._beside.setblocking(False)
        self.is_open = True
        asyncio.get_running_loop().add_reader(self._beside, self._on_beside)
        self._read_soon()

    def stop(self) -> None:
        """Read no more; records can still be sent."""
        if self.is_open:
            self.is_open = False
            asyncio.get_running_loop().remove_reader(self._beside)

    def close(self) -> None:
        """Close everything shared with the other process. Repeating this is harmless."""
        if self._beside.fileno() < 0:
            return
        self.stop()
        if self._flushing is not None:
            self._flushing.cancel()
        self._waiting.clear()
        self._beside.close()
        self._writer.close()
        self._reader.close()

    def send(self, record: bytes) -> None:
        """Send what may not be dropped, as soon as there is room."""
        if self._beside.fileno() < 0:
            return
        self._waiting.append(record)
        self._flush()
        if len(self._waiting) > self._most:
            self._fail(StateError("the other process takes nothing; it is given up"))

    def offer(self, record: bytes) -> bool:
        """Send a frame; False if there is no room, and it is dropped."""
        if self._waiting or self._beside.fileno() < 0:
            return False
        try:
            written = self._writer.write(record, SPARE_BYTES)
        except CodecError as error:
            self._fail(error)
            return False
        if written:
            self._wake()
        return written

    def hand_over(self, connection: socket.socket) -> bool:
        """Send a connection; False if the other process cannot take it now."""
        if self._beside.fileno() < 0:
            return False
        try:
            socket.send_fds(self._beside, [_WAKE], [connection.fileno()])
        except OSError:
            return False
        return True

    def _flush(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        try:
            while self._waiting and self._writer.write(self._waiting[0]):
                self._waiting.popleft()
        except CodecError as error:
            self._waiting.clear()
            self._fail(error)
            return
        self._wake()
        if self._waiting:
            loop = asyncio.get_running_loop()
            self._flushing = loop.call_later(AGAIN_S, self._flush)

    def _wake(self) -> None:
        if self._writer.must_wake():
            # A socket full of wake-ups wakes too; the reader notices a broken one.
            with suppress(OSError):
                self._beside.send(_WAKE)

    def _on_beside(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._beside, 64, 16)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        for descriptor in descriptors:
            self._connection(socket.socket(fileno=descriptor))
        if not data:
            self._fail(None)
            return
        self._read()

    def _read(self) -> None:
        if self._reading is not None:
            # One at a time, whatever woke it.
            self._reading.cancel()
            self._reading = None
        if not self.is_open:
            return
        again = True
        try:
            for _ in range(RECORDS_AT_ONCE):
                data = self._reader.read()
                if data is None:
                    again = not self._reader.sleeps()
                    break
                self._take(RingRecord.unpack(data))
                if not self.is_open:
                    return
        except CodecError as error:
            self._fail(error)
            return
        except Exception as error:
            # Whatever it is, neither side may wait for the other forever.
            self._fail(StateError(f"a record could not be obeyed: {error!r}"))
            raise
        finally:
            self._batch()
        if again:
            self._read_soon()

    def _read_soon(self) -> None:
        self._reading = asyncio.get_running_loop().call_soon(self._read)

    def _fail(self, error: CodecError | None) -> None:
        if not self.is_open:
            return
        self.stop()
        if error is None:
            # What it said before it ended.
            self._read_rest()
        self._on_ended(error)

    def _read_rest(self) -> None:
        with suppress(Exception):
            while (data := self._reader.read()) is not None:
                self._take(RingRecord.unpack(data))


def broken(error: CodecError) -> bytes:
    """A record that says why nothing more can be read."""
    return with_fields(RecordKind.BROKEN, error=type(error).__name__, message=str(error))
