"""The transport of a WebRTC call: RTP over ICE and DTLS, by aiortc."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from encodec_rt.link import rtp
from encodec_rt.link.peer_transport import PeerTransport
from encodec_rt.link.sdp import Format, refusing
from encodec_rt.voice.packetizer import Outgoing
from encodec_rt.voice.transport import Received, Report


class RtpTransport(PeerTransport):
    """A peer connection that carries our payload in SRTP."""

    def __init__(self, form: Format, ice_servers: Sequence[str] = ()) -> None:
        """As ``PeerTransport``."""
        super().__init__(form, ice_servers)
        self._track = rtp.OutgoingTrack()

    @property
    def dropped(self) -> int:
        """Packets that the network did not take in time."""
        return self._track.dropped

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
        """As ``NegotiatedTransport.offer``."""
        return await self._offer(self.format.describe)

    async def answer(self, offer: str) -> tuple[str, int]:
        """As ``NegotiatedTransport.answer``."""
        with refusing("offer"):
            codebooks = await self._take(self.format.check_remote, offer, "offer")
            return await self._answer(self.format.describe), codebooks

    async def accept(self, answer: str) -> int:
        """As ``NegotiatedTransport.accept``."""
        return await self._take(self.format.check_remote, answer, "answer")

    def send(self, packet: Outgoing) -> None:
        """As ``Transport.send``."""
        self._track.send(packet)

    async def report(self) -> Report | None:
        """As ``Transport.report``."""
        return await rtp.read_report(self._connection)

    async def close(self) -> None:
        """As ``Transport.close``."""
        self._track.stop()
        await super().close()
