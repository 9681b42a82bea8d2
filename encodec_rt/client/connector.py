"""How a stream connects and reconnects: with retries, and elsewhere if a placer says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from encodec_rt.client.opening import (
    FINAL,
    NOTHING_KEPT,
    Place,
    Refused,
    ask_placer,
    open_socket,
)
from encodec_rt.errors import LinkError
from encodec_rt.server.protocol import RESUME, SUBPROTOCOL, TICKET, StreamRequest


class Connector:
    """Opens WebSockets to one server, or to those that a placer names."""

    def __init__(
        self,
        place: Place,
        *,
        placed: bool,
        token: str | None,
        ticket: str | None,
        retry_s: float,
    ) -> None:
        """``placed`` says that ``place`` is a placer's address. A full server is retried too."""
        self._place, self._placed, self._retry_s = place, placed, retry_s
        self._headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        self._ticket = ticket
        self._last = ""
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Call this inside the event loop, before anything else."""
        self._session = aiohttp.ClientSession()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def connect(
        self,
        wanted: Callable[[], tuple[StreamRequest, str | None]],
        begin_again: Callable[[], bool],
    ) -> tuple[aiohttp.ClientWebSocketResponse, dict[str, Any]]:
        """A WebSocket and its welcome. Raises LinkError once ``retry_s`` are over, or if no further
        try would change anything.

        ``wanted`` says before each attempt what to ask for, and the token of a session to resume.
        If nothing of it was saved, ``begin_again`` forgets it, if the stream can start over.
        """
        loop = asyncio.get_running_loop()
        until_s, wait_s = loop.time() + self._retry_s, 0.1
        while True:
            request, resume = wanted()
            try:
                return await self._connect_once(request, resume)
            except LinkError as error:
                status = error.status if isinstance(error, Refused) else None
                again = status == NOTHING_KEPT and resume is not None and begin_again()
                if (status in FINAL and not again) or loop.time() + wait_s > until_s:
                    raise
            await asyncio.sleep(wait_s)
            wait_s = min(2.0, 1.5 * wait_s)

    async def _connect_once(
        self, request: StreamRequest, resume: str | None
    ) -> tuple[aiohttp.ClientWebSocketResponse, dict[str, Any]]:
        assert self._session is not None, "the connector was opened"
        protocols = [SUBPROTOCOL]
        protocols += [TICKET + self._ticket] if self._ticket is not None else []
        protocols += [RESUME + resume] if resume is not None else []
        place = self._place
        if self._placed:
            place = await ask_placer(self._session, place, self._headers, self._last)
            _check_secrecy(self._place.url, place.url)
        opened = await open_socket(self._session, place, request, protocols, self._headers)
        self._last = place.url
        return opened


def _check_secrecy(placer: str, worker: str) -> None:
    """Raise LinkError if a secret would be sent to a worker unencrypted."""
    if urlsplit(placer).scheme == "https" and urlsplit(worker).scheme != "https":
        raise LinkError(f"the placer uses https, but the worker that it names does not: {worker}")
