"""The transport of a WebRTC call: RTP over ICE and DTLS, by aiortc."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription

from encodec_rt.link import rtp
from encodec_rt.link.ice import parse_ice_server
from encodec_rt.link.sdp import Format, refusing
from encodec_rt.voice.packetizer import Outgoing
from encodec_rt.voice.transport import Received, Report

logger = logging.getLogger(__name__)


class RtpTransport:
    """A peer connection that carries our payload: ``offer`` or ``answer``, then wait for it."""

    def __init__(self, form: Format, ice_servers: Sequence[str] = ()) -> None:
        """To be made inside the event loop; no packet passes before ``open``.

        ``ice_servers`` are as ``parse_ice_server`` takes them; it raises ConfigError for any other.
        """
        self.format = form
        self._track = rtp.OutgoingTrack()
        self._connected, self._ended = asyncio.Event(), asyncio.Event()
        self._failed = False
        known = map(parse_ice_server, ice_servers)
        servers = [RTCIceServer(one.uri, one.username, one.credential) for one in known]
        # Without a list aiortc would ask a public STUN server for this machine's address.
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._connection.on("connectionstatechange", self._on_state)

    @property
    def dropped(self) -> int:
        """Packets that the network did not take in time."""
        return self._track.dropped

    @property
    def failed(self) -> bool:
        """As ``Transport.failed``: no consent came from the other side any more (RFC 7675)."""
        return self._failed

    def open(
        self, on_packet: Callable[[Received], None], on_estimate: Callable[[float], None]
    ) -> None:
        """As ``Transport.open``; before the first description."""
        rtp.attach(
            self._connection,
            self.format,
            self._track,
            on_packet=on_packet,
            on_estimate=on_estimate,
        )

    async def offer(self) -> str:
        """The SDP to send to the other side."""
        await self._connection.setLocalDescription(await self._connection.createOffer())
        return self.format.describe(self._connection.localDescription.sdp)

    async def answer(self, offer: str) -> tuple[str, int]:
        """The SDP to send back for ``offer``, and how many codebooks the other side takes.

        Raises LinkError for an offer that cannot be met.
        """
        with refusing("offer"):
            codebooks = await self._take(offer, "offer")
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        return self.format.describe(self._connection.localDescription.sdp), codebooks

    async def accept(self, answer: str) -> int:
        """Take the other side's SDP; how many codebooks it takes. Raises LinkError."""
        with refusing("answer"):
            return await self._take(answer, "answer")

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

    def send(self, packet: Outgoing) -> None:
        """As ``Transport.send``."""
        self._track.send(packet)

    async def report(self) -> Report | None:
        """As ``Transport.report``."""
        return await rtp.read_report(self._connection)

    async def close(self) -> None:
        """As ``Transport.close``."""
        self._ended.set()
        self._track.stop()
        await self._connection.close()

    async def _take(self, description: str, kind: str) -> int:
        codebooks = self.format.check_remote(description)
        await self._connection.setRemoteDescription(
            RTCSessionDescription(sdp=description, type=kind)
        )
        return codebooks

    def _on_state(self) -> None:
        state = self._connection.connectionState
        logger.info("connection %s", state)
        if state == "connected":
            self._connected.set()
        elif state in ("failed", "closed"):
            self._failed |= state == "failed"
            self._ended.set()
