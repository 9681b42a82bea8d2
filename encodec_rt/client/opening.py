"""The opening of a stream, and what comes through it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

from encodec_rt.errors import LinkError
from encodec_rt.server.protocol import MAX_MESSAGE_BYTES, StreamRequest, parse_event
from encodec_rt.types import Audio, Codes

NOTHING_KEPT = 409
FINAL = {400, 401, 403, 404, NOTHING_KEPT}
"""Answers that no further try changes."""
WELCOME_S = 10.0


@dataclass(frozen=True, eq=False)
class ServedFrame:
    """What came of a frame: codes uint16 [Q], or audio float32 [n] or [channels, n]."""

    index: int
    codes: Codes | None = None
    audio: Audio | None = None


@dataclass(frozen=True)
class Dropped:
    """Frames that are gone, because the server or its client was too slow."""

    where: Literal["in", "out"]
    first: int
    count: int


class Refused(LinkError):
    """The server answered, and it was no."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the server refused the stream ({status})")
        self.status = status


async def open_socket(
    session: aiohttp.ClientSession,
    url: str,
    request: StreamRequest,
    protocols: Sequence[str],
    headers: Mapping[str, str],
    context: ssl.SSLContext | aiohttp.Fingerprint | None,
) -> tuple[aiohttp.ClientWebSocketResponse, dict[str, Any]]:
    """A WebSocket and its welcome. Raises LinkError, and Refused where the server said so."""
    try:
        socket = await session.ws_connect(
            url,
            params=request.to_query(),
            protocols=protocols,
            headers=headers,
            ssl=context if context is not None else True,
            # A reply that comes too late would hide why the server closed.
            autoclose=False,
            max_msg_size=2 * MAX_MESSAGE_BYTES,
            timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
        )
        first = await asyncio.wait_for(socket.receive(), WELCOME_S)
    except aiohttp.WSServerHandshakeError as error:
        raise Refused(error.status) from error
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        raise LinkError(f"{url} cannot be reached: {error}") from error
    if first.type != aiohttp.WSMsgType.TEXT:
        raise LinkError(f"{url} closed the stream at once")
    return socket, parse_event(first.data)
