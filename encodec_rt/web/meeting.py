"""Where two pages find each other: a WebSocket that hands one's messages to the other."""

from __future__ import annotations

import asyncio
import json

from aiohttp import WSMsgType, web

from encodec_rt.link.credentials import is_authorized

MAX_MESSAGE_BYTES = 64 * 1024
MAX_MESSAGES = 8
"""From one page: a description, and room for more."""
HELLO_S = 10.0
WAIT_S = 600.0
"""How long a page may wait for another."""
BUSY, REFUSED = 4000, 4001


class Meeting:
    """One room of two. The second to come makes the offer; then both go away."""

    def __init__(self, token: str | None) -> None:
        """``token`` is asked for in the first message, as a browser can send no header here."""
        self._token = token
        self._inside: list[web.WebSocketResponse] = []

    async def join(self, request: web.Request) -> web.WebSocketResponse:
        """Let a page in, and hand on what it says."""
        socket = web.WebSocketResponse(
            max_msg_size=MAX_MESSAGE_BYTES, heartbeat=20.0, compress=False, timeout=2.0
        )
        await socket.prepare(request)
        if not await self._is_admitted(socket):
            await socket.close(code=REFUSED, message=b"the token is missing or wrong")
            return socket
        if len(self._inside) >= 2:
            await socket.close(code=BUSY, message=b"two others are in a call; try again later")
            return socket
        self._inside.append(socket)
        try:
            if len(self._inside) == 2:
                for role, member in zip(("answer", "offer"), self._inside, strict=True):
                    await member.send_json({"role": role})
            await asyncio.wait_for(self._hand_on(socket), WAIT_S)
        except (asyncio.TimeoutError, ConnectionError):
            pass
        finally:
            self._inside.remove(socket)
        await socket.close()
        return socket

    async def close(self) -> None:
        """Send everybody away."""
        for socket in list(self._inside):
            await socket.close(message=b"the server ends")

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
