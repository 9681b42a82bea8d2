"""What the WebRTC transports share: a peer connection, negotiated by SDP, and its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription

from encodec_rt.link.ice import parse_ice_server
from encodec_rt.link.sdp import Format, refusing
from encodec_rt.voice.transport import Transport

logger = logging.getLogger(__name__)


class NegotiatedTransport(Transport, Protocol):
    """A transport of a call that two sides agree on by SDP."""

    async def offer(self) -> str:
        """The SDP to send to the other side."""

    async def answer(self, offer: str) -> tuple[str, int]:
        """The SDP to send back for ``offer``, and how many codebooks the other side takes.

        Raises LinkError for an offer that cannot be accepted.
        """

    async def accept(self, answer: str) -> int:
        """Take the other side's SDP; how many codebooks it takes. Raises LinkError."""


class PeerTransport:
    """A peer connection: ``offer`` or ``answer``, then wait for it."""

    def __init__(self, form: Format, ice_servers: Sequence[str] = ()) -> None:
        """Create it inside the event loop; no packet passes before ``open``.

        ``ice_servers`` are as ``parse_ice_server`` takes them; it raises ConfigError for any other.
        """
        self.format = form
        self._connected, self._ended = asyncio.Event(), asyncio.Event()
        self._failed = False
        known = map(parse_ice_server, ice_servers)
        servers = [RTCIceServer(one.uri, one.username, one.credential) for one in known]
        # Without a list aiortc would ask a public STUN server for this machine's address.
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._connection.on("connectionstatechange", self._on_state)

    @property
    def failed(self) -> bool:
        """As ``Transport.failed``: no consent came from the other side any more (RFC 7675)."""
        return self._failed

    async def wait_connected(self) -> bool:
        """As ``Transport.wait_connected``."""
        waits = [asyncio.ensure_future(each.wait()) for each in (self._connected, self._ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self._connected.is_set() and not self._ended.is_set()

    async def wait_ended(self) -> None:
        """As ``Transport.wait_ended``."""
        await self._ended.wait()

    async def close(self) -> None:
        """As ``Transport.close``."""
        self._ended.set()
        await self._connection.close()

    async def _offer(self, describe: Callable[[str], str]) -> str:
        await self._connection.setLocalDescription(await self._connection.createOffer())
        return describe(self._connection.localDescription.sdp)

    async def _answer(self, describe: Callable[[str], str]) -> str:
        await self._connection.setLocalDescription(await self._connection.createAnswer())
        return describe(self._connection.localDescription.sdp)

    async def _take(self, check: Callable[[str], int], description: str, kind: str) -> int:
        with refusing(kind):
            codebooks = check(description)
            await self._connection.setRemoteDescription(
                RTCSessionDescription(sdp=description, type=kind)
            )
        return codebooks

    def _on_connected(self) -> None:
        self._connected.set()

    def _on_state(self) -> None:
        state = self._connection.connectionState
        logger.info("connection %s", state)
        if state == "connected":
            self._on_connected()
        elif state in ("failed", "closed"):
            self._failed |= state == "failed"
            self._ended.set()
