"""The server as the network sees it: its addresses, who is let in, and how it ends."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.typedefs import Handler

from encodec_rt.errors import CodecError, ConfigError, LinkError, StateError
from encodec_rt.extras import needed_for
from encodec_rt.link.admission import ConnectionLimits, RateLimit
from encodec_rt.link.listening import Listener
from encodec_rt.server.access import TICKET_S, Access
from encodec_rt.server.cross_origin import CrossOrigin
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
from encodec_rt.server.sessions import Sessions
from encodec_rt.server.store import SessionStore
from encodec_rt.server.websockets import serve_websocket
from encodec_rt.streaming.codec import Codec
from encodec_rt.version import __version__

if TYPE_CHECKING:
    from encodec_rt.link.whip import WhipEndpoint
    from encodec_rt.web.page_files import PageFiles

MAX_BODY_BYTES = 64 * 1024
ANSWER_S = 10.0
"""How long an offer of a call may take to arrive, and an answer to be made."""
PAGE_S = 600.0
"""How long a browser's connections are left alone, for a model of 12 MB on a slow line."""
STALLED_S = 1.0
"""How long the engine's thread may stand still and the server still be called alive."""


@dataclass(frozen=True)
class ServerOptions:
    """How a server is run; ``token`` None is for loopback only."""

    token: str | None = None
    origins: frozenset[str] = frozenset()
    """Web pages that may connect; without any, no browser can."""
    limits: SessionLimits = field(default_factory=SessionLimits)
    requests_per_s: float = 50.0
    """Per address, in the long run."""
    request_burst: int = 400
    calls: int = 0
    """Calls over WebRTC at once, each on a slot; 0 offers none."""
    page: bytes | None = None
    """A model's file for browsers, to which a page is served that calls; it needs ``calls``."""


