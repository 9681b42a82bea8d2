"""The server as the network sees it: its routes, and admission. It does not need torch."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.typedefs import Handler

from encodec_rt.errors import CodecError, StateError
from encodec_rt.link.admission import ConnectionLimits, RateLimit
from encodec_rt.link.credentials import check_token, is_authorized
from encodec_rt.link.listening import Listener
from encodec_rt.server.access import TICKET_S
from encodec_rt.server.cross_origin import CrossOrigin
from encodec_rt.server.host import ServerStatus, SessionHost, UnavailableError
from encodec_rt.server.limits import SessionLimits
from encodec_rt.server.metrics import Metrics
from encodec_rt.server.protocol import (
    INFO_PATH,
    RESUME,
    STREAM_PATH,
    SUBPROTOCOL,
    TICKET,
    TICKET_PATH,
    StreamRequest,
    secret_of,
)
from encodec_rt.server.websockets import serve_websocket
from encodec_rt.version import __version__

if TYPE_CHECKING:
    from encodec_rt.link.whip import WhipEndpoint
    from encodec_rt.web.page_files import PageFiles

MAX_BODY_BYTES = 64 * 1024
REQUEST_S, PAGE_S = 15.0, 600.0
"""How long a connection without a session may stay; a browser may fetch a 12 MB model."""
STALLED_S = 1.0
"""How long the engine's thread may stall while the server still counts as alive."""


@dataclass(frozen=True)
class ServerOptions:
    """How a server is run; ``token`` None is for loopback only."""

    token: str | None = None
    origins: frozenset[str] = frozenset()
    """Web pages that may connect; without any, no browser can."""
    limits: SessionLimits = field(default_factory=SessionLimits)
    requests_per_s: float = 50.0
    """Per address, on average."""
    request_burst: int = 400
    calls: int = 0
    """Calls over WebRTC at once, each on a slot; 0 offers none."""
    page: bytes | None = None
    """A model's file for browsers, which are then served a page that calls; needs ``calls``."""


