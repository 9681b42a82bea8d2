"""Admission: limits on connections, in total, per address and in time, and on requests."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from encodec_rt.voice.token_bucket import TokenBucket

logger = logging.getLogger(__name__)

BACKLOG = 16
MAX_ADDRESSES = 1024
"""For how many addresses requests are counted; the least recently seen is forgotten."""
REST_S = 1.0
"""How long new connections are refused after the system has run out of resources for them."""


@dataclass(frozen=True)
class ConnectionLimits:
    """The limits of an ``Admission``."""

    connections: int = 32
    per_address: int = 8
    handshake_s: float = 5.0
    """For TLS."""
    connection_s: float = 30.0
    """Counted from the end of the handshake, whatever has been sent by then."""


class Acceptor:
    """Accepts connections, and hands each to ``take`` with the address it is from."""

    def __init__(self, take: Callable[[socket.socket, str], None]) -> None:
        """``take`` has the connection from then on."""
        self._take = take
        self._listening: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, host: str, port: int) -> int:
        """Listen on all addresses of ``host``; returns the port, which the system chooses for 0.

        Raises OSError.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, address in dict.fromkeys((family, address) for family, *_, address in found):
            place = (address[0], port, *address[2:])
            listening = socket.create_server(place, family=family, backlog=BACKLOG)
            listening.setblocking(False)
            self._listening.append(listening)
            port = listening.getsockname()[1]
            self._tasks.append(asyncio.create_task(self._watch(listening)))
        return port

    async def close(self) -> None:
        """Accept nobody any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listening in self._listening:
            listening.close()

    async def _watch(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:
                logger.warning("a connection could not be taken: %s", error.strerror)
                await asyncio.sleep(REST_S)
                continue
            self._take(connection, address[0])


class Admission:
    """Admits connections to the protocols that ``make`` creates.

    Connections over the limit are closed before any work is done, and so are those that stay too
    long, with or without a request: one request is all that anyone needs.
    """

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        limits: ConnectionLimits,
        context: ssl.SSLContext | None,
    ) -> None:
        """``context``: for TLS, or None without."""
        self._make, self._limits, self._context = make, limits, context
        self._acceptor = Acceptor(self.take)
        self._inside: dict[socket.socket, tuple[str, asyncio.TimerHandle | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        self._forget_closed()
        return len(self._inside)

    async def open(self, host: str, port: int) -> int:
        """As ``Acceptor.open``."""
        return await self._acceptor.open(host, port)

    def take(self, connection: socket.socket, host: str) -> None:
        """Admit an accepted connection from ``host``, or close it."""
        self._forget_closed()
        from_host = sum(other == host for other, _ in self._inside.values())
        if len(self._inside) >= self._limits.connections or (from_host >= self._limits.per_address):
            connection.close()
            return
        self._inside[connection] = host, None
        self._begin(self._let_in(connection, host))

    def let_stay(self, transport: asyncio.BaseTransport) -> None:
        """Do not time this connection out: its session has its own limits."""
        descriptor = transport.get_extra_info("socket").fileno()
        for connection, (host, handle) in self._inside.items():
            if connection.fileno() == descriptor and handle is not None:
                handle.cancel()
                self._inside[connection] = host, None

    async def close(self) -> None:
        """Admit no more connections; open ones stay."""
        await self._acceptor.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _, handle in self._inside.values():
            if handle is not None:
                handle.cancel()

    async def _let_in(self, connection: socket.socket, host: str) -> None:
        loop = asyncio.get_running_loop()
        secure = self._context is not None
        try:
            transport, _ = await loop.connect_accepted_socket(
                self._make,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake_s if secure else None,
            )
        except OSError as error:
            logger.debug("a connection from %s came to nothing: %s", host, error)
            connection.close()
            return
        handle = loop.call_later(self._limits.connection_s, transport.abort)
        self._inside[connection] = host, handle

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _forget_closed(self) -> None:
        for connection, (_, handle) in list(self._inside.items()):
            if connection.fileno() < 0:
                del self._inside[connection]
                if handle is not None:
                    handle.cancel()


class RateLimit:
    """A token bucket per address, with bounded memory and the clock passed in."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        """How many addresses are remembered."""
        return len(self._buckets)

    def allows(self, address: str, now_s: float) -> bool:
        """Whether one more request from ``address`` may pass."""
        bucket = self._buckets.pop(address, None) or TokenBucket(self._per_s, self._burst)
        self._buckets[address] = bucket
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return bucket.allows(now_s)