class StreamServer:
    """Sessions over WebSockets, and calls over WebRTC, on the slots of one engine."""

    def __init__(
        self,
        codec: Codec,
        slots: int,
        bandwidth_kbps: float,
        store: SessionStore,
        options: ServerOptions,
    ) -> None:
        """Serve up to ``slots`` sessions of up to ``bandwidth_kbps``; make all that they need.

        Raises LinkError for a token that could be guessed, ConfigError (of a page without calls,
        too), and BackendUnavailable for calls where the link's libraries are not installed.
        """
        self._codec, self._options = codec, options
        self.metrics = Metrics(1 / codec.config.frame_rate)
        self.metrics.slots.set(slots)
        self.sessions = Sessions(codec, slots, bandwidth_kbps, store, options.limits, self.metrics)
        self._access = Access(options.token, time.monotonic)
        self._rate = RateLimit(options.requests_per_s, options.request_burst)
        self._listener = Listener()
        self._calls = self._make_calls() if options.calls else None
        self._page = None if options.page is None else self._make_page(options.page)
        self.is_draining = False

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> int:
        """Listen; the port, which is chosen by the system for 0.

        Raises LinkError for an address beyond loopback without both TLS and a token.
        """
        application = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._check])
        application.router.add_get(STREAM_PATH, self._stream)
        application.router.add_post(TICKET_PATH, self._ticket)
        application.router.add_get(INFO_PATH, self._info)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/livez", self._livez)
        application.router.add_get("/readyz", self._readyz)
        if self._calls is not None:
            self._calls.add_to(application)
        if self._page is not None:
            application.router.add_get("/{path:.*}", self._page.get)
        if self._options.origins:
            CrossOrigin(self._options.origins).add_to(application)
        most = 2 * self.sessions.slots + 64
        seconds = 15.0 if self._page is None else PAGE_S
        limits = ConnectionLimits(connections=most, per_address=most, connection_s=seconds)
        has_token = self._options.token is not None
        self.sessions.start()
        try:
            return await self._listener.open(
                application, (host, port), limits, context, has_token=has_token
            )
        except LinkError:
            await self.close()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self.sessions.engine_loop.is_alive

    async def drain(self) -> None:
        """Take nobody new, let the sessions end in their time, keep the rest, and close."""
        self.is_draining = True
        await self.sessions.drain()
        await self.close()

    async def close(self) -> None:
        """Stop serving; sessions that are open can be resumed."""
        self.is_draining = True
        if self._calls is not None:
            await self._calls.close()
        await self.sessions.close()
        await self._listener.close()

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        offered = [
            name.strip()
            for line in request.headers.getall("Sec-WebSocket-Protocol", [])
            for name in line.split(",")
        ]
        ticket, token = secret_of(offered, TICKET), secret_of(offered, RESUME)
        if not self._access.allows(request.headers.get("Authorization")) and not (
            ticket is not None and self._access.takes_ticket(ticket)
        ):
            self._refuse("unauthorized")
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
        try:
            wanted = StreamRequest.from_query(request.query)
            self.sessions.check(wanted)
            if SUBPROTOCOL not in offered:
                raise StateError(f"the subprotocol {SUBPROTOCOL} is not among those offered")
        except CodecError as error:
            self._refuse("malformed")
            raise _refusal(web.HTTPBadRequest, error) from None
        if token is not None:
            await self.sessions.supersede(token)
        slot = self._reserve()
        try:
            return await self._serve(request, wanted, slot, token)
        finally:
            self.sessions.release(slot)

    def _reserve(self) -> int:
        """A slot, taken before anything is answered or awaited: two cannot have the same.

        Raises the refusal where there is none.
        """
        closed = self.is_draining or not self.is_alive
        slot = None if closed else self.sessions.reserve()
        if slot is None:
            self._refuse("draining" if closed else "full")
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "2"})
        return slot

    def _make_calls(self) -> WhipEndpoint:
        with needed_for("a server of calls"):
            from encodec_rt.link.sdp import Format
            from encodec_rt.link.whip import WhipEndpoint
            from encodec_rt.server.call import ServedCall
        form = Format.of(self._codec, self.sessions.bandwidth_kbps)

        def open_line(query: Mapping[str, str]) -> ServedCall:
            if query:
                raise web.HTTPBadRequest(text="a call takes no parameters")
            slot = self._reserve()
            try:
                return ServedCall(self.sessions, slot, form, self.metrics)
            except BaseException:
                self.sessions.release(slot)
                raise

        return WhipEndpoint(
            open_line, sessions=self._options.calls, request_s=ANSWER_S, refused=self._refuse
        )

    def _make_page(self, model: bytes) -> PageFiles:
        from encodec_rt.web.page_files import PageFiles

        if self._calls is None:
            raise ConfigError("a page calls this server, so that it needs calls")
        return PageFiles(model, calls="server", token=self._options.token)

    async def _serve(
        self, request: web.Request, wanted: StreamRequest, slot: int, token: str | None
    ) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None, "a request that was not answered has a connection"
        try:
            state = None if token is None else await self.sessions.load(token, wanted)
            resumed = None if token is None or state is None else (token, state)
            self._listener.let_stay(transport)
            return await serve_websocket(
                self.sessions, self._codec.packed, self.metrics, request, transport, wanted, slot,
                resumed,
            )  # fmt: skip
        except StateError as error:
            self._refuse("resume" if token is not None else "malformed")
            raise _refusal(web.HTTPConflict, error) from None

    def _refuse(self, reason: str) -> None:
        self.metrics.refused.labels(reason).inc()

    async def _ticket(self, request: web.Request) -> web.Response:
        return web.json_response({"ticket": self._access.make_ticket(), "seconds": TICKET_S})

    async def _info(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "version": __version__,
                "protocol": SUBPROTOCOL,
                "model": self._codec.name,
                "weights_sha256": self._codec.weights_sha256,
                "bandwidths_kbps": [
                    kbps
                    for kbps in self._codec.config.target_bandwidths
                    if kbps <= self.sessions.bandwidth_kbps
                ],
                "rate": self._codec.config.sampling_rate,
                "hop": self._codec.config.hop_length,
                "capacity": self.sessions.slots,
                "sessions": self.sessions.count,
                "calls": self._options.calls,
                "draining": self.is_draining,
            }
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.text(), content_type="text/plain", charset="utf-8")

    async def _livez(self, request: web.Request) -> web.Response:
        alive = self.sessions.engine_loop.idle_s < STALLED_S
        return web.Response(status=200 if alive else 503, text="ok" if alive else "stalled")

    async def _readyz(self, request: web.Request) -> web.Response:
        if self.is_draining or self.sessions.engine_loop.idle_s >= STALLED_S:
            raise web.HTTPServiceUnavailable(text="draining" if self.is_draining else "stalled")
        return web.Response(text="ok")

    @web.middleware
    async def _check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Raise the refusal of a request that may not come further, cheapest reason first."""
        now_s = asyncio.get_running_loop().time()
        if not self._rate.allows(request.remote or "", now_s):
            self._refuse("rate")
            raise web.HTTPTooManyRequests(headers={"Retry-After": "1"})
        if (hosts := self._listener.hosts) and request.host not in hosts:
            raise web.HTTPForbidden
        origin = request.headers.get("Origin")
        if origin is not None and not self._is_welcome(origin, request):
            self._refuse("origin")
            raise web.HTTPForbidden
        asked = request.method == "OPTIONS" and origin is not None
        public = asked or request.path in ("/livez", "/readyz", STREAM_PATH)
        # What of the page is secret, it knows itself.
        public |= self._page is not None and request.path in self._page
        if not public and not self._access.allows(request.headers.get("Authorization")):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    def _is_welcome(self, origin: str, request: web.Request) -> bool:
        """Whether a web page may connect: one that was named, or the one that is served here."""
        own = f"{request.scheme}://{request.host}"
        return origin in self._options.origins or (self._page is not None and origin == own)


def _refusal(kind: type[web.HTTPError], error: CodecError) -> web.HTTPError:
    content = {"error": type(error).__name__, "message": str(error)}
    return kind(text=json.dumps(content), content_type="application/json")
