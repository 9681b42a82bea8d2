"""Where two pages find each other: a WebSocket that passes messages between them.

A caller without a page, such as ``link call``, can ring the waiting one.
"""

from __future__ import annotations

import asyncio
import json
from typing import Protocol

from aiohttp import WSCloseCode, WSMsgType, web

from encodec_rt.errors import LinkError
from encodec_rt.link.credentials import is_authorized
from encodec_rt.link.sdp import is_for_channel

MAX_MESSAGE_BYTES = 64 * 1024
MAX_MESSAGES = 8
"""Per page: a description, and room for more."""
HELLO_S = 10.0
WAIT_S = 540.0
"""How long a page may wait for another; less than the server lets a connection last."""
PING_S = 20.0
"""How often a silent page is asked whether it is there. Browsers answer by themselves, even for a
page in the background; one that then sends nothing for half as long has gone away."""
BUSY, REFUSED, ALONE = 4000, 4001, 4002


class _Occupant(Protocol):
    """Someone in the room, who can be sent messages."""

    async def send_str(self, data: str, /) -> None: ...


class _Caller:
    """Someone who rings, and waits for the page's answer."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def send_str(self, data: str, /) -> None:
        """Take the page's description or refusal; anything else is ignored."""
        try:
            said = json.loads(data)
            refused, description = said.get("refused"), said.get("description") or {}
            answer = description.get("sdp")
        except (ValueError, AttributeError, RecursionError):
            return
        if self.answer.done():
            return
        if isinstance(refused, str):
            self.answer.set_exception(LinkError(refused[:300]))
        elif isinstance(answer, str):
            self.answer.set_result(answer)


class Meeting:
    """One room for two. The second to arrive makes the offer; then both leave."""

    def __init__(self, token: str | None) -> None:
        """``token`` is required in the first message, as a browser cannot send a header here."""
        self._token = token
        self._inside: list[_Occupant] = []

    @property
    def waiting(self) -> bool:
        """Whether a page is waiting for another."""
        return len(self._inside) == 1

    async def join(self, request: web.Request) -> web.WebSocketResponse:
        """Admit a page, and pass on its messages."""
        socket = web.WebSocketResponse(
            max_msg_size=MAX_MESSAGE_BYTES, heartbeat=PING_S, compress=False, timeout=2.0
        )
        await socket.prepare(request)
        if not await self._is_admitted(socket):
            await socket.close(code=REFUSED, message=b"the token is missing or wrong")
            return socket
        if len(self._inside) >= 2:
            await socket.close(code=BUSY, message=b"two others are in a call; try again later")
            return socket
        self._inside.append(socket)
        code, reason = int(WSCloseCode.OK), b""
        try:
            if len(self._inside) == 2:
                for role, member in zip(("answer", "offer"), self._inside, strict=True):
                    await member.send_str(json.dumps({"role": role}))
            await asyncio.wait_for(self._hand_on(socket), WAIT_S)
        except asyncio.TimeoutError:
            code, reason = ALONE, b"nobody else came; call again"
        except ConnectionError:
            pass
        finally:
            self._inside.remove(socket)
        await socket.close(code=code, message=reason)
        return socket

    async def ring(self, offer: str) -> str:
        """The answer to ``offer`` of the page that waits.

        Raises LinkError if none waits, if it refuses or leaves, or if the offer has no data
        channel.
        """
        if not is_for_channel(offer):
            raise LinkError("a page takes calls over a data channel only; call with --channel")
        if not self.waiting:
            raise LinkError(
                "no page waits for a call; open the page and choose 'Call another browser'"
                if not self._inside
                else "two others are in a call; try again later"
            )
        caller, page = _Caller(), self._inside[0]
        self._inside.append(caller)
        try:
            await page.send_str(json.dumps({"role": "answer"}))
            described = {"description": {"type": "offer", "sdp": offer}}
            await page.send_str(json.dumps(described))
            return await caller.answer
        except ConnectionError:
            raise LinkError("the page has gone away") from None
        finally:
            self._inside.remove(caller)

    async def close(self) -> None:
        """Close everybody's connection."""
        for member in list(self._inside):
            if isinstance(member, web.WebSocketResponse):
                await member.close(message=b"the server ends")

    async def _is_admitted(self, socket: web.WebSocketResponse) -> bool:
        try:
            hello = json.loads(await asyncio.wait_for(socket.receive_str(), HELLO_S))
            given = f"Bearer {hello.get('token')}"
        except (asyncio.TimeoutError, TypeError, ValueError, AttributeError, RecursionError):
            return False
        return self._token is None or is_authorized(given, self._token)

    async def _hand_on(self, socket: web.WebSocketResponse) -> None:
        for _ in range(MAX_MESSAGES):
            message = await socket.receive()
            if message.type != WSMsgType.TEXT:
                return
            for other in self._inside:
                if other is not socket:
                    await other.send_str(message.data)


class RungCall:
    """A call to a page, as signalling sees it: it continues without this server."""

    is_lost = False

    def __init__(self, meeting: Meeting) -> None:
        """To the page that waits in ``meeting``."""
        self._meeting = meeting

    async def answer(self, offer: str) -> str:
        """The page's answer. Raises LinkError."""
        return await self._meeting.ring(offer)

    async def renew(self, offer: str) -> str:
        """Raises LinkError: the page has left the room."""
        raise LinkError("a page that was called cannot change to another path")

    async def run(self) -> None:
        """Nothing is left to do."""

    async def close(self) -> None:
        """Nothing is held."""
