"""The transport that web pages use too: RTP packets as messages of a data channel, by aiortc."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence

from aiortc import RTCDataChannel

from encodec_rt.errors import LinkError, PacketError
from encodec_rt.link.hardening import harden_sctp
from encodec_rt.link.peer_transport import PeerTransport
from encodec_rt.link.rtp_session import RtpSession
from encodec_rt.link.sdp import Format, refusing
from encodec_rt.voice.packetizer import Outgoing
from encodec_rt.voice.transport import Received, Report

logger = logging.getLogger(__name__)

LABEL = "voice"
MAX_BUFFERED_BYTES = 2048
"""What may wait for SCTP, about 0.3 s; beyond it the path is congested and more would be late."""
REPORT_S = 1.0


class ChannelTransport(PeerTransport):
    """A peer connection with an unordered data channel without retransmissions.

    It gives no estimate of the bandwidth: the round trip shows queues.
    """

    def __init__(self, form: Format, ice_servers: Sequence[str] = ()) -> None:
        """As ``PeerTransport``."""
        super().__init__(form, ice_servers)
        self.dropped = 0
        self.refused = 0
        """Messages that are neither packets nor reports."""
        self._channel: RTCDataChannel | None = None
        self._on_packet: Callable[[Received], None] | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._session = RtpSession(
            form.rate_hz,
            ssrc=secrets.randbits(32),
            sequence=secrets.randbits(16),
            timestamp=secrets.randbits(32),
        )
        self._connection.on("datachannel", self._on_channel)

    def open(
        self, on_packet: Callable[[Received], None], on_estimate: Callable[[float], None]
    ) -> None:
        """As ``Transport.open``."""
        self._on_packet = on_packet

    async def offer(self) -> str:
        """As ``NegotiatedTransport.offer``."""
        channel = self._connection.createDataChannel(
            LABEL, ordered=False, maxRetransmits=0, protocol=self.format.protocol
        )
        harden_sctp(self._connection.sctp)
        channel.on("open", lambda: self._use(channel))
        return await self._offer(self.format.describe_channel)

    async def answer(self, offer: str) -> tuple[str, int]:
        """As ``NegotiatedTransport.answer``."""
        with refusing("offer"):
            codebooks = await self._take(self.format.check_channel, offer, "offer")
            harden_sctp(self._connection.sctp)
            return await self._answer(self.format.describe_channel), codebooks

    async def accept(self, answer: str) -> int:
        """As ``NegotiatedTransport.accept``."""
        return await self._take(self.format.check_channel, answer, "answer")

    def send(self, packet: Outgoing) -> None:
        """As ``Transport.send``; packets are dropped while too much waits."""
        if not self._send(self._session.write(packet)):
            self.dropped += 1

    async def report(self) -> Report | None:
        """As ``Transport.report``."""
        return self._session.report

    async def close(self) -> None:
        """As ``Transport.close``."""
        if self._reporting is not None:
            self._reporting.cancel()
        await super().close()

    def _on_connected(self) -> None:
        """Packets pass once the channel is open, which takes longer."""

    def _on_channel(self, channel: RTCDataChannel) -> None:
        try:
            if self._channel is not None:
                raise LinkError("a second data channel")
            self.format.check_protocol(channel.protocol)
            if channel.ordered or channel.maxRetransmits != 0:
                raise LinkError("a data channel that is ordered or retransmits")
        except LinkError as error:
            logger.warning("the other side opened %s", error)
            channel.close()
            return
        self._use(channel)

    def _use(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        channel.on("message", self._on_message)
        channel.on("close", self._ended.set)
        self._reporting = asyncio.ensure_future(self._report_regularly())
        self._connected.set()

    def _on_message(self, message: bytes | str) -> None:
        try:
            packet = self._session.read(message, asyncio.get_running_loop().time())
        except PacketError as error:
            self.refused += 1
            logger.debug("%s", error)
            return
        if packet is not None and self._on_packet is not None:
            self._on_packet(packet)

    def _send(self, message: bytes) -> bool:
        channel = self._channel
        if channel is None or channel.readyState != "open":
            return False
        if channel.bufferedAmount > MAX_BUFFERED_BYTES:
            return False
        channel.send(message)
        return True

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self._send(self._session.write_report(asyncio.get_running_loop().time()))
