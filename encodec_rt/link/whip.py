"""WHIP (RFC 9725) as a resource of a web application: posting, renewing and hanging up calls.

An SDP offer is posted, the answer comes with 201 and a Location, and deleting that location hangs
up. The application decides who is admitted.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Handler

from encodec_rt.errors import AudioDeviceError, CodecError, LinkError
from encodec_rt.link.sdp import fingerprints, with_seen_address

logger = logging.getLogger(__name__)

PATH = "/call"
SDP_TYPE = "application/sdp"
REMEMBERED = 4096
"""Remembered fingerprints of accepted offers; an offer has three, and at most eight."""


class SignalledCall(Protocol):
    """One call as signalling sees it."""

    async def answer(self, offer: str) -> str:
        """The SDP answer. Raises LinkError for an offer that cannot be accepted."""

    @property
    def is_lost(self) -> bool:
        """Whether nothing has arrived for so long that another call may replace this one."""

    async def renew(self, offer: str) -> str:
        """The SDP answer for a new path of this call. Raises LinkError as ``answer`` does."""

    async def run(self) -> None:
        """Run the call to its end. Raises LinkError."""

    async def close(self) -> None:
        """Hang up and release everything."""


OpenLine = Callable[[Mapping[str, str]], SignalledCall]


class WhipEndpoint:
    """The calls of one server, by the names in their addresses."""

    def __init__(
        self,
        open_line: OpenLine,
        *,
        sessions: int,
        request_s: float,
        refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``open_line`` makes a new call for each admitted offer, given what the offer's URL asks
        for; it may raise a refusal itself.

        ``request_s`` is how long an offer may take to arrive, and an answer to be made. ``refused``
        is told why an offer was refused.
        """
        self._refused = refused
        self._open_line, self._sessions, self._request_s = open_line, sessions, request_s
        self._lines: dict[str, SignalledCall] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending = 0
        self._taken: OrderedDict[str, None] = OrderedDict()

    @property
    def sessions(self) -> int:
        """Calls in progress or being set up."""
        return len(self._lines) + self._pending

    @property
    def routes(self) -> tuple[tuple[str, str, Handler], ...]:
        """Method, path and handler of each address."""
        call = PATH + "/{name}"
        return (
            ("POST", PATH, self._post),
            ("POST", call, self._renew),
            ("DELETE", call, self._delete),
        )

    def add_to(
        self,
        application: web.Application,
        admit: Callable[[Handler], Handler] = lambda handler: handler,
    ) -> None:
        """Add the routes to ``application``; ``admit`` may wrap their handlers with a check."""
        for method, path, handler in self.routes:
            application.router.add_route(method, path, admit(handler))

    async def close(self) -> None:
        """Hang up every call."""
        for line in list(self._lines.values()):
            await line.close()
        await asyncio.gather(*self._tasks)

    async def _post(self, request: web.Request) -> web.Response:
        if request.content_type != SDP_TYPE:
            raise web.HTTPUnsupportedMediaType
        if self.sessions >= self._sessions:
            await self._clear_lost()
        if self.sessions >= self._sessions:
            self._refused("full")
            raise web.HTTPServiceUnavailable(text="the line is busy", headers={"Retry-After": "10"})
        self._pending += 1
        try:
            return await self._make_call(request)
        finally:
            self._pending -= 1

    async def _renew(self, request: web.Request) -> web.Response:
        """A caller whose path is dead offers another one for its call."""
        if request.content_type != SDP_TYPE:
            raise web.HTTPUnsupportedMediaType
        line = self._lines.get(request.match_info["name"])
        if line is None:
            raise web.HTTPNotFound
        reply = await self._answer(line.renew, await self._read_offer(request))
        return web.Response(status=201, text=reply, content_type=SDP_TYPE)

    async def _clear_lost(self) -> None:
        """End calls whose caller has gone, as this may be the same one."""
        for name, line in list(self._lines.items()):
            if line.is_lost:
                await line.close()
                await asyncio.gather(*(task for task in self._tasks if task.get_name() == name))

    async def _read_offer(self, request: web.Request) -> str:
        """The offer, if it has not been accepted before; otherwise raises the refusal."""
        try:
            body = await asyncio.wait_for(request.read(), self._request_s)
        except asyncio.TimeoutError:
            raise web.HTTPRequestTimeout from None
        offer = body.decode("utf-8", "replace")
        self._take(offer)
        return with_seen_address(offer, request.remote or "")

    async def _answer(self, answer: Callable[[str], Awaitable[str]], offer: str) -> str:
        try:
            return await asyncio.wait_for(answer(offer), self._request_s)
        except LinkError as error:
            self._refused("malformed")
            raise web.HTTPBadRequest(text=str(error)) from None
        except asyncio.TimeoutError:
            raise web.HTTPServiceUnavailable(text="it took too long to answer") from None

    async def _make_call(self, request: web.Request) -> web.Response:
        offer = await self._read_offer(request)
        try:
            line = self._open_line(request.query)
        except CodecError as error:
            logger.warning("a call could not be taken: %s", error)
            raise web.HTTPServiceUnavailable(text=_why_unavailable(error)) from None
        try:
            reply = await self._answer(line.answer, offer)
        except BaseException:
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
        """Raise the refusal of an offer that was accepted before, whoever sends it again."""
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
        except CodecError as error:
            logger.warning("a call ended: %s", error)
        finally:
            del self._lines[name]

    async def _delete(self, request: web.Request) -> web.Response:
        line = self._lines.get(request.match_info["name"])
        if line is None:
            raise web.HTTPNotFound
        await line.close()
        return web.Response(status=200)


def _why_unavailable(error: CodecError) -> str:
    """What a caller may know about why this side cannot talk: no names of devices or files."""
    if not isinstance(error, AudioDeviceError):
        return "the other side cannot open the files that it was told to use"
    device = "speaker" if "speaker" in str(error) else "microphone"
    if str(error).startswith("no "):
        return f"the other side has no {device}"
    return f"the other side cannot open its {device}"
