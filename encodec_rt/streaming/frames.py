"""What a voice path needs of a codec, from a stream or from a slot of an engine."""

from __future__ import annotations

from typing import Protocol

from numpy.typing import ArrayLike
from torch import Tensor

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import InputError
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.snapshot import Kind, Snapshot
from encodec_rt.streaming.state import StreamState
from encodec_rt.streaming.stream_base import Stream
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
    """Frames of codes or of latents -> audio, a hop for each; the state can be restored."""

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


class _Slot:
    """One direction of one slot of an engine, stepped by a stream that borrows the slot's state."""

    def __init__(self, engine: Engine, slot: int, state: StreamState, stream: Stream) -> None:
        engine.check_slot(slot)
        self.config: EncodecConfig = engine.model.config
        self.codebooks = engine.codebooks
        self._slot, self._state, self._borrower = slot, state, stream

    def snapshot(self) -> Snapshot:
        """As a stream's."""
        self._borrow()
        return self._borrower.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """As a stream's."""
        self._borrower.restore(snapshot)
        self._give_back()

    def _borrow(self) -> None:
        self._borrower.runner.now.load_(0, self._state.arena[self._slot])

    def _give_back(self) -> None:
        self._state.load_(self._slot, self._borrower.runner.now.arena[0])


class SlotEncoder(_Slot):
    """The encoder of one slot of an engine, stepped by itself between the engine's ticks.

    The slot's codes are those of a stream, bit for bit: the step is a stream's.
    """

    def __init__(self, engine: Engine, slot: int) -> None:
        """Use the slot as it is, mid-stream. Raises InputError for a slot that does not exist."""
        weights = engine.model
        _check_begun(engine, "encoder", weights.encoder_start_frames)
        self._stream = StreamEncoder(
            weights, engine.codebooks, start=engine.start, graph=engine.graph
        )
        super().__init__(engine, slot, engine.encoder_state, self._stream)

    def push(self, pcm: ArrayLike | Tensor) -> Codes:
        """As ``StreamEncoder.push``."""
        self._borrow()
        codes = self._stream.push(pcm)
        self._give_back()
        return codes


class SlotDecoder(_Slot):
    """The decoder of one slot of an engine, stepped by itself between the engine's ticks.

    Its audio is a stream's, bit for bit. If all slots step in one tick, pass
    ``Engine.decode_latents`` the latents that ``voice.conceal`` chooses for each.
    """

    def __init__(self, engine: Engine, slot: int) -> None:
        """Use the slot as it is, mid-stream. Raises InputError for a slot that does not exist."""
        weights = engine.model
        _check_begun(engine, "decoder", weights.decoder_start_frames)
        self._stream = StreamDecoder(
            weights, engine.codebooks, start=engine.start, graph=engine.graph
        )
        super().__init__(engine, slot, engine.decoder_state, self._stream)

    def dequantize(self, codes: ArrayLike | Tensor) -> Tensor:
        """As ``StreamDecoder.dequantize``."""
        return self._stream.dequantize(codes)

    def push_latents(self, latents: Tensor) -> Audio:
        """As ``StreamDecoder.push_latents``."""
        self._borrow()
        audio = self._stream.push_latents(latents)
        self._give_back()
        return audio

    def silence_latent(self) -> Tensor:
        """As ``StreamDecoder.silence_latent``."""
        return self._stream.silence_latent()


def _check_begun(engine: Engine, kind: Kind, start_frames: int) -> None:
    if engine.start == "exact" and start_frames > 1:
        raise InputError(
            f"a slot of start='exact' begins with Engine.begin_{kind}, which gives its first "
            f"output; a Slot{kind.capitalize()} cannot begin it"
        )
