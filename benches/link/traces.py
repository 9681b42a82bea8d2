"""Seeded packet traces for jitter buffers, and playing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from encodec_rt.bitstream.packet import Packet
from encodec_rt.netsim.impairment import Channel, PathProfile
from encodec_rt.voice.jitter import JitterBuffer, PlayoutSlot

HOP = 320
HOP_S = HOP / 24_000
SSRC = 7


@dataclass(frozen=True)
class Sent:
    """A packet in transit: its frame, and when it was sent and arrives."""

    arrival_s: float
    sent_s: float
    index: int
    sequence: int


@dataclass
class Outcome:
    """What was played: the playout time of each frame number, and the slot of each hop."""

    played_s: dict[int, float] = field(default_factory=dict)
    slots: list[tuple[float, PlayoutSlot]] = field(default_factory=list)

    def delays_ms(self, packets: list[Sent]) -> NDArray[np.float64]:
        """For each frame played, the time in ms from sending to playout."""
        sent = {packet.index: packet.sent_s for packet in packets}
        return np.array([(at - sent[i]) * 1e3 for i, at in self.played_s.items() if i in sent])

    def late_share(self, packets: list[Sent]) -> float:
        """The share of arrived packets that were not played in time."""
        arrived = {packet.index for packet in packets}
        return 1 - len(arrived & set(self.played_s)) / len(arrived)


def trace(network: PathProfile, seconds: float, *, seed: int = 0, ppm: float = 0.0) -> list[Sent]:
    """One packet per frame, sorted by arrival; the sender's clock is ``ppm`` too fast."""
    channel = Channel(network, seed)
    packets = []
    for index in range(int(seconds / HOP_S)):
        sent_s = index * HOP_S / (1 + ppm * 1e-6)
        packets += [Sent(at, sent_s, index, index & 0xFFFF) for at in channel.send(sent_s, 80)]
    return sorted(packets, key=lambda packet: packet.arrival_s)


def frame(index: int, codebooks: int = 2) -> Packet:
    """A packet of one frame whose codes are its number, modulo 1024."""
    return Packet(np.full((1, codebooks), index % 1024, np.uint16))


def ticks(packets: list[Sent]) -> Iterator[tuple[float, list[Sent]]]:
    """Playout times, a hop apart, each with the packets that arrived since the previous one.

    From the first arrival to half a second after the last.
    """
    now_s, waiting = packets[0].arrival_s, 0
    while now_s < packets[-1].arrival_s + 0.5:
        come = []
        while waiting < len(packets) and packets[waiting].arrival_s <= now_s:
            come.append(packets[waiting])
            waiting += 1
        yield now_s, come
        now_s += HOP_S


def play(
    packets: list[Sent],
    buffer: JitterBuffer | None = None,
    *,
    quiet: Callable[[float], bool] = lambda now_s: False,
    first_timestamp: int = 0,
) -> Outcome:
    """Play a trace through our buffer."""
    buffer = buffer or JitterBuffer()
    outcome = Outcome()
    first = packets[0].index
    for now_s, come in ticks(packets):
        for packet in come:
            buffer.put(
                frame(packet.index),
                sequence=packet.sequence,
                timestamp=first_timestamp + packet.index * HOP & 0xFFFFFFFF,
                ssrc=SSRC,
                now_s=packet.arrival_s,
            )
        slot = buffer.get(now_s, quiet=quiet(now_s))
        outcome.slots.append((now_s, slot))
        if slot.kind == "frame":
            outcome.played_s[first + slot.index] = now_s
    return outcome
