"""Stepping some of an engine's slots by number, each with its own bandwidth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from encodec_rt.arrays import UNUSABLE, is_count
from encodec_rt.errors import ConfigError, InputError, StateError
from encodec_rt.model.numerics import without_autocast
from encodec_rt.streaming.engine_edges import Edges
from encodec_rt.streaming.engine_work import (
    ABSENT,
    MakeWork,
    Stepped,
    audio_shape,
    check_tensor,
    distinct,
    encode_work,
    frames_of_audio,
    frames_of_latents,
    latents_work,
    named_rows,
    numbered,
    usable_rows,
)
from encodec_rt.streaming.runner import Runner
from encodec_rt.streaming.slot_snapshot import SlotOrigin, SlotSnapshot, layout_sha256
from encodec_rt.streaming.slot_steps import slot_steps
from encodec_rt.streaming.state import StreamState
from encodec_rt.streaming.weights import CodecWeights, Start, check_weights


class SlotEngine:
    """The slots of an engine: their states, and the operations on some of them by number."""

    def __init__(
        self,
        weights: CodecWeights,
        slots: int,
        bandwidth_kbps: float,
        start: Start,
        graph: bool | None,
        gather: bool,
    ) -> None:
        check_weights(weights, "Codec.engine")
        if gather and weights.device.type != "cpu":
            raise ConfigError(
                f"gather=True on {weights.device}; a CUDA graph steps all slots at once, so "
                "leave out gather there"
            )
        self.model = weights
        self.device = weights.device
        self.slots = slots
        self.start: Start = start
        self.codebooks = weights.config.codebooks_for(bandwidth_kbps)
        self.graph = graph
        self.gather = gather
        self.edges = Edges(weights, self.codebooks)
        self._bandwidth_kbps = bandwidth_kbps
        self._encoder = Runner(weights.encoder, slots, weights.device)
        self._decoder = Runner(weights.decoder, slots, weights.device)
        self._steps = {
            "encode": slot_steps(self._encoder, slots, graph, gather),
            "decode": slot_steps(self._decoder, slots, graph, gather),
        }
        self._layout = layout_sha256(weights.encoder.plan, weights.decoder.plan)
        self._books = [self.codebooks] * slots
        self._starts: list[str] = [start] * slots
        self.reset(range(slots))

    @torch.inference_mode()
    @without_autocast
    def encode_slots(self, slots: Sequence[int], pcm: Tensor) -> Stepped:
        """Step some slots with whole frames of audio on the host.

        Audio is [n, samples] or [n, channels, samples]. The rows of the result are codes
        [n, frames, Q] int64, with -1 for codebooks beyond the slot's own. A slot whose audio is not
        finite is refused and stays as it was. Raises InputError for a wrong shape or slot.
        """
        index = distinct(slots, self.slots)
        frames = frames_of_audio(pcm, audio_shape(self.model.config, len(slots), 1))
        work = encode_work(self.model, self.codebooks, frames)
        key = ("codes", frames)
        stepped = self._step("encode", key, work, index, pcm, (len(slots), frames, self.codebooks))
        for row, slot in zip(stepped.rows, slots, strict=True):
            if self._books[slot] < self.codebooks:
                row[:, self._books[slot] :] = ABSENT
        return stepped

    @torch.inference_mode()
    @without_autocast
    def decode_slots(self, slots: Sequence[int], latents: Tensor) -> Stepped:
        """Step some slots with latents [n, frames, hidden_size] on the host, from ``dequantize``.

        The rows of the result are audio [n, samples] or [n, channels, samples]. A slot whose
        latents are not finite is refused and stays as it was. Raises InputError as ``encode_slots``
        does.
        """
        index = distinct(slots, self.slots)
        frames = frames_of_latents(latents, len(slots), self.model.config.hidden_size)
        work, key = latents_work(self.model.config, frames), ("latents", frames)
        shape = audio_shape(self.model.config, len(slots), frames)
        return self._step("decode", key, work, index, latents, shape)

    @torch.inference_mode()
    @without_autocast
    def dequantize(self, codes: Tensor) -> Stepped:
        """Codes [n, frames, Q] int64 -> latents [n, frames, hidden_size]; -1 is an absent codebook.

        This involves no slot: ``refused`` is keyed by the index of each row with codes that do not
        exist. Raises InputError for a wrong shape.
        """
        config = self.model.config
        check_tensor(codes, "codes", torch.int64)
        if codes.ndim != 3 or not 1 <= codes.shape[2] <= config.num_quantizers:
            raise InputError(f"codes of shape {tuple(codes.shape)}; pass [n, frames, codebooks]")
        good = named_rows(codes, config.codebook_size)
        known = codes.clamp(ABSENT, config.codebook_size - 1).to(self.device)
        error = InputError(f"codes outside [0, {config.codebook_size}) that are not {ABSENT}")
        refused = {int(at): error for at in np.flatnonzero(~good)}
        latents = self.model.ops.rvq_decode(known, self.model.codebooks)
        return Stepped(latents.cpu(), refused)

    @torch.inference_mode()
    @without_autocast
    def prewarm(self, frames: Sequence[int] = (1,)) -> None:
        """Prepare steps of these numbers of ``frames``, for all bandwidths, before live audio.

        Slots stay as they are. Raises ConfigError.
        """
        config = self.model.config
        if not isinstance(frames, Sequence) or not all(map(is_count, frames)):
            raise ConfigError(f"frames={frames!r}; a step has one frame or more")
        for count in frames:
            silence = torch.zeros(audio_shape(config, 1, count)[1:], device="cpu")
            work = encode_work(self.model, self.codebooks, count)
            self._steps["encode"].prepare(("codes", count), work, silence)
            latents = torch.zeros(count, config.hidden_size, device="cpu")
            key, decode = ("latents", count), latents_work(config, count)
            self._steps["decode"].prepare(key, decode, latents)
        for kbps in config.target_bandwidths:
            if config.codebooks_for(kbps) <= self.codebooks:
                self.model.start_state(self.start, config.codebooks_for(kbps))

    @torch.inference_mode()
    @without_autocast
    def reset(
        self,
        slots: int | Sequence[int] | Tensor,
        bandwidth_kbps: float | None = None,
        start: Start | None = None,
    ) -> None:
        """Reset ``slots``, or one slot, to a new stream, bit for bit; no other slot changes.

        They then have this bandwidth, which must not exceed the engine's, and this ``start``; None
        means the engine's. Raises InputError, and ConfigError for a bandwidth the engine lacks.
        """
        index = numbered(slots, self.slots)
        books = self.codebooks
        if bandwidth_kbps is not None:
            books = self.model.config.codebooks_for(bandwidth_kbps)
        if books > self.codebooks:
            raise ConfigError(
                f"{bandwidth_kbps:g} kbps for a slot; this engine has {self._bandwidth_kbps:g}"
            )
        start = start or self.start
        fresh = self.model.start_state(start, books)
        for slot in index.tolist():
            self._books[slot], self._starts[slot] = books, start
        index = index.to(self.model.device)
        self._encoder.now.load_(index, fresh[0])
        self._decoder.now.load_(index, fresh[1])

    def codebooks_of(self, slot: int) -> int:
        """The codebooks of ``slot``: its bandwidth."""
        return self._books[self.check_slot(slot)]

    def begin_encoder(self, slot: int, pcm: Tensor) -> Tensor:
        """Start an "exact" stream in ``slot`` -> codes [encoder_start_frames, Q] int64.

        ``pcm`` [n] or [channels, n] is the first ``encoder_start_frames`` frames of audio; continue
        with ``encode``. Call it for each of several slots: they are independent. If the other slots
        must not wait, use ``edges`` in another thread.
        """
        self.check_slot(slot)
        codes, row = self.edges.begin_encoder(pcm)
        self.load_state(slot, (row, None))
        return codes

    def begin_decoder(self, slot: int, codes: Tensor) -> Tensor:
        """Start an "exact" stream in ``slot`` -> audio [n] or [channels, n].

        ``codes`` is [decoder_start_frames, Q] int64; continue with ``decode``.
        """
        self.check_slot(slot)
        audio, row = self.edges.begin_decoder(codes)
        self.load_state(slot, (None, row))
        return audio

    def finish_encoder(self, slot: int, pcm: Tensor, *, begun: bool = True) -> Tensor:
        """The codes [frames, Q] int64 of the end of a clip [n] or [channels, n], n >= 0.

        The end is padded as in the offline model; the slot stays as it was, so ``reset`` it. With
        ``begun`` False the clip was too short to begin, and ``pcm`` is all of it.
        """
        row = self._encoder.now.arena[self.check_slot(slot)]
        return self.edges.finish_encoder(row if begun else None, pcm)

    def finish_decoder(self, slot: int, codes: Tensor, *, begun: bool = True) -> Tensor:
        """The audio [n] or [channels, n] of the last codes [frames, Q] and of what is held.

        ``begun`` and the slot are as in ``finish_encoder``.
        """
        row = self._decoder.now.arena[self.check_slot(slot)]
        return self.edges.finish_decoder(row if begun else None, codes)

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

    @torch.inference_mode()
    def load_state(self, slot: int, state: tuple[Tensor | None, Tensor | None]) -> None:
        """Make ``slot`` continue, bit for bit, the stream that ``state`` was taken from.

        None leaves that direction as it is. Raises InputError for a state of another length.
        """
        self.check_slot(slot)
        for runner, row in zip((self._encoder, self._decoder), state, strict=True):
            if row is not None and row.shape != runner.now.arena.shape[1:]:
                raise InputError(
                    f"a state of {tuple(row.shape)} numbers; this engine has "
                    f"{tuple(runner.now.arena.shape[1:])}"
                )
        for runner, row in zip((self._encoder, self._decoder), state, strict=True):
            if row is not None:
                runner.now.load_(slot, row)

    @torch.inference_mode()
    def snapshot(self, slot: int) -> SlotSnapshot:
        """A copy of the state of ``slot``, for this or another engine, process or machine."""
        encoder, decoder = (row.cpu() for row in self.state_of(slot))
        return SlotSnapshot(encoder, decoder, self._origin(slot, self._books[slot]))

    def restore(self, slot: int, snapshot: SlotSnapshot) -> None:
        """Make ``slot`` continue what ``snapshot`` was taken from, at its bandwidth.

        Raises StateError for other weights, more codebooks than the engine's, or another start.
        """
        if not isinstance(snapshot, SlotSnapshot):
            raise StateError(f"a {type(snapshot).__name__} is not a SlotSnapshot")
        books = min(snapshot.origin.codebooks, self.codebooks)
        self._origin(slot, books).check(snapshot.origin)
        self.load_state(slot, (snapshot.encoder, snapshot.decoder))
        self._books[slot] = books

    def check_slot(self, slot: int) -> int:
        """``slot``; raises InputError if it does not exist."""
        if not (isinstance(slot, (int, np.integer)) and 0 <= slot < self.slots):
            raise InputError(f"slot {slot}; this engine has {self.slots}")
        return slot

    def _origin(self, slot: int, books: int) -> SlotOrigin:
        start = self._starts[self.check_slot(slot)]
        return SlotOrigin(self.model.sha256, self._layout, start, books)

    def _step(
        self,
        direction: str,
        key: tuple[str, int],
        work: MakeWork,
        index: Tensor,
        x: Tensor,
        shape: tuple[int, ...],
    ) -> Stepped:
        """Step the slots ``index`` whose rows of ``x`` are finite; returns rows of ``shape``."""
        steps, good = self._steps[direction], usable_rows(x)
        if good.all():
            return Stepped(steps.step(key, work, index, x).view(shape), {})
        error = InputError(f"the input of this slot holds {UNUSABLE}")
        places = torch.from_numpy(np.flatnonzero(good))
        refused = {int(slot): error for slot in index[torch.from_numpy(~good)]}
        rows = torch.zeros(shape, dtype=torch.int64 if key[0] == "codes" else x.dtype)
        if len(places):
            some = steps.step(key, work, index[places], x[places])
            rows[places] = some.view(len(places), *shape[1:])
        return Stepped(rows, refused)
