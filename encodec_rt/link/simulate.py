"""One direction of a call over a modelled network, on a virtual clock.

Everything but sockets and threads is what a real call runs, and the same seed gives the same call.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from encodec_rt.bitstream.packet import Codes
from encodec_rt.link.channel import HEADER_BYTES, Channel
from encodec_rt.link.listener import Listener
from encodec_rt.link.packetizer import Outgoing, Packetizer
from encodec_rt.link.rate import Plan, RateController
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.session import Audio

REPORT_S = 1.0
"""How often the receiver reports what it lost, as RTCP does."""
TAIL_S = 0.5
SSRC = 1


class Estimator(Protocol):
    """The receiver's estimate of the bandwidth, as aiortc has it (see ``rtp.Estimator``)."""

    def add(
        self, arrival_time_ms: int, abs_send_time: int, payload_size: int, ssrc: int
    ) -> tuple[int, list[int]] | None:
        """Count a packet; now and then the bits per second that fit, and whom they are for."""


@dataclass(frozen=True, eq=False)
class Heard:
    """What the far end heard, and when.

    ``audio`` [n] or [channels, n] begins with the first frame played; ``delays_ms`` are those of
    the frames played, from the end of a frame at the sender to its playout, and ``played_s`` when
    that was. ``plans`` are the times at which the plan changed, and what to; ``transits_ms`` are
    when packets arrived, in seconds, and how long each was under way.
    """

    audio: Audio
    delays_ms: list[float]
    played_s: list[float]
    kinds: list[str]
    wire_bytes: int
    plans: list[tuple[float, Plan]]
    transits_ms: list[tuple[float, float]]


@dataclass
class _Feedback:
    """What the receiver tells the sender, delayed by the way back."""

    controller: RateController
    channel: Channel
    estimator: Estimator | None
    transit_s: float = 0.0
    transits_ms: list[tuple[float, float]] = field(default_factory=list)
    next_report_s: float = REPORT_S
    sent: int = 0
    lost: int = 0
    estimates: list[tuple[float, int]] = field(default_factory=list)

    def see(self, packet: Outgoing, sent_s: float, at_s: float) -> None:
        """A packet arrived."""
        self.transit_s = at_s - sent_s
        self.transits_ms.append((at_s, self.transit_s * 1000))
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
        """Tell the sender what has come back by now."""
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
        """Let the network have a packet."""
        size = HEADER_BYTES + len(packet.payload)
        self.wire_bytes += size
        for copy, at_s in enumerate(self.channel.send(now_s, size)):
            heapq.heappush(self.queue, (at_s, self.sent, copy, now_s, packet))
        self.sent += 1

    def deliver(self, listener: Listener, until_s: float) -> None:
        """Let the listener have what has arrived."""
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


def simulate(
    codec: Codec,
    codes: Codes,
    channel: Channel,
    listener: Listener,
    *,
    controller: RateController,
    active: Sequence[bool] | None = None,
    drift_ppm: float = 0.0,
    estimator: Estimator | None = None,
) -> Heard:
    """Send ``codes`` uint16 [frames, Q], one per hop, to ``listener`` through ``channel``.

    ``active`` says which frames hold speech (all, if None); ``drift_ppm`` is how much faster the
    sender's clock runs than the listener's.
    """
    hop = codec.config.hop_length
    hop_s = hop / codec.config.sampling_rate
    packetizer = Packetizer(hop=hop, bits=codec.config.codebook_nbits)
    feedback = _Feedback(controller, channel, estimator)
    wire = _Wire(channel, feedback)
    sender_hop_s = hop_s / (1 + drift_ppm * 1e-6)
    plans: list[tuple[float, Plan]] = []
    heard = Heard(np.zeros(0, np.float32), [], [], [], 0, plans, feedback.transits_ms)
    pieces: list[Audio] = []
    frame, tick_s = 0, 0.0
    while tick_s < len(codes) * sender_hop_s + TAIL_S:
        while frame < len(codes) and (frame + 1) * sender_hop_s <= tick_s:
            now_s = (frame + 1) * sender_hop_s
            feedback.deliver(now_s)
            plan = controller.plan(now_s)
            if not plans or plan != plans[-1][1]:
                plans.append((now_s, plan))
            is_active = active is None or active[frame]
            for packet in packetizer.push(codes[frame], plan, active=is_active):
                controller.on_sent(len(packet.payload), now_s)
                wire.send(packet, now_s)
            frame += 1
        wire.deliver(listener, tick_s)
        turn = listener.take(tick_s)
        audio = listener.render(turn)
        if pieces or turn.slot.kind != "idle":
            pieces.append(audio)
            heard.kinds.append(turn.slot.kind)
        if turn.slot.codes is not None:
            heard.delays_ms.append((tick_s - (turn.slot.index + 1) * sender_hop_s) * 1000)
            heard.played_s.append(tick_s)
        tick_s += hop_s
    audio = np.concatenate(pieces, axis=-1) if pieces else heard.audio
    return replace(heard, audio=audio, wire_bytes=wire.wire_bytes)
