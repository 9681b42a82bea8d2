"""A server of several processes: this one owns the engine, and fronts handle the network.

Connections are accepted here and handed to the front with the fewest sessions; only this process
has slots, states, tickets and metrics. A front that ends is restarted, and its sessions are saved.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from pathlib import Path

from encodec_rt.errors import ConfigError, StateError
from encodec_rt.link.admission import Acceptor, RateLimit
from encodec_rt.link.listening import cannot_listen, check_place
from encodec_rt.server.front import FrontSettings
from encodec_rt.server.front_process import Front
from encodec_rt.server.http_service import ServerOptions
from encodec_rt.server.service import EngineHost
from encodec_rt.server.store import SessionStore
from encodec_rt.streaming.codec import Codec

logger = logging.getLogger(__name__)

CLOSE_S = 5.0
"""How long fronts may take to hang up."""
AGAIN_S, AGAIN_AT_MOST_S = 0.1, 5.0
"""How soon a front that ended is restarted, at first and after many times."""
LASTED_S = 10.0
"""A front that ran for this long is restarted as soon as at first."""


class FrontedServer(EngineHost):
    """Sessions over WebSockets through fronts, on the slots of one engine."""

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
        """As ``EngineHost``, with this many ``fronts``; ``certificate`` is its file and its key's.

        Also raises ConfigError for calls and pages, which fronts do not handle.
        """
        if options.calls or options.page is not None:
            raise ConfigError("fronts handle only WebSockets; serve calls without --fronts")
        super().__init__(codec, slots, bandwidth_kbps, store, options)
        self._options, self._certificate = options, certificate
        self._rate = RateLimit(options.requests_per_s, options.request_burst)
        self._count = fronts
        self._fronts: dict[int, Front] = {}
        self._keeping: list[asyncio.Task[None]] = []
        self._acceptor = Acceptor(self._hand_over)

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> int:
        """Listen; returns the port, which the system chooses for 0.

        Raises LinkError for an address beyond loopback without both TLS and a token, and StateError
        if a front does not start.
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
            raise StateError(f"a front cannot be started: {error.strerror}") from error
        except BaseException:
            await self.close()
            raise
        return bound

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs, and fronts are kept running."""
        return super().is_alive and not any(task.done() for task in self._keeping)

    async def allows(self, address: str) -> bool:
        """As ``SessionHost.allows``, for all fronts together; each one counts by itself first."""
        return self._rate.allows(address, asyncio.get_running_loop().time())

    async def close(self) -> None:
        """As ``EngineHost.close``."""
        self.sessions.is_draining = True
        closing = asyncio.create_task(self.sessions.close())
        # A front that does not hang up is killed, and its sessions with it.
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
        """Give a connection to the least busy front."""
        fronts = list(self._fronts.values())
        fronts.sort(key=lambda each: each.order)
        taken = any(front.hand_over(connection) for front in fronts)
        if not taken:
            logger.warning("a connection from %s is closed: no front takes it", address)
        connection.close()
