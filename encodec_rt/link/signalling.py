"""How two machines find each other: one HTTP POST that carries an offer and returns an answer.

It follows WHIP (RFC 9725): an SDP offer is posted, the answer comes with 201 and a Location, and
deleting that location hangs up. DTLS only proves that media comes from whoever signalled, so that
this is the gate that keeps everyone else out.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Handler

from encodec_rt.errors import AudioDeviceError, CodecError, LinkError
from encodec_rt.link.admission import ConnectionLimits, RateLimit
from encodec_rt.link.credentials import check_token, is_authorized
from encodec_rt.link.listening import Listener
from encodec_rt.link.sdp import fingerprints

logger = logging.getLogger(__name__)

PATH = "/call"
SDP_TYPE = "application/sdp"
REMEMBERED = 4096
"""Fingerprints of offers that were taken: of an offer there are three, and no more than eight."""


class SignalledCall(Protocol):
    """One call as signalling sees it."""

    async def answer(self, offer: str) -> str:
        """The SDP answer. Raises LinkError for an offer that cannot be met."""

    @property
    def is_lost(self) -> bool:
        """Whether nothing has come for so long that another call may take the place of this one."""

    async def renew(self, offer: str) -> str:
        """The SDP answer for a new path of this call. Raises LinkError as ``answer`` does."""

    async def run(self) -> None:
        """The call from here to its end, which may be a LinkError."""

    async def close(self) -> None:
        """Hang up and release everything."""


@dataclass(frozen=True)
class Limits:
    """What one server lets happen."""

    sessions: int = 1
    body_bytes: int = 64 * 1024
    requests_per_s: float = 2.0
    """Per address, in the long run."""
    burst: int = 10
    request_s: float = 10.0
    """How long a request may take to arrive, and an answer to be made."""
    door: ConnectionLimits = field(default_factory=ConnectionLimits)


class SignallingServer:
    """Listens for calls. Refusals are short, name no details, and cost little."""

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
        self._open_line = open_line
        self._token = token
        self.limits = limits or Limits()
        self._origins = origins
        self._rate = RateLimit(self.limits.requests_per_s, self.limits.burst)
        self._lines: dict[str, SignalledCall] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending = 0
        self._taken: OrderedDict[str, None] = OrderedDict()
        self.listener = Listener()

    @property
    def sessions(self) -> int:
        """Calls in progress or being set up."""
        return len(self._lines) + self._pending

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> int:
        """Listen; the port, which is chosen by the system for 0.

        Raises LinkError for an address beyond loopback without both TLS and a token.
        """
        application = web.Application(
            client_max_size=self.limits.body_bytes, middlewares=[self._check]
        )
        application.router.add_post(PATH, self._post)
        application.router.add_post(PATH + "/{name}", self._renew)
        application.router.add_delete(PATH + "/{name}", self._delete)
        return await self.listener.open(
            application,
            (host, port),
            self.limits.door,
            context,
            has_token=self._token is not None,
            keepalive_s=5.0,
            lingering_s=1.0,
        )

    async def close(self) -> None:
        """Hang up every call and stop listening."""
        for line in list(self._lines.values()):
            await line.close()
        await asyncio.gather(*self._tasks)
        await self.listener.close()

    async def _post(self, request: web.Request) -> web.Response:
        if request.content_type != SDP_TYPE:
            raise web.HTTPUnsupportedMediaType
        if self.sessions >= self.limits.sessions:
            await self._clear_lost()
        if self.sessions >= self.limits.sessions:
            raise web.HTTPServiceUnavailable(text="the line is busy", headers={"Retry-After": "10"})
        self._pending += 1
        try:
            return await self._make_call(request)
        finally:
            self._pending -= 1

    async def _renew(self, request: web.Request) -> web.Response:
        """A caller whose path is dead offers another one for the call that it has."""
        if request.content_type != SDP_TYPE:
            raise web.HTTPUnsupportedMediaType
        line = self._lines.get(request.match_info["name"])
        if line is None:
            raise web.HTTPNotFound
        reply = await self._answer(line.renew, await self._read_offer(request))
        return web.Response(status=201, text=reply, content_type=SDP_TYPE)

    async def _clear_lost(self) -> None:
        """End calls that wait for a caller who has gone, as this may be the same one."""
        for name, line in list(self._lines.items()):
            if line.is_lost:
                await line.close()
                await asyncio.gather(*(task for task in self._tasks if task.get_name() == name))

    async def _read_offer(self, request: web.Request) -> str:
        """The offer, whose like was never taken before; raises the refusal of any other."""
        try:
            body = await asyncio.wait_for(request.read(), self.limits.request_s)
        except asyncio.TimeoutError:
            raise web.HTTPRequestTimeout from None
        offer = body.decode("utf-8", "replace")
        self._take(offer)
        return offer

    async def _answer(self, answer: Callable[[str], Awaitable[str]], offer: str) -> str:
        try:
            return await asyncio.wait_for(answer(offer), self.limits.request_s)
        except LinkError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        except asyncio.TimeoutError:
            raise web.HTTPServiceUnavailable(text="it took too long to answer") from None

    async def _make_call(self, request: web.Request) -> web.Response:
        offer = await self._read_offer(request)
        try:
            line = self._open_line()
        except CodecError as error:
            logger.warning("a call could not be taken: %s", error)
            raise web.HTTPServiceUnavailable(text=_why_unavailable(error)) from None
        try:
            reply = await self._answer(line.answer, offer)
        except web.HTTPException:
            await line.close()
            raise
        name = secrets.token_urlsafe(16)
        self._lines[name] = line
        task = asyncio.create_task(self._follow(name, line), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return web.Response(
            status=201,
            text=reply,
            content_type=SDP_TYPE,
            headers={"Location": f"{PATH}/{name}"},
        )

    def _take(self, offer: str) -> None:
        """Raise the refusal of an offer that was taken before, whoever sends it again."""
        try:
            names = fingerprints(offer)
        except LinkError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        if not names.isdisjoint(self._taken):
            raise web.HTTPConflict(text="this offer was taken before")
        self._taken.update(dict.fromkeys(names))
        while len(self._taken) > REMEMBERED:
            self._taken.popitem(last=False)

    async def _follow(self, name: str, line: SignalledCall) -> None:
        try:
            await line.run()
        except LinkError as error:
            logger.warning("a call ended: %s", error)
        finally:
            del self._lines[name]

    async def _delete(self, request: web.Request) -> web.Response:
        line = self._lines.get(request.match_info["name"])
        if line is None:
            raise web.HTTPNotFound
        await line.close()
        return web.Response(status=200)

    @web.middleware
    async def _check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Raise the refusal of a request that may not come further, cheapest reason first."""
        address = request.remote or ""
        if not self._rate.allows(address, asyncio.get_running_loop().time()):
            raise web.HTTPTooManyRequests
        origin = request.headers.get("Origin")
        if origin is not None and origin not in self._origins:
            raise web.HTTPForbidden
        header = request.headers.get("Authorization")
        if self._token is not None and not is_authorized(header, self._token):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)


def _why_unavailable(error: CodecError) -> str:
    """What a caller may know of why this side cannot talk: no names of devices or files."""
    if not isinstance(error, AudioDeviceError):
        return "the other side cannot open the files that it was told to use"
    device = "speaker" if "speaker" in str(error) else "microphone"
    if str(error).startswith("no "):
        return f"the other side has no {device}"
    return f"the other side cannot open its {device}"
