"""A call as the engine's thread sees it: each hop is decoded, then encoded again and sent back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from encodec_rt.pcm import to_int16
from encodec_rt.server.protocol import StreamRequest
from encodec_rt.server.queues import FrameQueue, Output, WaitingFrame
from encodec_rt.server.slot_stream import EngineDecoder, SlotStream
from encodec_rt.streaming.engine import Engine
from encodec_rt.types import Audio, Codes
from encodec_rt.voice.activity import EnergyDetector
from encodec_rt.voice.receiver import HopPlan, Receiver


@dataclass(frozen=True, eq=False, slots=True)
class WaitingHop(WaitingFrame):
    """A hop of a call's playout that waits to be decoded; equality ignores ``content``."""

    plan: HopPlan


class CallStream(SlotStream):
    """A call's slot, with the jitter buffer and concealment of the link before its decoder."""

    is_kept = False

    def __init__(
        self,
        key: int,
        slot: int,
        bandwidth_kbps: float,
        pcm: FrameQueue,
        codes: FrameQueue,
        engine: Engine,
        silence: Tensor,
    ) -> None:
        """Use ``slot``, reset; ``codes`` has WaitingHops."""
        request = StreamRequest("duplex", bandwidth_kbps)
        super().__init__(key, slot, request, pcm, codes, engine, silence)
        config = engine.model.config
        self.receiver = Receiver(EngineDecoder(engine, slot, silence))
        """``receive`` and ``take`` are called on the event loop."""
        self.renewed_at: int | None = None
        """The hop with which both directions restart; set by the event loop."""
        self._detector = EnergyDetector(frame_s=config.hop_length / config.sampling_rate)
        self._active: dict[int, bool] = {}

    def is_lost(self, frame: WaitingFrame) -> bool:
        """As ``SlotStream.is_lost``."""
        return _plan_of(frame).slot.kind == "lost"

    def next_latent(self, frame: WaitingFrame) -> Tensor:
        """As ``SlotStream.next_latent``."""
        plan = _plan_of(frame)
        if self.renewed_at is not None and frame.index >= self.renewed_at:
            self.renewed_at = None
            self.renew_encoder()
            plan = replace(plan, anew=True)
        return self.receiver.next_latent(plan)

    def heard(self, frame: WaitingFrame, audio: Audio) -> list[Output]:
        """Nothing yet: the audio is encoded first, in the same pass."""
        played = np.atleast_2d(self.receiver.played(_plan_of(frame), audio))
        if len(self._active) > self.pcm.most:
            # From frames that were dropped before they were encoded.
            del self._active[min(self._active)]
        self._active[frame.index] = self._detector.is_active(played)
        self.pcm.put(WaitingFrame(frame.index, to_int16(played), frame.arrived_s))
        return []

    def codes_out(self, index: int, codes: Codes, arrived_s: float | None) -> Output:
        """A frame for the way back."""
        active = self._active.pop(index, True)
        own = codes[: self.books].copy()
        return Output(self.key, codes=own, active=active, index=index, arrived_s=arrived_s)


def _plan_of(frame: WaitingFrame) -> HopPlan:
    assert isinstance(frame, WaitingHop), "a call's queue has hops"
    return frame.plan
