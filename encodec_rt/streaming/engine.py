"""Many live streams in one batch: one slot each, all stepped by the same tick."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from encodec_rt.arrays import UNUSABLE, is_count
from encodec_rt.errors import ConfigError, InputError, StateError
from encodec_rt.model.numerics import without_autocast
from encodec_rt.streaming.backends.torch import TORCH
from encodec_rt.streaming.engine_work import (
    ABSENT,
    MakeWork,
    audio_shape,
    check_tensor,
    decode_work,
    encode_work,
    latents_work,
    named_rows,
    rows_usable,
)
from encodec_rt.streaming.ops import Step
from encodec_rt.streaming.slot_engine import SlotEngine
from encodec_rt.streaming.slot_steps import SomeStep
from encodec_rt.streaming.weights import CodecWeights, Start


@dataclass(frozen=True)
class EngineInfo:
    """What an engine runs on: the backend of every op (``ops``), and the memory per slot.

    ``graphs`` says for each direction whether one CUDA graph holds the whole tick, or why not.
    """

    device: str
    slots: int
    codebooks: int
    ops: Mapping[str, str]
    graphs: Mapping[str, str]
    encoder_bytes_per_slot: int
    decoder_bytes_per_slot: int


class Engine(SlotEngine):
    """S slots, each with its own encoder and decoder stream.

    ``encode`` and ``decode`` step all slots together. ``encode_slots`` and ``decode_slots``, for
    servers, step the given slots, each with its own bandwidth and errors.

    One thread owns an engine. Tensors already on the device are trusted to be finite; audio and
    codes from the host are checked, so a check never waits for the device.
    """

    def __init__(
        self,
        weights: CodecWeights,
        slots: int,
        bandwidth_kbps: float = 6.0,
        *,
        start: Start = "primed",
        frames: int = 1,
        graph: bool | None = None,
        gather: bool = False,
    ) -> None:
        """Use Codec.engine. Every slot is a new stream with ``start``.

        Raises ConfigError, and BackendUnavailable if ``graph`` is True and none can be captured.
        """
        if not (is_count(slots) and is_count(frames)):
            raise ConfigError(f"slots={slots}, frames={frames}; an engine has at least one of each")
        super().__init__(weights, slots, bandwidth_kbps, start, graph, gather)
        self.frames = frames
        self._audio_shape = audio_shape(weights.config, slots, frames)
        silence = torch.zeros(self._audio_shape, dtype=torch.float32, device=weights.device)
        self._rows = (slots, frames) if frames > 1 else (slots,)
        codes = torch.zeros((*self._rows, self.codebooks), dtype=torch.int64, device="cpu")
        work = encode_work(weights, self.codebooks, frames)
        self._encode = self._prepare("encode", ("codes", frames), work, silence, codes)
        self._decode = {self.codebooks: self._prepare_decoder(self.codebooks)}
        self._decode_latents: Step | None = None

    @torch.inference_mode()
    @without_autocast
    def encode(self, pcm: Tensor, active: Tensor | None = None) -> Tensor:
        """One tick of every slot: audio [S, n] or [S, channels, n] -> codes [S, Q] int64.

        n is ``frames`` * hop_length; with more than one frame the codes are [S, frames, Q]. The
        ``active`` slots ([S] bool, by default all) advance; the others stay the same, bit for bit,
        and their rows of the result are meaningless. The result is one buffer on the device of the
        input, valid until the next call; on the host it is ready to be read. For a slot with fewer
        codebooks, take the first ones of its row. Raises InputError.
        """
        check_tensor(pcm, "audio", torch.float32)
        if pcm.shape != self._audio_shape:
            raise InputError(
                f"audio of shape {tuple(pcm.shape)}; this engine takes {self._audio_shape}"
            )
        self._check_mask(active)
        if pcm.device.type == "cpu" and not rows_usable(pcm, active):
            raise InputError(f"the audio of an active slot holds {UNUSABLE}")
        return self._encode(pcm, active)

    @torch.inference_mode()
    @without_autocast
    def decode(self, codes: Tensor, active: Tensor | None = None) -> Tensor:
        """One tick of every slot: codes [S, Q] int64 -> audio [S, n] or [S, channels, n].

        ``active``, the result and [S, frames, Q] are as in ``encode``. A code of -1 stands for an
        absent codebook, so each slot can have its own bandwidth; Q may be less than the engine's
        number of codebooks.
        """
        config = self.model.config
        check_tensor(codes, "codes", torch.int64)
        if codes.shape[:-1] != self._rows:
            raise InputError(
                f"codes of shape {tuple(codes.shape)}; this engine takes "
                f"{(*self._rows, self.codebooks)}"
            )
        books = codes.shape[-1]
        if not 1 <= books <= config.num_quantizers:
            raise InputError(f"{books} codebooks; this model has {config.num_quantizers}")
        self._check_mask(active)
        if codes.device.type == "cpu":
            named = codes if active is None else codes[active.cpu()]
            if not named_rows(named, config.codebook_size).all():
                raise InputError(
                    f"an active slot has codes outside [0, {config.codebook_size}) that are not "
                    f"{ABSENT}, for an absent codebook"
                )
            # An idle slot may hold anything, including an index that does not exist.
            codes = codes.clamp(ABSENT, config.codebook_size - 1)
        if books not in self._decode:
            self._decode[books] = self._prepare_decoder(books)
        return self._decode[books](codes, active)

    @torch.inference_mode()
    @without_autocast
    def decode_latents(self, latents: Tensor, active: Tensor | None = None) -> Tensor:
        """As ``decode``, for latents [S, frames, hidden_size] float32 instead of codes.

        With latents one slot can conceal a frame (``voice.conceal``) while others decode theirs.
        """
        shape = (self.slots, self.frames, self.model.config.hidden_size)
        check_tensor(latents, "latents", torch.float32)
        if latents.shape != shape:
            raise InputError(f"latents of shape {tuple(latents.shape)}; this engine takes {shape}")
        self._check_mask(active)
        if latents.device.type == "cpu" and not rows_usable(latents, active):
            raise InputError(f"the latents of an active slot hold {UNUSABLE}")
        if self._decode_latents is None:
            zeros = torch.zeros(shape, dtype=torch.float32, device=self.model.device)
            work = latents_work(self.model.config, self.frames)
            audio = torch.zeros(self._audio_shape, dtype=torch.float32, device="cpu")
            key = ("latents", self.frames)
            self._decode_latents = self._prepare("decode", key, work, zeros, audio)
        return self._decode_latents(latents, active)

    @property
    def ticks(self) -> Mapping[str, Step]:
        """The steps of all slots under "encode" and "decode", to be timed on the device alone."""
        return {"encode": self._encode, "decode": self._decode[self.codebooks]}

    def describe(self) -> EngineInfo:
        """What this engine runs on."""
        ops = self.model.ops
        names = [field.name for field in fields(ops) if callable(getattr(TORCH, field.name))]
        backends = {
            name: TORCH.name if getattr(ops, name) is getattr(TORCH, name) else ops.name
            for name in names
            if not name.startswith("pack_") and name not in ("capture", "edit")
        }
        graphs = {name: step.eager_because or "one CUDA graph" for name, step in self.ticks.items()}
        widths = [4 * runner.now.arena.shape[1] for runner in (self._encoder, self._decoder)]
        return EngineInfo(
            str(self.model.device), self.slots, self.codebooks, backends, graphs, *widths
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        """An independent engine whose slots continue, bit for bit, as these do."""
        other = Engine(
            self.model,
            self.slots,
            self._bandwidth_kbps,
            start=self.start,
            frames=self.frames,
            graph=self.graph,
            gather=self.gather,
        )
        other._books, other._starts = list(self._books), list(self._starts)
        for mine, theirs in ((self._encoder, other._encoder), (self._decoder, other._decoder)):
            theirs.now.load_(slice(None), mine.now.arena)
        return other

    def __copy__(self) -> Engine:
        """As ``copy.deepcopy``: two engines never share a state."""
        return self.__deepcopy__({})

    def __reduce__(self) -> Any:
        """Refused: an engine belongs to its codec; pickle the states of its slots instead."""
        raise StateError("an Engine cannot be pickled; keep snapshot(slot).to_bytes() of each slot")

    def __repr__(self) -> str:
        return (
            f"<Engine of {self.slots} slots, {self.codebooks} codebooks, start={self.start!r}, "
            f"{self.frames} frames per tick, {self.model.ops.name!r} on {self.model.device}>"
        )

    def _check_mask(self, active: Tensor | None) -> None:
        if active is None:
            return
        check_tensor(active, "active", torch.bool)
        if active.shape != (self.slots,):
            raise InputError(f"active of shape {tuple(active.shape)}; pass [{self.slots}]")

    def _prepare(self, direction: str, key: Hashable, work: MakeWork, x: Tensor, y: Tensor) -> Step:
        """The step of all slots for inputs like ``x``; what it gives is like ``y``."""
        if self.gather:
            return SomeStep(self._steps[direction], key, work, y)
        runner = self._encoder if direction == "encode" else self._decoder
        ops = self.model.ops
        return ops.capture(ops, work(runner.step, self.slots), x, graph=self.graph, live=True)

    def _prepare_decoder(self, books: int) -> Step:
        codes = torch.zeros((*self._rows, books), dtype=torch.int64, device=self.model.device)
        audio = torch.zeros(self._audio_shape, dtype=torch.float32, device="cpu")
        key, work = ("codes", self.frames, books), decode_work(self.model, books, self.frames)
        return self._prepare("decode", key, work, codes, audio)
