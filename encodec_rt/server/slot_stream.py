"""One session as the engine's thread sees it: a slot, its input and its output."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encodec_rt.bitstream.packet import Packet, encode_packet
from encodec_rt.pcm import to_int16
from encodec_rt.server.protocol import Kind, StreamRequest, pack_message
from encodec_rt.server.queues import FrameQueue, Output, Progress, WaitingFrame
from encodec_rt.streaming.arrays import to_audio
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.engine_work import ABSENT
from encodec_rt.streaming.slot_snapshot import SlotSnapshot
from encodec_rt.streaming.snapshot import Origin, Snapshot
from encodec_rt.types import Audio, Codes
from encodec_rt.voice.conceal import Concealer

MAX_OWED_FRAMES = 16.0
"""How far behind its clock a stream may be and still catch up by several frames a step."""


class EngineDecoder:
    """A slot's decoder in the form that ``voice.conceal`` needs, on the engine itself."""

    def __init__(self, engine: Engine, slot: int, silence: Tensor) -> None:
        """``silence`` is the latent [1, hidden_size] of a silent frame."""
        self.config = engine.model.config
        self.codebooks = engine.codebooks_of(slot)
        self._engine, self._slot, self._silence = engine, slot, silence
        weights = engine.model
        self._origin = Origin("decoder", engine.start, self.codebooks, weights.sha256)

    def dequantize(self, codes: Any) -> Tensor:
        """Codes [frames, Q] -> latents [frames, hidden_size]."""
        whole = torch.from_numpy(np.asarray(codes).astype(np.int64))
        return self._engine.dequantize(whole[None]).rows[0]

    def push_latents(self, latents: Tensor) -> Audio:
        """Latents [frames, hidden_size] -> audio."""
        audio = self._engine.decode_slots([self._slot], latents[None]).rows[0]
        return to_audio(audio.reshape(self.config.audio_channels, -1).t())

    def silence_latent(self) -> Tensor:
        """The latent [1, hidden_size] of a silent frame."""
        return self._silence

    def snapshot(self) -> Snapshot:
        """The slot's decoder state."""
        return Snapshot(self._engine.decoder_state.row(self._slot), {}, self._origin)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from ``snapshot``."""
        self._engine.load_state(self._slot, (None, snapshot.row))


class SlotStream:
    """A session on its slot. Called only by the engine's thread."""

    is_kept = True
    """Whether its state is saved for a client that comes back."""

    def __init__(
        self,
        key: int,
        slot: int,
        request: StreamRequest,
        pcm: FrameQueue,
        codes: FrameQueue,
        engine: Engine,
        silence: Tensor,
    ) -> None:
        """Use ``slot``, reset to the bandwidth and start of ``request``."""
        self.key, self.slot, self.request = key, slot, request
        self.pcm, self.codes = pcm, codes
        self.to_echo: deque[tuple[int, Tensor, float]] = deque()
        """Encoded frames [Q] that are to be decoded too."""
        self.encoding_apart = self.decoding_apart = False
        """Whether a start or an end is being computed on the other thread."""
        self.changed = False
        """Whether the slot has advanced since its last snapshot."""
        self._engine, self._silence = engine, silence
        self.progress = Progress()
        self._seen_s, self._owed = time.monotonic(), 0.0
        self._frame_rate = engine.model.config.frame_rate
        engine.reset([slot], request.bandwidth_kbps, request.start)
        self.books = engine.codebooks_of(slot)
        self.renew_encoder()
        self.renew_decoder()

    @property
    def bits(self) -> int:
        """Bits of a code in a packet."""
        return self._engine.model.config.codebook_nbits

    def resume(self, snapshot: SlotSnapshot, progress: Progress) -> None:
        """Continue from ``snapshot`` and ``progress``. Raises StateError."""
        self._engine.restore(self.slot, snapshot)
        self.progress = replace(progress, resumed=progress.resumed + 1)

    def may_take(self, frames: int, now_s: float) -> int:
        """How many frames the stream may have in one step, 1 or up to ``frames``.

        A stream that had to wait catches up by several; one that sends faster than real time gets
        one per pass, so that the others do not wait for it.
        """
        elapsed_s, self._seen_s = max(0.0, now_s - self._seen_s), now_s
        self._owed = min(MAX_OWED_FRAMES, self._owed + elapsed_s * self._frame_rate)
        taken = max(1, min(frames, int(self._owed)))
        self._owed = max(0.0, self._owed - taken)
        return taken

    @property
    def echoes(self) -> bool:
        """Whether what is encoded is decoded too."""
        return self.request.mode == "echo"

    def renew_encoder(self) -> None:
        """Return to the start of a clip; frame numbers continue."""
        weights = self._engine.model
        row = weights.start_state(self.request.start, self.books)[0]
        self._engine.load_state(self.slot, (row, None))
        exact = self.request.start == "exact"
        self.progress.encoder_begun = not exact or weights.encoder_start_frames == 1

    def renew_decoder(self) -> None:
        """As ``renew_encoder``."""
        weights = self._engine.model
        row = weights.start_state(self.request.start, self.books)[1]
        self._engine.load_state(self.slot, (None, row))
        exact = self.request.start == "exact"
        self.progress.decoder_begun = not exact or weights.decoder_start_frames == 1
        self.progress.to_drop = 0 if exact else weights.decoder_lag
        self.concealer = Concealer(EngineDecoder(self._engine, self.slot, self._silence))

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is between the slot and the queues, so that a snapshot is complete."""
        return not (self.to_echo or self.encoding_apart or self.decoding_apart)

    def own(self, codes: Tensor) -> Tensor:
        """Codes [frames, Q] with -1 (absent) beyond the session's bandwidth."""
        codes = codes.clone()
        codes[:, self.books :] = ABSENT
        return codes

    def is_lost(self, frame: WaitingFrame) -> bool:
        """Whether a frame to decode is to be concealed."""
        return frame.content is None

    def next_latent(self, frame: WaitingFrame) -> Tensor:
        """The latent [1, hidden_size] of a frame to decode or conceal."""
        codes = None if frame.content is None else frame.content[None].astype(np.uint16)
        return self.concealer.next_latent(codes, frame.index)

    def heard(self, frame: WaitingFrame, audio: Audio) -> list[Output]:
        """The output to send for ``audio``, which the slot made from ``next_latent``."""
        return self.audio_out(frame.index, self.concealer.played(audio), frame.arrived_s)

    def codes_out(self, index: int, codes: Codes, arrived_s: float | None) -> Output:
        """One frame of codes [Q] as a message."""
        payload = encode_packet(Packet(codes[None, : self.books]), bits=self.bits)
        data = pack_message(Kind.CODES, index, payload)
        return Output(self.key, data, index=index, arrived_s=arrived_s)

    def audio_out(self, index: int, audio: Audio, arrived_s: float | None) -> list[Output]:
        """Audio [n] or [channels, n] as a message, without what comes before the clip."""
        sounding = np.atleast_2d(audio)[:, self.progress.to_drop :]
        self.progress.to_drop -= audio.shape[-1] - sounding.shape[1]
        if not sounding.shape[1]:
            return []
        pcm = np.ascontiguousarray(to_int16(sounding).T).astype("<i2")
        data = pack_message(Kind.PCM, index, pcm.tobytes())
        return [Output(self.key, data, index=index, arrived_s=arrived_s)]
