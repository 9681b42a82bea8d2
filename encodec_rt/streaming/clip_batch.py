"""Whole clips in batches: each slot holds one clip, at its own position, from start to end.

An ``Engine`` is for long-lived streams; here clips come and go within a step, and nothing of a clip
is computed by itself, not even its start and end. Codes and audio are those of the offline model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from encodec_rt.model.numerics import without_autocast
from encodec_rt.streaming.clip_bounds import ClipBounds
from encodec_rt.streaming.engine_work import MakeWork, audio_shape, decode_work, encode_work
from encodec_rt.streaming.ops import Ops, Step
from encodec_rt.streaming.runner import Runner
from encodec_rt.streaming.state import StreamState
from encodec_rt.streaming.steps import PackedLayers, run
from encodec_rt.streaming.weights import CodecWeights


@dataclass(frozen=True)
class ClipPart:
    """How many inputs (samples or frames) of the clip in ``slot`` a step takes.

    Fewer than the step's are the clip's end; with ``begins`` they are its first.
    """

    slot: int
    inputs: int
    begins: bool = False


class ClipBatch:
    """One direction of a codec over the clips of some slots.

    A step takes any of the slots. On a CPU they are computed in a batch of the next power of two;
    on a GPU always all of them, so that one CUDA graph serves every step.
    """

    def __init__(self, weights: CodecWeights, net: PackedLayers, slots: int) -> None:
        """For ``weights.encoder`` or ``weights.decoder``."""
        self.weights, self.slots, self.device = weights, slots, weights.device
        self._net = net
        self._state = StreamState.allocate(net.plan, slots, weights.device)
        on_cpu = weights.device.type == "cpu"
        sizes = [1 << power for power in range(slots.bit_length()) if on_cpu and 1 << power < slots]
        self._sizes = [*sizes, slots]
        self._made: dict[tuple[int, ...], _Sized] = {}

    def rows_for(self, clips: int) -> int:
        """How many rows a step with this many clips computes."""
        return next(size for size in self._sizes if size >= clips)

    def row(self, slot: int) -> Tensor:
        """The state [N] of a slot."""
        return self._state.arena[slot]

    def _step(self, parts: Sequence[ClipPart], make: MakeWork, x: Tensor) -> Tensor:
        """Rows of ``x``, on the host, through the slots of ``parts``; valid until the next step."""
        size, arena = self.rows_for(len(parts)), self._state.arena
        key = (size, *x.shape[1:])
        if key not in self._made:
            live = size == self.slots
            self._made[key] = _Sized(self._net, size, arena.device, make, x, live=live)
        index = torch.tensor([part.slot for part in parts], device=arena.device)
        return self._made[key].step(arena, index, parts, x)


class EncodingBatch(ClipBatch):
    """Clips to codes."""

    def __init__(self, weights: CodecWeights, slots: int, codebooks: int) -> None:
        super().__init__(weights, weights.encoder, slots)
        self._books = codebooks

    @torch.inference_mode()
    @without_autocast
    def step(self, parts: Sequence[ClipPart], pcm: Tensor) -> Tensor:
        """Audio [n, samples] or [n, channels, samples] of whole frames -> codes [n, frames, Q].

        Samples after a clip's end must be finite. A row has as many frames as its samples fill,
        counting a partial last one.
        """
        frames = pcm.shape[-1] // self.weights.config.hop_length
        make = encode_work(self.weights, self._books, frames)
        return self._step(parts, make, pcm).view(len(parts), frames, -1)


class DecodingBatch(ClipBatch):
    """Codes to audio, for a model whose transposed convolutions trim nothing on the left."""

    def __init__(self, weights: CodecWeights, slots: int) -> None:
        assert not weights.decoder_lag, "the end of such a clip takes another step"
        super().__init__(weights, weights.decoder, slots)

    @torch.inference_mode()
    @without_autocast
    def step(self, parts: Sequence[ClipPart], codes: Tensor) -> Tensor:
        """Codes [n, frames, Q] -> audio [n, samples] or [n, channels, samples].

        -1 stands for an absent codebook.
        """
        frames, books = codes.shape[1:]
        make = decode_work(self.weights, books, frames)
        audio = self._step(parts, make, codes)
        return audio.view(audio_shape(self.weights.config, len(parts), frames))


class _Sized:
    """The step for one batch size, with its own memory."""

    def __init__(
        self,
        net: PackedLayers,
        size: int,
        device: torch.device,
        make: MakeWork,
        x: Tensor,
        *,
        live: bool,
    ) -> None:
        """For rows like those of ``x``; ``live`` keeps what a repetition can reuse."""
        self._runner = runner = Runner(net, size, device)
        self._bounds = bounds = ClipBounds(net.plan, net.pad_mode, size, device)

        def move(samples: Tensor, active: Tensor, ops: Ops) -> Tensor:
            given = replace(net, ops=ops)
            return run(given, runner.now, runner.proposed, samples, bounds=bounds)

        like = torch.zeros(size, *x.shape[1:], dtype=x.dtype, device=device)
        self._batch = torch.zeros(like.shape, dtype=x.dtype, device="cpu")
        self._work: Step = net.ops.capture(net.ops, make(move, size), like, graph=None, live=live)

    def step(self, arena: Tensor, index: Tensor, parts: Sequence[ClipPart], x: Tensor) -> Tensor:
        """Step the rows ``index`` of the arena with ``x``, as ``parts`` say."""
        count, now = len(parts), self._runner.now.arena
        torch.index_select(arena, 0, index, out=now[:count])
        if begun := [row for row, part in enumerate(parts) if part.begins]:
            now[begun] = 0.0
        # The other rows hold finite values from an earlier step, which are not used.
        idle = len(now) - count
        inputs = [*(part.inputs for part in parts), *[0] * idle]
        self._bounds.set([*(part.begins for part in parts), *[False] * idle], inputs)
        self._batch[:count] = x
        y = self._work(self._batch, None)
        arena.index_copy_(0, index, self._runner.proposed.arena[:count])
        return y[:count]
