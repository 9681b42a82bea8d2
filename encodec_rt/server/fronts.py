"""A server of several processes: this one has the engine, and fronts have the network.

Connections are accepted here and handed to the front with the fewest sessions; slots, states,
tickets and figures are here alone. A front that ends is begun again, and its sessions are kept.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from encodec_rt.errors import CodecError, ConfigError, StateError
from encodec_rt.link.admission import Acceptor, RateLimit
from encodec_rt.link.listening import cannot_listen, check_place
from encodec_rt.server.front import FrontSettings
from encodec_rt.server.front_clients import FrontClients
from encodec_rt.server.http_service import ServerOptions
from encodec_rt.server.records import HEAD_BYTES, RecordKind, RingRecord
from encodec_rt.server.ring import MAX_RECORD_BYTES, RingReader, RingWriter, make_ring_file
from encodec_rt.server.ring_link import SPARE_BYTES, RingLink, broken
from encodec_rt.server.service import EngineHost
from encodec_rt.server.store import SessionStore
from encodec_rt.streaming.codec import Codec

logger = logging.getLogger(__name__)

START_S = 200.0
"""How long a front may take to start; a busy machine may be that slow."""
CLOSE_S, END_S = 5.0, 5.0
"""How long fronts may take to hang up, and one to end before it is killed."""
TURN_S, SLOW_TURNS, SILENT_TURNS = 1.0, 5, 30
"""How often it is looked whether a front said anything, how often in vain until others have new
connections first, and until it is ended."""
AGAIN_S, AGAIN_AT_MOST_S = 0.1, 5.0
"""How soon a front that ended is begun again, at first and after it has ended many times."""
LASTED_S = 10.0
HANDED_S = 1.0
"""How long a connection that was handed over counts as a session to come."""


class Front:
    """One front: its process, and what is shared with it."""

    def __init__(self, host: EngineHost, settings: FrontSettings) -> None:
        """Not begun yet."""
        self._host, self._settings = host, settings
        self.pid = 0
        self.is_ready = False
        self._silent = 0
        """Turns in which it said nothing."""
        self._is_told = False
        """Whether it was told why it is to end, and says that to its clients."""
        self.clients = FrontClients(host, host.metrics)
        self._ready = asyncio.Event()
        self._gone = asyncio.Event()
        self._handed: deque[float] = deque()
        self.connections = 0
        """Connections that it was given."""

    @property
    def order(self) -> tuple[bool, int, int]:
        """By which the front is found that is to have the next connection."""
        return self._silent > SLOW_TURNS, self._load, self.connections

    @property
    def _load(self) -> int:
        """Sessions, and connections of the last moment, which may become some."""
        now_s = time.monotonic()
        while self._handed and now_s - self._handed[0] > HANDED_S:
            self._handed.popleft()
        return len(self.clients) + len(self._handed)

    def hand_over(self, connection: socket.socket) -> bool:
        """Give it a connection; False if it does not take it."""
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
            # One that has ended at once is seen by who reads.
            mine.sendall(self._settings.to_bytes())
        self._link.start()

    async def wait_ready(self) -> None:
        """Until it serves. Raises StateError where it ends instead."""
        waiting = [asyncio.ensure_future(each.wait()) for each in (self._ready, self._gone)]
        try:
            await asyncio.wait(waiting, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        if not self.is_ready:
            raise StateError("a front did not start; see the log")

    async def run(self) -> None:
        """Until it has ended, and nothing is left of it."""
        try:
            await self._wait_gone()
        finally:
            self.is_ready = False
            await self.clients.leave()
            await self._end_process()
            self._link.close()

    async def _wait_gone(self) -> None:
        while not self._gone.is_set():
            try:
                await asyncio.wait_for(self._gone.wait(), TURN_S)
            except asyncio.TimeoutError:
                # Counted, and not taken from a clock: this process may have stood still itself.
                self._silent += self.is_ready
                if self._silent > SILENT_TURNS:
                    self._ended(StateError("nothing was heard of it for long"))

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


class FrontedServer(EngineHost):
    """Sessions over WebSockets that fronts carry, on the slots of one engine."""

    def __init__(
        self,
        codec: Codec,
        slots: int,
        bandwidth_kbps: float,
        store: SessionStore,
        options: ServerOptions,
        fronts: int,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        """As ``EngineHost``, with so many fronts; ``certificate`` is a file and its key's, for TLS.

        Raises ConfigError for calls and pages, too, which fronts do not carry.
        """
        if options.calls or options.page is not None:
            raise ConfigError("fronts carry WebSockets alone; serve calls without --fronts")
        super().__init__(codec, slots, bandwidth_kbps, store, options)
        self._options, self._certificate = options, certificate
        self._rate = RateLimit(options.requests_per_s, options.request_burst)
        self._count = fronts
        self._fronts: dict[int, Front] = {}
        self._keeping: list[asyncio.Task[None]] = []
        self._acceptor = Acceptor(self._hand_over)

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> int:
        """Listen; the port, which is chosen by the system for 0.

        Raises LinkError for an address beyond loopback without both TLS and a token, and StateError
        where a front does not start.
        """
        check_place(host, context, has_token=self._options.token is not None)
        self.sessions.start()
        try:
            bound = await self._acceptor.open(host, port)
        except (OSError, UnicodeError) as error:
            await self.close()
            raise cannot_listen(host, port, error) from error
        try:
            certificate = [None, None] if self._certificate is None else self._certificate
            self._settings = FrontSettings(
                self.facts, self._options, host, bound,
                *(None if path is None else str(path) for path in certificate),
            )  # fmt: skip
            for place in range(self._count):
                self._fronts[place] = Front(self, self._settings)
                await self._fronts[place].begin()
                self._keeping.append(asyncio.create_task(self._keep(place)))
            await asyncio.gather(*(front.wait_ready() for front in self._fronts.values()))
        except OSError as error:
            await self.close()
            raise StateError(f"a front cannot be begun: {error.strerror}") from error
        except BaseException:
            await self.close()
            raise
        return bound

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs, and fronts are kept running."""
        return super().is_alive and not any(task.done() for task in self._keeping)

    async def allows(self, address: str) -> bool:
        """As ``SessionHost.allows``: fronts count by themselves first, and together here."""
        return self._rate.allows(address, asyncio.get_running_loop().time())

    async def drain(self) -> None:
        """Take nobody new, let the sessions end in their time, keep the rest, and close."""
        await self.sessions.drain()
        await self.close()

    async def close(self) -> None:
        """Stop serving; sessions that are open can be resumed."""
        self.sessions.is_draining = True
        closing = asyncio.create_task(self.sessions.close())
        # A front that does not hang up is ended, and its sessions with it.
        await asyncio.wait({closing}, timeout=CLOSE_S)
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        await closing
        await self._acceptor.close()

    async def _keep(self, place: int) -> None:
        """Keep a front running."""
        wait_s = AGAIN_S
        while True:
            begun_s, front = time.monotonic(), self._fronts[place]
            await front.run()
            logger.error("front %d has ended and is begun again", front.pid)
            wait_s = AGAIN_S if time.monotonic() - begun_s > LASTED_S else 2 * wait_s
            while True:
                await asyncio.sleep(min(wait_s, AGAIN_AT_MOST_S))
                self._fronts[place] = front = Front(self, self._settings)
                try:
                    await front.begin()
                    break
                except OSError as error:
                    logger.error("a front cannot be begun: %s", error.strerror)

    def _hand_over(self, connection: socket.socket, address: str) -> None:
        """Give a connection to the front that has least to do."""
        fronts = list(self._fronts.values())
        fronts.sort(key=lambda each: each.order)
        taken = any(front.hand_over(connection) for front in fronts)
        if not taken:
            logger.warning("a connection from %s is closed: no front takes it", address)
        connection.close()


def ring_bytes(settings: FrontSettings) -> int:
    """Room for all that may wait of all sessions, should they all be one front's."""
    facts = settings.facts
    frame = 2 * facts.config.audio_channels * facts.config.hop_length + HEAD_BYTES + 64
    # Audio and codes.
    waiting = 2 * facts.slots * facts.limits.waiting_frames * frame
    return SPARE_BYTES + 2 * MAX_RECORD_BYTES + waiting
