"""One direction of a call over a modelled network, on a virtual clock.

Everything except sockets and threads is the code of a real call, and the same seed gives the same
call.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from encodec_rt.netsim.impairment import Channel
from encodec_rt.types import Audio, Codes
from encodec_rt.voice.bitrate import HEADER_BYTES, PacketPlan, RateController
from encodec_rt.voice.jitter import PlayoutSlot
from encodec_rt.voice.packetizer import Outgoing
from encodec_rt.voice.receiver import Receiver
from encodec_rt.voice.sender import Sender

REPORT_S = 1.0
"""How often the receiver reports what it lost, as RTCP does."""
TAIL_S = 0.5
SSRC = 1


class BandwidthEstimator(Protocol):
    """The receiver's estimate of the bandwidth, as ``link.bandwidth`` makes it."""

    def add(
        self, arrival_time_ms: int, abs_send_time: int, payload_size: int, ssrc: int
    ) -> tuple[int, list[int]] | None:
        """Count a packet; from time to time returns the bandwidth in bit/s, and whom it is for."""


@dataclass(frozen=True, eq=False)
class Hop:
    """One hop of playout: when it began, what the jitter buffer gave, and what was heard."""

    at_s: float
    slot: PlayoutSlot
    audio: Audio


@dataclass(frozen=True, eq=False)
class SimulatedCall:
    """What the far end heard, and when.

    ``audio`` [n] or [channels, n] begins with the first frame played, and ``hops`` are its hops.
    ``delays_ms`` are those of the frames played, from the end of a frame at the sender to its
    playout. ``plans`` are the times at which the plan changed, and what to; ``transits_ms`` are
    when packets arrived, in seconds, and how long each took.
    """

    audio: Audio
    hops: list[Hop]
    delays_ms: list[float]
    wire_bytes: int
    plans: list[tuple[float, PacketPlan]]
    transits_ms: list[tuple[float, float]]

    @property
    def kinds(self) -> list[str]:
        """What each hop was, by the names of ``PlayoutSlot``."""
        return [hop.slot.kind for hop in self.hops]


@dataclass
class _Feedback:
    """What the receiver tells the sender, delayed by the return path."""

    controller: RateController
    channel: Channel
    estimator: BandwidthEstimator | None
    on_transit: Callable[[float, float], None] | None
    transit_s: float = 0.0
    next_report_s: float = REPORT_S
    sent: int = 0
    lost: int = 0
    estimates: list[tuple[float, int]] = field(default_factory=list)

    def see(self, packet: Outgoing, sent_s: float, at_s: float) -> None:
        """A packet arrived."""
        self.transit_s = at_s - sent_s
        if self.on_transit is not None:
            self.on_transit(at_s, self.transit_s * 1000)
        if self.estimator is None:
            return
        estimate = self.estimator.add(
            arrival_time_ms=int(at_s * 1000),
            # Seconds in 24 bits, of which 18 are behind the point.
            abs_send_time=int(sent_s * (1 << 18)) & 0xFFFFFF,
            payload_size=len(packet.payload),
            ssrc=SSRC,
        )
        if estimate is not None:
            self.estimates.append((at_s + self._back_s, estimate[0]))

    def deliver(self, now_s: float) -> None:
        """Tell the sender what has arrived by now."""
        while self.estimates and self.estimates[0][0] <= now_s:
            self.controller.on_estimate(self.estimates.pop(0)[1], now_s)
        if now_s < self.next_report_s:
            return
        sent, lost = self.channel.sent - self.sent, self.channel.lost - self.lost
        self.sent, self.lost = self.channel.sent, self.channel.lost
        self.controller.on_report(lost / max(1, sent), self.transit_s + self._back_s, now_s)
        self.next_report_s += REPORT_S

    @property
    def _back_s(self) -> float:
        return self.channel.network.delay_ms / 1000


@dataclass
class _Wire:
    """Packets on their way, by time of arrival."""

    channel: Channel
    feedback: _Feedback
    sent: int = 0
    wire_bytes: int = 0
    queue: list[tuple[float, int, int, float, Outgoing]] = field(default_factory=list)

    def send(self, packet: Outgoing, now_s: float) -> None:
        """Give a packet to the network."""
        size = HEADER_BYTES + len(packet.payload)
        self.wire_bytes += size
        for copy, at_s in enumerate(self.channel.send(now_s, size)):
            heapq.heappush(self.queue, (at_s, self.sent, copy, now_s, packet))
        self.sent += 1

    def deliver(self, listener: Receiver, until_s: float) -> None:
        """Give the receiver what has arrived."""
        while self.queue and self.queue[0][0] <= until_s:
            at_s, sequence, _, sent_s, packet = heapq.heappop(self.queue)
            self.feedback.see(packet, sent_s, at_s)
            listener.receive(
                packet.payload,
                sequence=sequence & 0xFFFF,
                timestamp=packet.timestamp,
                ssrc=SSRC,
                now_s=at_s,
            )


