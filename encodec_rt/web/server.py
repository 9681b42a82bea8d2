"""The server for the page, and for the room where two pages meet."""

from __future__ import annotations

import asyncio
import ssl

from aiohttp import web
from aiohttp.typedefs import Handler

from encodec_rt.link.admission import ConnectionLimits, RateLimit
from encodec_rt.link.credentials import check_token
from encodec_rt.link.listening import Listener
from encodec_rt.link.signalling import SignallingServer
from encodec_rt.web.meeting import Meeting, RungCall
from encodec_rt.web.page_files import HEADERS, TRANSFER_S, PageFiles

REQUESTS_PER_S = 10.0
BURST = 60
"""A page makes about twenty requests at once, and again when it is reloaded."""
LIMITS = ConnectionLimits(connections=32, per_address=12, connection_s=TRANSFER_S)
"""A browser opens six connections."""


class PageServer:
    """Serves the page to browsers, which call the listener behind it, or each other."""

    def __init__(
        self, model: bytes, *, token: str | None = None, calls: SignallingServer | None = None
    ) -> None:
        """``model`` is the content of a model's file; a ``token`` is required to get it.

        The page calls whoever answers ``calls``, or without it another page. ``calls`` requires the
        same token, and is closed with the server. Raises LinkError for a token that could be
        guessed.
        """
        if token is not None:
            check_token(token)
        self._token = token
        self.files = PageFiles(model, calls="pages" if calls is None else "listener", token=token)
        self._meeting = Meeting(token) if calls is None else None
        self._calls = calls or SignallingServer(self._ring, token=token)
        self._rate = RateLimit(REQUESTS_PER_S, BURST)
        self._listener = Listener()

    @property
    def waiting(self) -> bool:
        """Whether a page waits for a call."""
        return self._meeting is not None and self._meeting.waiting

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> int:
        """Listen; returns the port, which the system chooses for 0.

        Raises LinkError for an address beyond loopback without both TLS and a token.
        """
        application = web.Application(
            client_max_size=self._calls.limits.body_bytes, middlewares=[self._check]
        )
        if self._meeting is not None:
            application.router.add_get("/meet", self._meeting.join)
        self._calls.add_to(application)
        application.router.add_get("/{path:.*}", self.files.get)
        return await self._listener.open(
            application, (host, port), LIMITS, context, has_token=self._token is not None
        )

    async def close(self) -> None:
        """Stop serving, and hang up."""
        if self._meeting is not None:
            await self._meeting.close()
        await self._calls.close()
        await self._listener.close()

    def _ring(self) -> RungCall:
        assert self._meeting is not None
        return RungCall(self._meeting)

    @web.middleware
    async def _check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests that are not admitted, cheapest reason first; add headers to answers."""
        try:
            if not self._rate.allows(request.remote or "", asyncio.get_running_loop().time()):
                raise web.HTTPTooManyRequests
            if (hosts := self._listener.hosts) and request.host not in hosts:
                raise web.HTTPForbidden
            origin = request.headers.get("Origin")
            if origin is not None and origin != f"{request.scheme}://{request.host}":
                raise web.HTTPForbidden
            response = await handler(request)
        except web.HTTPException as refusal:
            refusal.headers.update(HEADERS)
            raise
        if not response.prepared:
            response.headers.update(HEADERS)
        return response
