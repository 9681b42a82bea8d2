"""A server in one process: sessions over WebSockets and calls over WebRTC, on one engine."""

from __future__ import annotations

import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiohttp import web

from encodec_rt.errors import ConfigError, LinkError
from encodec_rt.extras import needed_for
from encodec_rt.server.access import Access
from encodec_rt.server.host import (
    Client,
    Joined,
    MakeClient,
    Opened,
    ServerStatus,
    UnavailableError,
)
from encodec_rt.server.http_service import HttpService
from encodec_rt.server.http_service import ServerOptions as ServerOptions
from encodec_rt.server.metrics import Metrics
from encodec_rt.server.protocol import StreamRequest
from encodec_rt.server.sessions import Sessions
from encodec_rt.server.store import SessionStore
from encodec_rt.streaming.codec import Codec

if TYPE_CHECKING:
    from encodec_rt.link.whip import WhipEndpoint

ANSWER_S = 10.0
"""How long an offer of a call may take to arrive, and an answer to be made."""


class EngineHost(ABC):
    """The sessions of an engine, its figures, and its tickets: a SessionHost."""

    def __init__(
        self,
        codec: Codec,
        slots: int,
        bandwidth_kbps: float,
        store: SessionStore,
        options: ServerOptions,
    ) -> None:
        """Prepare for up to ``slots`` sessions of up to ``bandwidth_kbps``.

        Raises LinkError for a token that could be guessed, and ConfigError.
        """
        self.metrics = Metrics(1 / codec.config.frame_rate)
        self.metrics.slots.set(slots)
        self.sessions = Sessions(codec, slots, bandwidth_kbps, store, options.limits, self.metrics)
        self.facts = self.sessions.facts
        self._access = Access(options.token, time.monotonic)

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self.sessions.engine_loop.is_alive

    @property
    def is_draining(self) -> bool:
        """Whether new sessions are refused."""
        return self.sessions.is_draining

    async def open(
        self, wanted: StreamRequest, resume: str | None, make: MakeClient[Joined]
    ) -> tuple[Joined, Opened]:
        """As ``SessionHost.open``."""
        return await self.sessions.open(wanted, resume, make)

    async def end(self, client: Client) -> None:
        """As ``SessionHost.end``."""
        await self.sessions.end(client)

    async def status(self) -> ServerStatus:
        """As ``SessionHost.status``."""
        sessions = self.sessions
        return ServerStatus(sessions.count, sessions.is_draining, sessions.engine_loop.idle_s)

    async def metrics_text(self) -> bytes:
        """As ``SessionHost.metrics_text``."""
        return self.metrics.text()

    async def make_ticket(self) -> str:
        """As ``SessionHost.make_ticket``."""
        return self._access.make_ticket()

    async def takes_ticket(self, ticket: str) -> bool:
        """As ``SessionHost.takes_ticket``."""
        return self._access.takes_ticket(ticket)

    async def allows(self, address: str) -> bool:
        """As ``SessionHost.allows``: the only service has counted already."""
        return True

    async def drain(self) -> None:
        """Refuse new sessions, let the others end in time, save the rest, and close."""
        await self.sessions.drain()
        await self.close()

    @abstractmethod
    async def close(self) -> None:
        """Stop serving; open sessions can be resumed."""


class StreamServer(EngineHost):
    """Sessions over WebSockets, and calls over WebRTC, on the slots of one engine."""

    def __init__(
        self,
        codec: Codec,
        slots: int,
        bandwidth_kbps: float,
        store: SessionStore,
        options: ServerOptions,
    ) -> None:
        """As ``EngineHost``. Also raises ConfigError for a page without calls, and
        BackendUnavailable for calls if the link's libraries are not installed.
        """
        super().__init__(codec, slots, bandwidth_kbps, store, options)
        self._http = HttpService(self, options, self.metrics)
        if options.calls:
            self._http.calls = self._make_calls(codec, options.calls)
        if options.page is not None:
            if not options.calls:
                raise ConfigError("a page calls this server, so that it needs calls")
            from encodec_rt.web.page_files import PageFiles

            self._http.page = PageFiles(options.page, calls="server", token=options.token)

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> int:
        """Listen; returns the port, which the system chooses for 0.

        Raises LinkError for an address beyond loopback without both TLS and a token.
        """
        self.sessions.start()
        try:
            return await self._http.start(host, port, context)
        except LinkError:
            await self.close()
            raise

    async def close(self) -> None:
        """As ``EngineHost.close``."""
        self.sessions.is_draining = True
        if self._http.calls is not None:
            await self._http.calls.close()
        await self.sessions.close()
        await self._http.listener.close()

    def _make_calls(self, codec: Codec, calls: int) -> WhipEndpoint:
        with needed_for("a server of calls"):
            from encodec_rt.link.sdp import Format
            from encodec_rt.link.whip import WhipEndpoint
            from encodec_rt.server.call import ServedCall
        form = Format.of(codec, self.sessions.bandwidth_kbps)

        def open_line(query: Mapping[str, str]) -> ServedCall:
            if query:
                raise web.HTTPBadRequest(text="a call takes no parameters")
            try:
                slot = self.sessions.reserve()
            except UnavailableError as error:
                raise self._http.unavailable(error) from None
            try:
                return ServedCall(self.sessions, slot, form, self.metrics)
            except BaseException:
                self.sessions.release(slot)
                raise

        return WhipEndpoint(
            open_line, sessions=calls, request_s=ANSWER_S, refused=self._http.refuse
        )
