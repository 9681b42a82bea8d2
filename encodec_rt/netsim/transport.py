"""A path between two voice paths in one event loop, which treats packets as a profile says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from encodec_rt.netsim.impairment import Channel, PathProfile
from encodec_rt.voice.bitrate import HEADER_BYTES
from encodec_rt.voice.packetizer import Outgoing
from encodec_rt.voice.transport import Received, Report


class SimulatedTransport:
    """One end of a path in memory: a ``Transport``; ``pair`` makes both.

    It gets no bandwidth estimate, and reports what its own channel lost.
    """

    def __init__(self, profile: PathProfile, *, ssrc: int, seed: int) -> None:
        """The outgoing path of this end, to be joined to another's; use ``pair``."""
        self._channel = Channel(profile, seed)
        self._ssrc = ssrc
        self._other: SimulatedTransport | None = None
        self._on_packet: Callable[[Received], None] | None = None
        self._ended = asyncio.Event()
        self._sent = self._bytes = 0

    @staticmethod
    def pair(
        out: PathProfile, back: PathProfile, *, seed: int = 0
    ) -> tuple[SimulatedTransport, SimulatedTransport]:
        """Two ends, of which the first sends by ``out`` and the second by ``back``."""
        one = SimulatedTransport(out, ssrc=1, seed=seed)
        other = SimulatedTransport(back, ssrc=2, seed=seed + 1)
        one._other, other._other = other, one
        return one, other

    @property
    def dropped(self) -> int:
        """Packets that the path did not accept in time: none; it accepts all, and may lose them."""
        return 0

    @property
    def failed(self) -> bool:
        """Whether the path broke: never."""
        return False

    def open(
        self, on_packet: Callable[[Received], None], on_estimate: Callable[[float], None]
    ) -> None:
        """As ``Transport.open``."""
        self._on_packet = on_packet

    async def wait_connected(self) -> bool:
        """As ``Transport.wait_connected``: at once, unless it was closed."""
        return not self._ended.is_set()

    async def wait_ended(self) -> None:
        """As ``Transport.wait_ended``."""
        await self._ended.wait()

    def send(self, packet: Outgoing) -> None:
        """Give the packet to the channel, which says when it arrives."""
        assert self._other is not None, "an end is one of a pair"
        loop = asyncio.get_running_loop()
        received = Received(packet.payload, self._sent & 0xFFFF, packet.timestamp, self._ssrc)
        size = HEADER_BYTES + len(packet.payload)
        self._sent += 1
        self._bytes += size
        for at_s in self._channel.send(loop.time(), size):
            loop.call_at(at_s, self._other._deliver, received)

    async def report(self) -> Report | None:
        """What the other end would report of this one's packets."""
        if not self._sent or self._other is None:
            return None
        delays_ms = self._channel.network.delay_ms + self._other._channel.network.delay_ms
        return Report(
            fraction_lost=self._channel.lost / self._channel.sent,
            packets_lost=self._channel.lost,
            round_trip_s=delays_ms / 1000,
            packets_sent=self._sent,
            bytes_sent=self._bytes,
        )

    async def close(self) -> None:
        """End the path at both ends."""
        self._ended.set()
        if self._other is not None:
            self._other._ended.set()

    def _deliver(self, received: Received) -> None:
        if self._on_packet is not None and not self._ended.is_set():
            self._on_packet(received)