class Direction:
    """One direction of a call, hop by hop; it holds on to nothing that grows with the call."""

    def __init__(
        self,
        frames: Iterable[tuple[Codes, bool]],
        channel: Channel,
        listener: Receiver,
        *,
        controller: RateController,
        drift_ppm: float = 0.0,
        estimator: BandwidthEstimator | None = None,
        on_plan: Callable[[float, PacketPlan], None] | None = None,
        on_transit: Callable[[float, float], None] | None = None,
    ) -> None:
        """``frames`` are codes [Q] and whether they hold speech; each is requested when it is due.

        ``drift_ppm`` is how much faster the sender's clock runs than the receiver's. ``on_plan`` is
        told when the plan changes, ``on_transit`` when a packet arrives and its milliseconds on
        the way.
        """
        self._frames = iter(frames)
        self._listener = listener
        self._feedback = _Feedback(controller, channel, estimator, on_transit)
        self._wire = _Wire(channel, self._feedback)
        self._hop_s = listener.config.hop_length / listener.config.sampling_rate
        self._sender_hop_s = self._hop_s / (1 + drift_ppm * 1e-6)
        self._sender = Sender(listener.config, controller, self._wire.send, on_plan=on_plan)

    @property
    def wire_bytes(self) -> int:
        """What was sent so far, headers included."""
        return self._wire.wire_bytes

    def delay_ms(self, hop: Hop) -> float:
        """From the end of a hop's frame at the sender to its playout."""
        return (hop.at_s - (hop.slot.index + 1) * self._sender_hop_s) * 1000

    def run(self) -> Iterator[Hop]:
        """The hops from the sender's first frame to ``TAIL_S`` after its last."""
        sent, tick, end_s = 0, 0, float("inf")
        while (tick_s := tick * self._hop_s) < end_s:
            while end_s == float("inf") and (sent + 1) * self._sender_hop_s <= tick_s:
                frame = next(self._frames, None)
                if frame is None:
                    end_s = sent * self._sender_hop_s + TAIL_S
                    break
                sent += 1
                self._send(*frame, sent * self._sender_hop_s)
            self._wire.deliver(self._listener, tick_s)
            planned = self._listener.take(tick_s)
            yield Hop(tick_s, planned.slot, self._listener.render(planned))
            tick += 1

    def _send(self, codes: Codes, active: bool, now_s: float) -> None:
        self._feedback.deliver(now_s)
        self._sender.push(codes, now_s, active=active)


def simulate(
    codes: Codes,
    channel: Channel,
    listener: Receiver,
    *,
    controller: RateController,
    active: Sequence[bool] | None = None,
    drift_ppm: float = 0.0,
    estimator: BandwidthEstimator | None = None,
) -> SimulatedCall:
    """Send ``codes`` uint16 [frames, Q], one per hop, to ``listener`` through ``channel``.

    ``active`` says which frames hold speech (all, if None); the rest is as in ``Direction``.
    """
    plans: list[tuple[float, PacketPlan]] = []
    transits_ms: list[tuple[float, float]] = []
    direction = Direction(
        zip(codes, [True] * len(codes) if active is None else active, strict=True),
        channel,
        listener,
        controller=controller,
        drift_ppm=drift_ppm,
        estimator=estimator,
        on_plan=lambda at_s, plan: plans.append((at_s, plan)),
        on_transit=lambda at_s, ms: transits_ms.append((at_s, ms)),
    )
    hops: list[Hop] = []
    for hop in direction.run():
        if hops or hop.slot.kind != "idle":
            hops.append(hop)
    audio = (
        np.concatenate([hop.audio for hop in hops], axis=-1) if hops else np.zeros(0, np.float32)
    )
    delays_ms = [direction.delay_ms(hop) for hop in hops if hop.slot.codes is not None]
    return SimulatedCall(audio, hops, delays_ms, direction.wire_bytes, plans, transits_ms)
