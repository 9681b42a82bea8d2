"""The seam between a voice path and what carries its packets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from encodec_rt.voice.packetizer import Outgoing


@dataclass(frozen=True)
class Received:
    """A packet as it came; ``sequence`` and ``timestamp`` are RTP's, of 16 and 32 bits."""

    payload: bytes
    sequence: int
    timestamp: int
    ssrc: int


@dataclass(frozen=True)
class Report:
    """What the other side last reported of what it was sent."""

    fraction_lost: float
    packets_lost: int
    round_trip_s: float | None
    packets_sent: int
    bytes_sent: int


class Transport(Protocol):
    """A path to the other side that may lose, delay and reorder packets.

    All calls come from the thread of one event loop, and so do both callbacks.
    """

    @property
    def dropped(self) -> int:
        """Packets that the path did not take in time."""

    def open(
        self, on_packet: Callable[[Received], None], on_estimate: Callable[[float], None]
    ) -> None:
        """From now on hand over each packet that comes, and the bandwidth in bits per second that
        the path bears whenever it is told.
        """

    async def wait_connected(self) -> bool:
        """Wait until packets can pass; False if it has come to nothing."""

    async def wait_ended(self) -> None:
        """Wait until the path is closed, by either side."""

    def send(self, packet: Outgoing) -> None:
        """Send a packet with its timestamp and marker, or drop the oldest that waits."""

    async def report(self) -> Report | None:
        """What the other side last reported, or None before its first report."""

    async def close(self) -> None:
        """Close the path. Harmless when repeated."""