class HttpService:
    """The routes of a server, and the WebSockets opened there."""

    def __init__(self, host: SessionHost, options: ServerOptions, metrics: Metrics) -> None:
        """For the sessions of ``host``. Raises LinkError for a token that could be guessed."""
        if options.token is not None:
            check_token(options.token)
        self._host, self._options, self._metrics = host, options, metrics
        self._rate = RateLimit(options.requests_per_s, options.request_burst)
        self.listener = Listener()
        self.calls: WhipEndpoint | None = None
        self.page: PageFiles | None = None
        """Served too, if set before the start."""

    async def start(
        self, host: str, port: int, context: ssl.SSLContext | None, *, listens: bool = True
    ) -> int:
        """Serve; returns the port, which the system chooses for 0.

        ``listens`` is false if connections are accepted elsewhere and handed over. Raises LinkError
        for an address beyond loopback without both TLS and a token.
        """
        application = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._check])
        application.router.add_get(STREAM_PATH, self._stream)
        application.router.add_post(TICKET_PATH, self._ticket)
        application.router.add_get(INFO_PATH, self._info)
        application.router.add_get("/metrics", self._figures)
        application.router.add_get("/livez", self._livez)
        application.router.add_get("/readyz", self._readyz)
        if self.calls is not None:
            self.calls.add_to(application)
        if self.page is not None:
            application.router.add_get("/{path:.*}", self.page.get)
        if self._options.origins:
            CrossOrigin(self._options.origins).add_to(application)
        limits = connection_limits(self._host.facts.slots, has_page=self.page is not None)
        has_token = self._options.token is not None
        return await self.listener.open(
            application, (host, port), limits, context, has_token=has_token, listens=listens
        )

    def refuse(self, reason: str) -> None:
        """Count a refusal."""
        self._metrics.refused.labels(reason).inc()

    def unavailable(self, error: UnavailableError) -> web.HTTPError:
        """The refusal for a client without a slot; it is counted."""
        self.refuse(error.reason)
        return web.HTTPServiceUnavailable(headers={"Retry-After": "2"})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        offered = [
            name.strip()
            for line in request.headers.getall("Sec-WebSocket-Protocol", [])
            for name in line.split(",")
        ]
        ticket, resume = secret_of(offered, TICKET), secret_of(offered, RESUME)
        if not self._is_authorized(request) and not (
            ticket is not None and await self._host.takes_ticket(ticket)
        ):
            self.refuse("unauthorized")
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
        try:
            wanted = StreamRequest.from_query(request.query)
            self._host.facts.check(wanted)
            if SUBPROTOCOL not in offered:
                raise StateError(f"the subprotocol {SUBPROTOCOL} is not among those offered")
        except CodecError as error:
            self.refuse("malformed")
            raise _refusal(web.HTTPBadRequest, error) from None
        transport = request.transport
        if transport is None:
            # It was closed while its ticket was checked.
            raise web.HTTPBadRequest
        stay = partial(self.listener.let_stay, transport)
        try:
            return await serve_websocket(
                self._host, self._metrics, request, transport, wanted, resume, stay
            )
        except StateError as error:
            self.refuse("resume" if resume is not None else "malformed")
            raise _refusal(web.HTTPConflict, error) from None

    async def _ticket(self, request: web.Request) -> web.Response:
        ticket = await self._host.make_ticket()
        return web.json_response({"ticket": ticket, "seconds": TICKET_S})

    async def _info(self, request: web.Request) -> web.Response:
        facts, status = self._host.facts, await self._host.status()
        return web.json_response(
            {
                "version": __version__,
                "protocol": SUBPROTOCOL,
                "model": facts.model,
                "weights_sha256": facts.weights_sha256,
                "bandwidths_kbps": [
                    kbps for kbps in facts.config.target_bandwidths if kbps <= facts.bandwidth_kbps
                ],
                "rate": facts.config.sampling_rate,
                "hop": facts.config.hop_length,
                "capacity": facts.slots,
                "sessions": status.sessions,
                "calls": self._options.calls,
                "draining": status.is_draining,
            }
        )

    async def _figures(self, request: web.Request) -> web.Response:
        text = await self._host.metrics_text()
        return web.Response(body=text, content_type="text/plain", charset="utf-8")

    async def _livez(self, request: web.Request) -> web.Response:
        alive = (await self._status()).idle_s < STALLED_S
        return web.Response(status=200 if alive else 503, text="ok" if alive else "stalled")

    async def _readyz(self, request: web.Request) -> web.Response:
        status = await self._status()
        if status.is_draining or status.idle_s >= STALLED_S:
            raise web.HTTPServiceUnavailable(text="draining" if status.is_draining else "stalled")
        return web.Response(text="ok")

    async def _status(self) -> ServerStatus:
        """The server's status, or "stalled" if it does not answer in time."""
        try:
            return await asyncio.wait_for(self._host.status(), STALLED_S)
        except (asyncio.TimeoutError, UnavailableError):
            return ServerStatus(0, False, float("inf"))

    @web.middleware
    async def _check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            await self._admit(request)
            return await handler(request)
        except UnavailableError as error:
            raise self.unavailable(error) from None

    async def _admit(self, request: web.Request) -> None:
        """Raise the refusal of a request that is not admitted, cheapest reason first."""
        address, now_s = request.remote or "", asyncio.get_running_loop().time()
        # Status requests are answered even if the engine has stalled.
        probes = request.path in ("/livez", "/readyz")
        allowed = self._rate.allows(address, now_s)
        if not allowed or not (probes or await self._host.allows(address)):
            self.refuse("rate")
            raise web.HTTPTooManyRequests(headers={"Retry-After": "1"})
        if (hosts := self.listener.hosts) and request.host not in hosts:
            raise web.HTTPForbidden
        origin = request.headers.get("Origin")
        if origin is not None and not self._is_welcome(origin, request):
            self.refuse("origin")
            raise web.HTTPForbidden
        asked = request.method == "OPTIONS" and origin is not None
        public = asked or probes or request.path == STREAM_PATH
        # The page itself protects what is secret.
        public |= self.page is not None and request.path in self.page
        if not public and not self._is_authorized(request):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})

    def _is_authorized(self, request: web.Request) -> bool:
        token = self._options.token
        return token is None or is_authorized(request.headers.get("Authorization"), token)

    def _is_welcome(self, origin: str, request: web.Request) -> bool:
        """Whether a web page may connect: one that was allowed, or the one served here."""
        own = f"{request.scheme}://{request.host}"
        return origin in self._options.origins or (self.page is not None and origin == own)


def connection_limits(slots: int, *, has_page: bool = False) -> ConnectionLimits:
    """Connection limits of a server with ``slots`` slots; one address may have all of them."""
    most = 2 * slots + 64
    seconds = PAGE_S if has_page else REQUEST_S
    return ConnectionLimits(connections=most, per_address=most, connection_s=seconds)


def _refusal(kind: type[web.HTTPError], error: CodecError) -> web.HTTPError:
    content = {"error": type(error).__name__, "message": str(error)}
    return kind(text=json.dumps(content), content_type="application/json")
