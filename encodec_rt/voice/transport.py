"""The interfaces of a voice path: what carries packets, and where audio comes from and goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from encodec_rt.types import Audio
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
    """What the other side last reported about what it was sent."""

    fraction_lost: float
    packets_lost: int
    round_trip_s: float | None
    packets_sent: int
    bytes_sent: int


def remote_statistics(report: Report | None) -> dict[str, object]:
    """RTCRemoteInboundRtpStreamStats of W3C's webrtc-stats, as far as was reported."""
    known: dict[str, object] = {"type": "remote-inbound-rtp", "kind": "audio"}
    if report is not None:
        known |= {
            "packetsLost": report.packets_lost,
            "fractionLost": report.fraction_lost,
            "roundTripTime": report.round_trip_s,
        }
    return known


class Transport(Protocol):
    """A path to the other side that may lose, delay and reorder packets.

    All calls come from the thread of one event loop, and so do both callbacks.
    """

    @property
    def dropped(self) -> int:
        """Packets that the path did not accept in time."""

    @property
    def failed(self) -> bool:
        """Whether it ended because the path broke, and not because one side hung up."""

    def open(
        self, on_packet: Callable[[Received], None], on_estimate: Callable[[float], None]
    ) -> None:
        """From now on hand over each packet that comes, and the bandwidth in bits per second that
        the path bears whenever it is told.
        """

    async def wait_connected(self) -> bool:
        """Wait until packets can pass; False if the path has failed."""

    async def wait_ended(self) -> None:
        """Wait until the path is closed, by either side."""

    def send(self, packet: Outgoing) -> None:
        """Send a packet with its timestamp and marker, or drop it if the path cannot take it."""

    async def report(self) -> Report | None:
        """What the other side last reported, or None before its first report."""

    async def close(self) -> None:
        """Close the path. Repeating this is harmless."""


class CallSource(Protocol):
    """Gives a hop of audio whenever its clock has one."""

    async def read(self) -> Audio | None:
        """The next hop, float32 [channels, hop], or None when there is no more."""

    def close(self) -> None:
        """Release the device or file."""


class CallSink(Protocol):
    """Takes a hop of audio whenever its clock wants one."""

    async def ready(self) -> float:
        """Return when the next hop is wanted: for which time, on the event loop's clock.

        That time advances by one hop per call, however late this machine is.
        """

    def write(self, audio: Audio) -> None:
        """Take a hop, float32 [hop] or [channels, hop]."""

    def close(self) -> None:
        """Keep what was heard, and release the device or file."""
