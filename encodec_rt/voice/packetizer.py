"""Frames of codes into RTP payloads, with redundancy, and with nothing during silence."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from encodec_rt.bitstream.packet import (
    MAX_REDUNDANT_CODEBOOKS,
    MAX_REDUNDANT_FRAMES,
    Packet,
    Redundancy,
    encode_packet,
)
from encodec_rt.types import Codes
from encodec_rt.voice.bitrate import PacketPlan

REFRESH_FRAMES = 30
"""How often silence is announced again: every 400 ms, as in Opus."""


@dataclass(frozen=True)
class Outgoing:
    """What RTP needs to know of a packet; ``timestamp`` in samples since the stream began.

    An empty payload announces silence from its timestamp on.
    """

    payload: bytes
    timestamp: int
    marker: bool


class Packetizer:
    """Collects frames until a packet is full."""

    def __init__(self, *, hop: int, bits: int) -> None:
        """``bits`` per code, as the model has them."""
        self._hop = hop
        self._bits = bits
        self._pending: list[Codes] = []
        self._earlier: deque[Codes] = deque(maxlen=MAX_REDUNDANT_FRAMES)
        self._marker = True
        self._silent = 0
        self.frames = 0

    def push(self, codes: Codes, plan: PacketPlan, *, active: bool = True) -> list[Outgoing]:
        """The packets to send after the next frame, ``codes`` uint16 [Q]; often none.

        ``active`` is False for a frame of silence.
        """
        index = self.frames
        self.frames += 1
        if not active:
            return self._silence(index, plan)
        self._silent = 0
        self._pending.append(codes)
        return self._emit(plan, self.frames) if len(self._pending) >= plan.frames else []

    def flush(self, plan: PacketPlan) -> list[Outgoing]:
        """The packet that is not full yet, if any."""
        return self._emit(plan, self.frames) if self._pending else []

    def _silence(self, index: int, plan: PacketPlan) -> list[Outgoing]:
        packets = self._emit(plan, index) if self._pending else []
        if self._silent % REFRESH_FRAMES == 0:
            packets.append(Outgoing(b"", index * self._hop, marker=False))
        self._silent += 1
        self._marker = True
        self._earlier.clear()
        return packets

    def _emit(self, plan: PacketPlan, end: int) -> list[Outgoing]:
        frames = np.stack([codes[: plan.codebooks] for codes in self._pending])
        packet = Packet(frames, self._redundancy(plan))
        first = end - len(self._pending)
        self._earlier.extend(codes[:MAX_REDUNDANT_CODEBOOKS] for codes in self._pending)
        self._pending = []
        marker, self._marker = self._marker, False
        return [Outgoing(encode_packet(packet, bits=self._bits), first * self._hop, marker)]

    def _redundancy(self, plan: PacketPlan) -> Redundancy | None:
        copies = min(plan.copies, len(self._earlier))
        if not copies:
            return None
        codes = [codes[: plan.copy_codebooks] for codes in list(self._earlier)[-copies:]]
        return Redundancy(copies, np.stack(codes))
