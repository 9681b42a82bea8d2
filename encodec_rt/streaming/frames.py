"""What a voice path needs of a codec: a stream of its own, or a slot of an engine."""

from __future__ import annotations

from typing import Protocol

from numpy.typing import ArrayLike
from torch import Tensor

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import InputError
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.snapshot import Snapshot
from encodec_rt.streaming.streams import StreamDecoder, StreamEncoder
from encodec_rt.types import Audio, Codes


class FrameEncoder(Protocol):
    """Audio in pieces of any size -> the codes of the frames that they complete."""

    @property
    def config(self) -> EncodecConfig:
        """The model's configuration."""

    @property
    def codebooks(self) -> int:
        """Codebooks per frame."""

    def push(self, pcm: ArrayLike | Tensor) -> Codes:
        """Audio float32 [n] or [channels, n] -> codes uint16 [frames, Q]."""

    def snapshot(self) -> Snapshot:
        """The whole state, as a value."""

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from ``snapshot``, bit for bit."""


class FrameDecoder(Protocol):
    """Frames of codes or of latents -> audio, a hop for each; it can go back to where it was."""

    @property
    def config(self) -> EncodecConfig:
        """The model's configuration."""

    @property
    def codebooks(self) -> int:
        """The most codebooks a frame may have."""

    def dequantize(self, codes: ArrayLike | Tensor) -> Tensor:
        """Codes [frames, Q] -> latents [frames, hidden_size]; the state stays as it is."""

    def push_latents(self, latents: Tensor) -> Audio:
        """Latents [frames, hidden_size] -> audio [n] or [channels, n]."""

    def silence_latent(self) -> Tensor:
        """The latent [1, hidden_size] of a frame of digital silence."""

    def snapshot(self) -> Snapshot:
        """The whole state, as a value."""

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from ``snapshot``, bit for bit."""


class SlotEncoder:
    """The encoder of one slot of an engine, stepped by itself between the engine's ticks.

    The slot's codes are those of a stream, bit for bit: the step is a stream's.
    """

    def __init__(self, engine: Engine, slot: int) -> None:
        """Take the slot as it is: mid-stream. Raises InputError for a slot that is not there."""
        engine.check_slot(slot)
        self._state, self._slot = engine.encoder_state, slot
        self._stream = StreamEncoder(
            engine.model, engine.codebooks, start=engine.start, graph=engine.graph
        )
        if engine.start == "exact" and engine.model.encoder_start_frames > 1:
            raise InputError(
                "a slot with start='exact' begins with Engine.begin_encoder, which returns its "
                "first codes; a SlotEncoder cannot begin it"
            )
        self.config: EncodecConfig = engine.model.config
        self.codebooks = engine.codebooks

    def push(self, pcm: ArrayLike | Tensor) -> Codes:
        """As ``StreamEncoder.push``."""
        self._stream.runner.now.load_(0, self._state.arena[self._slot])
        codes = self._stream.push(pcm)
        self._state.load_(self._slot, self._stream.runner.now.arena[0])
        return codes

    def snapshot(self) -> Snapshot:
        """As ``StreamEncoder.snapshot``."""
        self._stream.runner.now.load_(0, self._state.arena[self._slot])
        return self._stream.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """As ``StreamEncoder.restore``."""
        self._stream.restore(snapshot)
        self._state.load_(self._slot, self._stream.runner.now.arena[0])


class SlotDecoder:
    """The decoder of one slot of an engine, stepped by itself between the engine's ticks.

    What it gives is a stream's audio, bit for bit. Where all slots step in one tick, feed
    ``Engine.decode_latents`` with what ``voice.conceal`` wants of each.
    """

    def __init__(self, engine: Engine, slot: int) -> None:
        """Take the slot as it is: mid-stream. Raises InputError for a slot that is not there."""
        engine.check_slot(slot)
        self._state, self._slot = engine.decoder_state, slot
        self._stream = StreamDecoder(
            engine.model, engine.codebooks, start=engine.start, graph=engine.graph
        )
        if engine.start == "exact" and engine.model.decoder_start_frames > 1:
            raise InputError(
                "a slot with start='exact' begins with Engine.begin_decoder, which returns its "
                "first audio; a SlotDecoder cannot begin it"
            )
        self.config: EncodecConfig = engine.model.config
        self.codebooks = engine.codebooks

    def dequantize(self, codes: ArrayLike | Tensor) -> Tensor:
        """As ``StreamDecoder.dequantize``."""
        return self._stream.dequantize(codes)

    def push_latents(self, latents: Tensor) -> Audio:
        """As ``StreamDecoder.push_latents``."""
        self._stream.runner.now.load_(0, self._state.arena[self._slot])
        audio = self._stream.push_latents(latents)
        self._state.load_(self._slot, self._stream.runner.now.arena[0])
        return audio

    def silence_latent(self) -> Tensor:
        """As ``StreamDecoder.silence_latent``."""
        return self._stream.silence_latent()

    def snapshot(self) -> Snapshot:
        """As ``StreamDecoder.snapshot``."""
        self._stream.runner.now.load_(0, self._state.arena[self._slot])
        return self._stream.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """As ``StreamDecoder.restore``."""
        self._stream.restore(snapshot)
        self._state.load_(self._slot, self._stream.runner.now.arena[0])
