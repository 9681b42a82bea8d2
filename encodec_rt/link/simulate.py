"""One direction of a call over a modelled network, on a virtual clock.

Everything but sockets and threads is what a real call runs, and the same seed gives the same call.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np

from encodec_rt.bitstream.packet import Codes
from encodec_rt.link.channel import HEADER_BYTES, Channel
from encodec_rt.link.listener import Listener
from encodec_rt.link.packetizer import Outgoing, Packetizer
from encodec_rt.link.rate import RateController
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.session import Audio

REPORT_S = 1.0
"""How often the receiver reports what it lost, as RTCP does."""
SSRC = 1


@dataclass(frozen=True, eq=False)
class Heard:
    """What the far end heard, and when.

    ``audio`` [n] or [channels, n] begins with the first frame played; ``delays_ms`` are those of
    the frames played, from the end of a frame at the sender to its playout.
    """

    audio: Audio
    delays_ms: list[float]
    kinds: list[str]
    wire_bytes: int


@dataclass
class _Wire:
    """Packets on their way, by time of arrival."""

    channel: Channel
    sent: int = 0
    wire_bytes: int = 0
    queue: list[tuple[float, int, int, Outgoing]] = field(default_factory=list)

    def send(self, packet: Outgoing, now_s: float) -> None:
        size = HEADER_BYTES + len(packet.payload)
        self.wire_bytes += size
        for copy, at_s in enumerate(self.channel.send(now_s, size)):
            heapq.heappush(self.queue, (at_s, self.sent, copy, packet))
        self.sent += 1

    def deliver(self, listener: Listener, until_s: float) -> None:
        while self.queue and self.queue[0][0] <= until_s:
            at_s, sequence, _, packet = heapq.heappop(self.queue)
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
    active: list[bool] | None = None,
    drift_ppm: float = 0.0,
) -> Heard:
    """Send ``codes`` uint16 [frames, Q], one per hop, to ``listener`` through ``channel``.

    ``active`` says which frames hold speech (all, if None); ``drift_ppm`` is how much faster the
    sender's clock runs than the listener's.
    """
    hop = codec.config.hop_length
    hop_s = hop / codec.config.sampling_rate
    packetizer = Packetizer(hop=hop, bits=codec.config.codebook_nbits)
    wire = _Wire(channel)
    tick_s, lost_before, sent_before, next_report_s = 0.0, 0, 0, REPORT_S
    delays_ms: list[float] = []
    kinds: list[str] = []
    pieces: list[Audio] = []
    sender_hop_s = hop_s / (1 + drift_ppm * 1e-6)
    last_s = len(codes) * sender_hop_s + 0.5
    frame = 0
    while tick_s < last_s:
        while frame < len(codes) and (frame + 1) * sender_hop_s <= tick_s:
            now_s = (frame + 1) * sender_hop_s
            plan = controller.plan(now_s)
            is_active = active is None or active[frame]
            for packet in packetizer.push(codes[frame], plan, active=is_active):
                wire.send(packet, now_s)
            frame += 1
            if now_s >= next_report_s:
                sent, lost = channel.sent - sent_before, channel.lost - lost_before
                round_trip_s = 2 * channel.network.delay_ms / 1000
                controller.on_report(lost / max(1, sent), round_trip_s, now_s)
                sent_before, lost_before = channel.sent, channel.lost
                next_report_s += REPORT_S
        wire.deliver(listener, tick_s)
        turn = listener.take(tick_s)
        audio = listener.render(turn)
        if pieces or turn.slot.kind != "idle":
            pieces.append(audio)
            kinds.append(turn.slot.kind)
        if turn.slot.codes is not None:
            delays_ms.append((tick_s - (turn.slot.index + 1) * sender_hop_s) * 1000)
        tick_s += hop_s
    audio = np.concatenate(pieces, axis=-1) if pieces else np.zeros(0, np.float32)
    return Heard(audio, delays_ms, kinds, wire.wire_bytes)
