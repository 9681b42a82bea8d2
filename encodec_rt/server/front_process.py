"""One front as seen by the engine's process: a process, and what is shared with it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections import deque
from contextlib import suppress

from encodec_rt.errors import CodecError, StateError
from encodec_rt.server.front import FrontSettings
from encodec_rt.server.front_clients import FrontClients
from encodec_rt.server.records import HEAD_BYTES, RecordKind, RingRecord
from encodec_rt.server.ring import MAX_RECORD_BYTES, RingReader, RingWriter, make_ring_file
from encodec_rt.server.ring_link import SPARE_BYTES, RingLink, broken
from encodec_rt.server.service import EngineHost

logger = logging.getLogger(__name__)

START_S = 200.0
"""How long a front may take to start; a busy machine may be that slow."""
END_S = 5.0
"""How long it may take to end before it is killed."""
TURN_S, SLOW_TURNS, SILENT_TURNS = 1.0, 5, 30
"""How often a front is checked for signs of life, after how many checks without any other fronts
get new connections first, and after how many it is killed."""
HANDED_S = 1.0
"""How long a connection that was handed over counts as a coming session."""


class Front:
    """One front: its process, and what is shared with it."""

    def __init__(self, host: EngineHost, settings: FrontSettings) -> None:
        """Not begun yet."""
        self._host, self._settings = host, settings
        self.pid = 0
        self.is_ready = False
        self._silent = 0
        """Checks in a row in which it said nothing."""
        self._is_told = False
        """Whether it was told why it must end, and tells its clients."""
        self.clients = FrontClients(host, host.metrics)
        self._ready = asyncio.Event()
        self._gone = asyncio.Event()
        self._handed: deque[float] = deque()
        self.connections = 0
        """Connections that it was given so far."""

    @property
    def order(self) -> tuple[bool, int, int]:
        """The sort key by which the front for the next connection is chosen."""
        return self._silent > SLOW_TURNS, self._load, self.connections

    @property
    def _load(self) -> int:
        """Sessions, plus very recent connections, which may become sessions."""
        now_s = time.monotonic()
        while self._handed and now_s - self._handed[0] > HANDED_S:
            self._handed.popleft()
        return len(self.clients) + len(self._handed)

    def hand_over(self, connection: socket.socket) -> bool:
        """Give it a connection; False if it does not accept it."""
        if not (self.is_ready and self._link.hand_over(connection)):
            return False
        self.connections += 1
        self._handed.append(time.monotonic())
        return True

    async def begin(self) -> None:
        """Start the process. Raises OSError."""
        mine, theirs = socket.socketpair()
        rings: list[int] = []
        try:
            for _ in range(2):
                rings.append(make_ring_file(ring_bytes(self._settings)))
            # They write to the first and read from the second.
            reader, writer = RingReader(rings[0]), RingWriter(rings[1])
            shared = (theirs.fileno(), *rings)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "encodec_rt.server.front", *map(str, shared),
                pass_fds=shared, stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except BaseException:
            mine.close()
            raise
        finally:
            theirs.close()
            for descriptor in rings:
                os.close(descriptor)
        self.pid = self._process.pid
        self._link = self.clients.link = RingLink(
            mine, writer, reader, self._settings.facts.slots,
            take=self._take, ended=self._ended, batch=self.clients.wake,
        )  # fmt: skip
        with suppress(OSError):
            # If it ended immediately, the reader notices.
            mine.sendall(self._settings.to_bytes())
        self._link.start()

    async def wait_ready(self) -> None:
        """Wait until it serves. Raises StateError if it ends instead."""
        waiting = [asyncio.ensure_future(each.wait()) for each in (self._ready, self._gone)]
        try:
            await asyncio.wait(waiting, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        if not self.is_ready:
            raise StateError("a front did not start; see the log")

    async def run(self) -> None:
        """Wait until it has ended and everything is cleaned up."""
        try:
            await self._wait_gone()
        finally:
            self.is_ready = False
            clearing = asyncio.create_task(self._clear())
            try:
                await asyncio.shield(clearing)
            except asyncio.CancelledError:
                # The server is closing: what has begun is still completed.
                await clearing
                raise

    async def _clear(self) -> None:
        await self.clients.leave()
        await self._end_process()
        self._link.close()

    async def _wait_gone(self) -> None:
        """Wait until it has ended, or has said nothing for too long."""
        while not self._gone.is_set():
            try:
                await asyncio.wait_for(self._gone.wait(), TURN_S)
            except asyncio.TimeoutError:
                # Counted, not taken from a clock, since this process may have stalled itself.
                self._silent += self.is_ready
                if self._silent > SILENT_TURNS:
                    self._ended(StateError("it sent nothing for too long"))

    def _take(self, record: RingRecord) -> None:
        if record.kind == RecordKind.READY:
            if not self.is_ready:
                logger.info("front %d serves", self.pid)
            self.is_ready, self._silent = True, 0
            self._ready.set()
        else:
            self.clients.take(record)

    def _ended(self, error: CodecError | None) -> None:
        if self._gone.is_set():
            return
        if error is not None:
            logger.error("front %d is given up: %s: %s", self.pid, type(error).__name__, error)
            self._link.send(broken(error))
            self._is_told = True
        self._gone.set()

    async def _end_process(self) -> None:
        if not self._is_told:
            self._link.close()
        try:
            await asyncio.wait_for(self._process.wait(), END_S)
        except asyncio.TimeoutError:
            self._process.kill()
            await self._process.wait()


def ring_bytes(settings: FrontSettings) -> int:
    """Room for everything that may wait for all sessions, if all belong to one front."""
    facts = settings.facts
    frame = 2 * facts.config.audio_channels * facts.config.hop_length + HEAD_BYTES + 64
    # Audio and codes.
    waiting = 2 * facts.slots * facts.limits.waiting_frames * frame
    return SPARE_BYTES + 2 * MAX_RECORD_BYTES + waiting
