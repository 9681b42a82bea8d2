"""The receiving end of a call, without clock and network: payloads in, a hop of audio out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from encodec_rt.bitstream.packet import Packet, parse_packet
from encodec_rt.concealment import CONCEALMENT_GAINS
from encodec_rt.errors import PacketError
from encodec_rt.streaming.frames import FrameDecoder
from encodec_rt.types import Audio, Codes
from encodec_rt.voice.conceal import Concealer
from encodec_rt.voice.jitter import JitterBuffer, PlayoutSlot
from encodec_rt.voice.statistics import ArrivalCounter, InboundStatistics


@dataclass(frozen=True, eq=False)
class HopPlan:
    """What to play in one hop, the late frames to repair before it, and whether to restart."""

    slot: PlayoutSlot
    late: list[tuple[int, Codes]]
    anew: bool = False


class Receiver:
    """Jitter buffer, concealment and statistics of one stream.

    ``receive`` and ``take`` belong to one thread, ``render`` may run in another.
    """

    def __init__(
        self,
        decoder: FrameDecoder,
        *,
        buffer: JitterBuffer | None = None,
        gains: Sequence[float] = CONCEALMENT_GAINS,
        repairs: bool = True,
    ) -> None:
        """A packet of more codebooks than ``decoder`` has is refused."""
        config = decoder.config
        self.config = config
        self._codebooks = decoder.codebooks
        self._repairs = repairs
        self.buffer = buffer or JitterBuffer(
            hop=config.hop_length, sampling_rate_hz=config.sampling_rate
        )
        self._decoder = decoder
        self._concealer = Concealer(decoder, gains=gains)
        self._arrivals = ArrivalCounter(config.sampling_rate)
        self._late: list[tuple[int, Codes]] = []
        self._concealing = False
        self._anew = False
        self.statistics = InboundStatistics()

    def receive(
        self, payload: bytes, *, sequence: int, timestamp: int, ssrc: int, now_s: float
    ) -> bool:
        """Take the payload of an RTP packet and return whether it was useful. Raises nothing."""
        counts = self.statistics
        packet: Packet | None = None
        if payload:
            try:
                packet = self._parse(payload)
            except PacketError:
                counts.packetsDiscarded += 1
                return False
        receipt = self.buffer.put(
            packet, sequence=sequence, timestamp=timestamp, ssrc=ssrc, now_s=now_s
        )
        if not receipt.accepted:
            counts.packetsDiscarded += 1
            return False
        self._arrivals.add(sequence, timestamp, ssrc, now_s)
        counts.packetsReceived += 1
        counts.bytesReceived += len(payload)
        counts.fecPacketsReceived += packet is not None and packet.redundancy is not None
        counts.packetsDiscarded += bool(receipt.late)
        counts.packetsLost, counts.jitter = self._arrivals.lost, self._arrivals.jitter_s
        if self._repairs:
            self._late = [*self._late, *receipt.late][-8:]
        return True

    def restart(self) -> None:
        """Expect a restarted stream, from any source; the statistics continue."""
        self.buffer.forget_source()
        self._late, self._anew = [], True

    def take(self, now_s: float, *, clock_s: float | None = None) -> HopPlan:
        """What to play in the hop that begins at ``now_s``.

        ``clock_s`` is the time of the call, later than the hop's own on a machine that lags behind.
        """
        slot = self.buffer.get(now_s, quiet=self._concealer.quiet, clock_s=clock_s)
        late, self._late = self._late, []
        anew, self._anew = self._anew, False
        return HopPlan(slot, late, anew)

    def render(self, planned: HopPlan) -> Audio:
        """The audio of ``planned``: always one hop, float32 [hop] or [channels, hop]."""
        if planned.slot.kind == "idle":
            if planned.anew:
                self._concealer.restart()
            # The decoder starts with the first frame, as the encoder did.
            channels, hop = self.config.audio_channels, self.config.hop_length
            return np.zeros((channels, hop) if channels > 1 else hop, np.float32)
        return self.played(planned, self._decoder.push_latents(self.next_latent(planned)))

    def next_latent(self, planned: HopPlan) -> Tensor:
        """The latent [1, hidden_size] of a hop that is not idle, to step decoders in a batch.

        Pass the decoded audio to ``played``; together the two are ``render``.
        """
        slot = planned.slot
        if planned.anew:
            self._concealer.restart()
        if planned.late:
            self.statistics.repairedFrames += self._concealer.repair(planned.late)
        index = slot.index if slot.kind in ("frame", "copy", "lost") else None
        return self._concealer.next_latent(slot.codes, index)

    def played(self, planned: HopPlan, audio: Audio) -> Audio:
        """The audio to play, from ``audio``, which the decoder made from ``next_latent``."""
        heard = self._concealer.played(audio)
        self._count(planned.slot)
        return heard

    def play(self, now_s: float) -> Audio:
        """``render`` of ``take``, for use in one thread."""
        return self.render(self.take(now_s))

    def _parse(self, payload: bytes) -> Packet:
        packet = parse_packet(
            payload, bits=self.config.codebook_nbits, max_codebooks=self._codebooks
        )
        size = self.config.codebook_size
        copies = packet.redundancy.codes if packet.redundancy is not None else packet.codes
        if packet.codes.max() >= size or copies.max() >= size:
            raise PacketError(f"a code beyond the model's {size}")
        return packet

    def _count(self, slot: PlayoutSlot) -> None:
        counts, hop = self.statistics, self.config.hop_length
        counts.removedSamplesForAcceleration += slot.skipped * hop
        counts.totalSamplesReceived += hop
        lost = slot.kind == "lost"
        if lost or slot.kind == "silence":
            counts.concealedSamples += hop
            counts.silentConcealedSamples += hop * (self._concealer.is_noise or not lost)
            counts.silentFrames += not lost
        counts.concealmentEvents += lost and not self._concealing
        self._concealing = lost
        if slot.kind == "hold":
            counts.insertedSamplesForDeceleration += hop
        elif slot.codes is not None:
            counts.jitterBufferDelay += slot.waited_s * hop
            counts.jitterBufferTargetDelay += self.buffer.target_ms / 1000 * hop
            counts.jitterBufferEmittedCount += hop
            counts.recoveredFrames += slot.kind == "copy"
