"""How two machines find each other: one HTTP POST that carries an offer and returns an answer.

DTLS only proves that media comes from whoever signalled, so this is where strangers are kept out.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler

from encodec_rt.link.admission import ConnectionLimits, RateLimit
from encodec_rt.link.credentials import check_token, is_authorized
from encodec_rt.link.listening import Listener
from encodec_rt.link.whip import SignalledCall, WhipEndpoint


@dataclass(frozen=True)
class Limits:
    """The limits of one server."""

    sessions: int = 1
    body_bytes: int = 64 * 1024
    requests_per_s: float = 2.0
    """Per address, on average."""
    burst: int = 10
    request_s: float = 10.0
    """How long a request may take to arrive, and an answer to be made."""
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)


class SignallingServer:
    """Listens for calls. Refusals are short, reveal no details, and are cheap."""

    def __init__(
        self,
        open_line: Callable[[], SignalledCall],
        *,
        token: str | None,
        limits: Limits | None = None,
        origins: frozenset[str] = frozenset(),
    ) -> None:
        """``open_line`` makes a new call for each offer that may come this far.

        ``origins`` are the web pages that may call; without any, no browser can.
        """
        if token is not None:
            check_token(token)
        self._token = token
        self.limits = limits or Limits()
        self._origins = origins
        self._rate = RateLimit(self.limits.requests_per_s, self.limits.burst)
        self._whip = WhipEndpoint(
            lambda _: open_line(),
            sessions=self.limits.sessions,
            request_s=self.limits.request_s,
        )
        self.listener = Listener()

    @property
    def sessions(self) -> int:
        """Calls in progress or being set up."""
        return self._whip.sessions

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> int:
        """Listen; returns the port, which the system chooses for 0.

        Raises LinkError for an address beyond loopback without both TLS and a token.
        """
        application = web.Application(
            client_max_size=self.limits.body_bytes, middlewares=[self._check]
        )
        self._whip.add_to(application)
        return await self.listener.open(
            application,
            (host, port),
            self.limits.connections,
            context,
            has_token=self._token is not None,
            keepalive_s=5.0,
            lingering_s=1.0,
        )

    def add_to(self, application: web.Application) -> None:
        """Instead of ``start``, take calls at a page server, from its own pages too.

        That server checks hosts and origins; the rate of calls and the token are checked here.
        """
        self._whip.add_to(application, lambda handler: partial(self._admit, handler=handler))

    async def close(self) -> None:
        """Hang up every call and stop listening."""
        await self._whip.close()
        await self.listener.close()

    @web.middleware
    async def _check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Raise the refusal of a request that is not admitted, cheapest reason first."""
        self._check_rate(request)
        origin = request.headers.get("Origin")
        if origin is not None and origin not in self._origins:
            raise web.HTTPForbidden
        return await self._check_token(request, handler)

    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._check_rate(request)
        return await self._check_token(request, handler)

    def _check_rate(self, request: web.Request) -> None:
        if not self._rate.allows(request.remote or "", asyncio.get_running_loop().time()):
            raise web.HTTPTooManyRequests

    async def _check_token(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        header = request.headers.get("Authorization")
        if self._token is not None and not is_authorized(header, self._token):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)
