"""Many live streams in one batch: a slot each, all stepped by the same tick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from encodec_rt.errors import ConfigError, InputError, StateError
from encodec_rt.model.numerics import without_autocast
from encodec_rt.streaming.backends.torch import TORCH
from encodec_rt.streaming.engine_work import (
    all_finite,
    as_clip,
    decode_work,
    encode_work,
    latents_work,
)
from encodec_rt.streaming.ops import Step, Work
from encodec_rt.streaming.runner import Runner
from encodec_rt.streaming.state import StreamState
from encodec_rt.streaming.weights import CodecWeights, Start

ABSENT = -1
"""The code of a codebook that a frame does not have."""


@dataclass(frozen=True)
class EngineInfo:
    """What an engine runs on: the backend of every op, and the memory a slot takes.

    ``graphs`` says of each direction whether a CUDA graph holds its whole tick, or why not.
    """

    device: str
    slots: int
    codebooks: int
    rows: Mapping[str, str]
    graphs: Mapping[str, str]
    encoder_bytes_per_slot: int
    decoder_bytes_per_slot: int


class Engine:
    """S slots, each an encoder and a decoder stream of its own, stepped together.

    One thread owns an engine. Tensors that are on the device already are trusted to be finite;
    audio and codes from the host are checked, so a check never waits for the device.
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
    ) -> None:
        """Use Codec.engine. Every slot is as new under ``start``.

        Raises ConfigError, and BackendUnavailable if ``graph`` is True and there cannot be one.
        """
        if slots < 1 or frames < 1:
            raise ConfigError(f"slots={slots}, frames={frames}; an engine has at least one of each")
        config = weights.config
        self.model = weights
        self.device = weights.device
        self.slots = slots
        self.frames = frames
        self.start = start
        self.codebooks = config.codebooks_for(bandwidth_kbps)
        self.graph = graph
        self._bandwidth_kbps = bandwidth_kbps
        self._encoder = Runner(weights.encoder, slots, weights.device)
        self._decoder = Runner(weights.decoder, slots, weights.device)
        self._fresh = weights.start_state(start, self.codebooks)
        channels, samples = config.audio_channels, frames * config.hop_length
        self._audio_shape = (slots, samples) if channels == 1 else (slots, channels, samples)
        silence = torch.zeros(self._audio_shape, dtype=torch.float32, device=weights.device)
        self._encode = self._prepare(
            encode_work(weights, self._encoder, self.codebooks, frames), silence
        )
        self._decode = {self.codebooks: self._prepare_decoder(self.codebooks)}
        self._decode_latents: Step | None = None
        self.reset(range(slots))

    @torch.inference_mode()
    @without_autocast
    def encode(self, pcm: Tensor, active: Tensor | None = None) -> Tensor:
        """One tick of every slot: audio [S, n] or [S, channels, n] -> codes [S, Q] int64.

        n is ``frames`` * hop_length; with more frames than one the codes are [S, frames, Q]. The
        slots that are ``active`` [S] bool, by default all, move on; the others stay bit for bit
        what they were, and their row of the result means nothing. The result is one buffer on the
        device of the input, valid until the next call; on the host it is ready to be read. A slot
        of fewer codebooks takes the first of its row. Raises InputError.
        """
        if pcm.shape != self._audio_shape or pcm.dtype != torch.float32:
            raise InputError(
                f"audio of shape {tuple(pcm.shape)} and type {pcm.dtype}; this engine takes "
                f"float32 {self._audio_shape}"
            )
        self._check_mask(active)
        if pcm.device.type == "cpu" and not all_finite(pcm, active):
            raise InputError("the audio of an active slot holds NaN or infinite samples")
        return self._encode(pcm, active)

    @torch.inference_mode()
    @without_autocast
    def decode(self, codes: Tensor, active: Tensor | None = None) -> Tensor:
        """One tick of every slot: codes [S, Q] int64 -> audio [S, n] or [S, channels, n].

        As ``encode`` for ``active``, the result and [S, frames, Q]. A code of -1 stands for an
        absent codebook, so that every slot has its own bandwidth; Q may be less than the engine's
        codebooks.
        """
        config = self.model.config
        shape = (self.slots,) if self.frames == 1 else (self.slots, self.frames)
        if codes.shape[:-1] != shape or codes.dtype != torch.int64:
            raise InputError(
                f"codes of shape {tuple(codes.shape)} and type {codes.dtype}; this engine takes "
                f"int64 {(*shape, self.codebooks)}"
            )
        books = codes.shape[-1]
        if not 1 <= books <= config.num_quantizers:
            raise InputError(f"{books} codebooks; this model has {config.num_quantizers}")
        self._check_mask(active)
        if codes.device.type == "cpu":
            named = codes.numpy() if active is None else codes.numpy()[active.cpu().numpy()]
            if named.size and not ABSENT <= named.min() <= named.max() < config.codebook_size:
                raise InputError(
                    f"codes outside [0, {config.codebook_size}), and not {ABSENT} for an absent "
                    "codebook, in an active slot"
                )
            # What an idle slot holds may be anything, an index that does not exist included.
            codes = codes.clamp(ABSENT, config.codebook_size - 1)
        if books not in self._decode:
            self._decode[books] = self._prepare_decoder(books)
        return self._decode[books](codes, active)

    @torch.inference_mode()
    @without_autocast
    def decode_latents(self, latents: Tensor, active: Tensor | None = None) -> Tensor:
        """As ``decode``, for latents [S, frames, hidden_size] float32 instead of codes.

        With them a slot conceals a frame of its own (``voice.conceal``) in its neighbours' tick.
        """
        shape = (self.slots, self.frames, self.model.config.hidden_size)
        if latents.shape != shape or latents.dtype != torch.float32:
            raise InputError(
                f"latents of shape {tuple(latents.shape)} and type {latents.dtype}; this engine "
                f"takes float32 {shape}"
            )
        self._check_mask(active)
        if latents.device.type == "cpu" and not all_finite(latents, active):
            raise InputError("the latents of an active slot hold NaN or infinite values")
        if self._decode_latents is None:
            zeros = torch.zeros(shape, dtype=torch.float32, device=self.model.device)
            work = latents_work(self._decoder, self._audio_shape)
            self._decode_latents = self._prepare(work, zeros)
        return self._decode_latents(latents, active)

    @torch.inference_mode()
    @without_autocast
    def reset(self, slots: Sequence[int] | Tensor) -> None:
        """Make ``slots`` as new, bit for bit; no other slot changes."""
        index = torch.as_tensor(slots, dtype=torch.int64, device="cpu")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < self.slots:
            raise InputError(f"slots {index.tolist()}; this engine has {self.slots}")
        index = index.to(self.model.device)
        self._encoder.now.load_(index, self._fresh[0])
        self._decoder.now.load_(index, self._fresh[1])

    @torch.inference_mode()
    @without_autocast
    def begin_encoder(self, slot: int, pcm: Tensor) -> Tensor:
        """Start an "exact" stream in ``slot`` -> codes [encoder_start_frames, Q] int64.

        ``pcm`` [n] or [channels, n] is the first ``encoder_start_frames`` frames of audio; the
        slot then goes on with ``encode``. For many slots call it for each: they are independent.
        """
        audio = self._clip(pcm)
        frames = self.model.encoder_start_frames
        if audio.shape[1] != frames * self.model.config.hop_length:
            raise InputError(f"audio of shape {tuple(pcm.shape)}; pass {frames} frames")
        return self._quantize(self._encoder.begin(self.check_slot(slot), audio))

    @torch.inference_mode()
    @without_autocast
    def begin_decoder(self, slot: int, codes: Tensor) -> Tensor:
        """Start an "exact" stream in ``slot`` -> audio [n] or [channels, n].

        ``codes`` [decoder_start_frames, Q] int64; the slot then goes on with ``decode``.
        """
        frames = self.model.decoder_start_frames
        if codes.ndim != 2 or len(codes) != frames:
            raise InputError(f"codes of shape {tuple(codes.shape)}; pass {frames} frames")
        return as_clip(self._decoder.begin(self.check_slot(slot), self._dequantize(codes)))

    @torch.inference_mode()
    @without_autocast
    def finish_encoder(self, slot: int, pcm: Tensor, *, begun: bool = True) -> Tensor:
        """The codes [frames, Q] int64 of the end of a clip [n] or [channels, n], n >= 0.

        The end is padded as the offline model pads; the slot stays as it was, to be ``reset``.
        ``begun`` False means that the clip is too short to have begun, and this is all of it.
        """
        audio, slot = self._clip(pcm), self.check_slot(slot)
        if not audio.shape[1]:
            return torch.zeros(0, self.codebooks, dtype=torch.int64, device=self.model.device)
        return self._quantize(
            self._encoder.finish(slot, audio) if begun else self._encoder.whole(audio)
        )

    @torch.inference_mode()
    @without_autocast
    def finish_decoder(self, slot: int, codes: Tensor, *, begun: bool = True) -> Tensor:
        """The audio [n] or [channels, n] of the last codes [frames, Q] and of what is held.

        As ``finish_encoder`` for ``begun`` and the slot.
        """
        slot, latents = self.check_slot(slot), self._dequantize(codes)
        if not begun and not len(codes):
            raise InputError("no codes; a clip has at least one frame")
        return as_clip(
            self._decoder.finish(slot, latents) if begun else self._decoder.whole(latents)
        )

    @property
    def encoder_state(self) -> StreamState:
        """The encoders' states, a row for each slot."""
        return self._encoder.now

    @property
    def decoder_state(self) -> StreamState:
        """The decoders' states, a row for each slot."""
        return self._decoder.now

    def state_of(self, slot: int) -> tuple[Tensor, Tensor]:
        """A copy of the encoder and decoder state [N] of one slot, for ``load_state``."""
        return self._encoder.now.row(self.check_slot(slot)), self._decoder.now.row(slot)

    def load_state(self, slot: int, state: tuple[Tensor, Tensor]) -> None:
        """Make ``slot`` continue, bit for bit, the stream that ``state`` was taken from."""
        self._encoder.now.load_(self.check_slot(slot), state[0])
        self._decoder.now.load_(slot, state[1])

    @property
    def ticks(self) -> Mapping[str, Step]:
        """The steps under "encode" and "decode", to be timed on the device alone."""
        return {"encode": self._encode, "decode": self._decode[self.codebooks]}

    def describe(self) -> EngineInfo:
        """What this engine runs on."""
        ops = self.model.ops
        names = [field.name for field in fields(ops) if callable(getattr(TORCH, field.name))]
        rows = {
            name: TORCH.name if getattr(ops, name) is getattr(TORCH, name) else ops.name
            for name in names
            if not name.startswith("pack_") and name != "capture"
        }
        graphs = {name: step.eager_because or "one CUDA graph" for name, step in self.ticks.items()}
        widths = [4 * runner.now.arena.shape[1] for runner in (self._encoder, self._decoder)]
        return EngineInfo(str(self.model.device), self.slots, self.codebooks, rows, graphs, *widths)

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        """An independent engine whose slots go on, bit for bit, as these do."""
        other = Engine(
            self.model,
            self.slots,
            self._bandwidth_kbps,
            start=self.start,
            frames=self.frames,
            graph=self.graph,
        )
        for mine, theirs in ((self._encoder, other._encoder), (self._decoder, other._decoder)):
            theirs.now.load_(slice(None), mine.now.arena)
        return other

    def __copy__(self) -> Engine:
        """As ``copy.deepcopy``: two engines never share a state."""
        return self.__deepcopy__({})

    def __reduce__(self) -> Any:
        """Refused: an engine belongs to its codec; the states of its slots are what travels."""
        raise StateError("an Engine cannot be pickled; pickle state_of() each slot")

    def __repr__(self) -> str:
        return (
            f"<Engine of {self.slots} slots, {self.codebooks} codebooks, start={self.start!r}, "
            f"{self.frames} frames per tick, {self.model.ops.name!r} on {self.model.device}>"
        )

    def _check_mask(self, active: Tensor | None) -> None:
        if active is not None and (active.shape != (self.slots,) or active.dtype != torch.bool):
            raise InputError(
                f"active of shape {tuple(active.shape)} and type {active.dtype}; pass bool "
                f"[{self.slots}]"
            )

    def _prepare(self, work: Work, x: Tensor) -> Step:
        ops = self.model.ops
        return ops.capture(ops, work, x, graph=self.graph, live=True)

    def _prepare_decoder(self, books: int) -> Step:
        whole = (self.slots, self.frames, books)
        shape = whole if self.frames > 1 else (self.slots, books)
        codes = torch.zeros(shape, dtype=torch.int64, device=self.model.device)
        return self._prepare(
            decode_work(self.model, self._decoder, whole, self._audio_shape), codes
        )

    def _quantize(self, latents: Tensor) -> Tensor:
        weights = self.model
        return weights.ops.rvq_encode(latents, weights.codebooks, codebooks=self.codebooks)[0]

    def _dequantize(self, codes: Tensor) -> Tensor:
        on_device = codes[None].to(self.model.device)
        return self.model.ops.rvq_decode(on_device, self.model.codebooks)

    def _clip(self, pcm: Tensor) -> Tensor:
        """[n] or [channels, n], finite -> [1, n, channels] on the device."""
        audio = pcm[None] if pcm.ndim == 1 else pcm
        if audio.ndim != 2 or len(audio) != self.model.config.audio_channels:
            raise InputError(f"audio of shape {tuple(pcm.shape)}; pass [n] or [channels, n]")
        if pcm.device.type == "cpu" and not all_finite(pcm, None):
            raise InputError("the audio holds NaN or infinite samples")
        return audio.t()[None].to(self.model.device)

    def check_slot(self, slot: int) -> int:
        """``slot``; raises InputError for one that is not there."""
        if not 0 <= slot < self.slots:
            raise InputError(f"slot {slot}; this engine has {self.slots}")
        return slot
