"""The ops for a CPU: every layer as plain matrix products, in as few calls as possible.

Every call goes through a replay, over memory that already exists, so that the next frame only
repeats the calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from encodec_rt.streaming.backends.cpu.conv import conv1d, conv_transpose1d, product, resblock
from encodec_rt.streaming.backends.cpu.replay import Replay, ReplayedStep
from encodec_rt.streaming.backends.cpu.weights import (
    pack_codebooks,
    pack_conv1d,
    pack_conv_transpose1d,
    pack_lstm,
    pack_resblock,
)
from encodec_rt.streaming.backends.torch import TORCH, EagerStep, why_no_graph
from encodec_rt.streaming.ops import Ops, Packed, Step, Work

_LONG, _LONG_TOGETHER = 32, 8
"""The number of steps from which torch's own LSTM is faster, for one row and for many: it first
spends some milliseconds on packing its weights."""
_MANY = 128
"""Rows times steps from which that pays."""


def _lstm(
    replay: Replay,
    x: Tensor,
    hidden: Tensor,
    cell: Tensor,
    hidden_next: Tensor,
    cell_next: Tensor,
    packed: Packed,
) -> Tensor:
    replay.begin_layer(x)
    slots, steps, width = x.shape
    parts = len(packed) // hidden.shape[1]
    layers = [packed[at : at + parts] for at in range(0, len(packed), parts)]
    y = replay.empty(*x.shape)
    if steps >= _LONG or (steps >= _LONG_TOGETHER and slots * steps >= _MANY):
        plain = [weight for layer in layers for weight in layer[2:6]]
        replay(_lstm_at_once, x, (hidden, cell), (hidden_next, cell_next), plain, y)
        return y
    both, gates = replay.empty(slots, 2 * width), replay.empty(slots, 4 * width)
    shown = replay.empty(slots, width)
    h_now, c_now = hidden.unbind(1), cell.unbind(1)
    h_next, c_next = hidden_next.unbind(1), cell_next.unbind(1)
    for frame, following in zip(x.unbind(1), y.unbind(1), strict=True):
        above = frame
        for layer, (weight, bias, *rest) in enumerate(layers):
            replay(torch.cat, [above, h_now[layer]], dim=1, out=both)
            product(replay, both, weight, bias, rest[4:], gates)
            _lstm_cell(replay, gates, c_now[layer], h_next[layer], c_next[layer], shown)
            above = h_next[layer]
        replay(torch.add, frame, above, out=following)
        h_now, c_now = h_next, c_next
    return y


def _lstm_at_once(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    state_next: tuple[Tensor, Tensor],
    weights: list[Tensor],
    y: Tensor,
) -> None:
    now = [part.transpose(0, 1).contiguous() for part in state]
    layers = state[0].shape[1]
    above, *after = torch.lstm(x, now, weights, True, layers, 0.0, False, False, True)
    for part, part_next in zip(after, state_next, strict=True):
        part_next.copy_(part.transpose(0, 1))
    torch.add(x, above, out=y)


def _lstm_cell(
    replay: Replay, gates: Tensor, c: Tensor, h_next: Tensor, c_next: Tensor, shown: Tensor
) -> None:
    """The cell update from the gates [S, 4 * D], which are overwritten; ``c_next`` may be ``c``."""
    i, f, o, g = gates.chunk(4, dim=1)
    replay(gates[:, : 3 * c.shape[1]].sigmoid_)
    replay(g.tanh_)
    replay(torch.mul, c, f, out=c_next)
    replay(c_next.addcmul_, i, g)
    replay(torch.tanh, c_next, out=shown)
    replay(torch.mul, o, shown, out=h_next)


def _rvq_encode(replay: Replay, latents: Tensor, packed: Packed, *, codebooks: int) -> Tensor:
    replay.begin_layer(latents)
    slots, steps, width = latents.shape
    rows = slots * steps
    residual, chosen = replay.empty(rows, width + 1), replay.empty(rows, width + 1)
    replay(residual[:, :width].view(latents.shape).copy_, latents)
    replay(residual[:, width:].fill_, 1.0)
    distances = replay.empty(rows, packed[0].shape[1])
    nearest = distances.numpy()
    codes = torch.empty(codebooks, rows, dtype=torch.int64, device=latents.device)
    for stage, indices in enumerate(codes):
        if stage:
            replay(torch.index_select, packed[2 * stage - 1], 0, codes[stage - 1], out=chosen)
            replay(residual.sub_, chosen)
        replay(torch.mm, residual, packed[2 * stage], out=distances)
        # Several times as fast as torch's; the lowest index wins a tie here too.
        replay(nearest.argmin, 1, indices.numpy())
    return codes.t().view(slots, steps, codebooks)


def _rvq_decode(replay: Replay, codes: Tensor, packed: Packed) -> Tensor:
    replay.begin_layer(codes)
    slots, steps, books = codes.shape
    width = packed[1].shape[1]
    latents, chosen = replay.empty(slots * steps, width), replay.empty(slots * steps, width)
    # The row after the last vector is zero, for an absent codebook (-1).
    places = torch.empty(books, slots * steps, dtype=torch.int64, device=codes.device)
    replay(torch.remainder, codes.reshape(-1, books).t(), len(packed[1]), out=places)
    for stage, indices in enumerate(places):
        replay(torch.index_select, packed[2 * stage + 1], 0, indices, out=chosen)
        replay((latents.add_ if stage else latents.copy_), chosen)
    return latents.view(slots, steps, width)[..., :-1]


def _commit(now: Tensor, proposed: Tensor, active: Tensor) -> None:
    if len(active) > 1:
        torch.where(active[:, None], proposed, now, out=now)
    elif active.item():
        now.copy_(proposed)


def _recorded_commit(replay: Replay, now: Tensor, proposed: Tensor, active: Tensor) -> None:
    replay(_commit, now, proposed, active)


def _capture(ops: Ops, work: Work, x: Tensor, *, graph: bool | None, live: bool) -> Step:
    reason = why_no_graph(x.device, graph)
    if not live:
        return EagerStep(ops, work, x, reason)
    return ReplayedStep(partial(_recording, ops), work, reason)


_PLAIN = replace(
    TORCH,
    name="cpu",
    pack_conv1d=pack_conv1d,
    pack_conv_transpose1d=pack_conv_transpose1d,
    pack_resblock=pack_resblock,
    pack_lstm=pack_lstm,
    pack_codebooks=pack_codebooks,
    capture=_capture,
)


_OPS: dict[str, Callable[..., Tensor]] = {
    "conv1d": conv1d,
    "conv_transpose1d": conv_transpose1d,
    "resblock": resblock,
    "lstm": _lstm,
    "rvq_encode": _rvq_encode,
    "rvq_decode": _rvq_decode,
}


def _recording(ops: Ops, replay: Replay) -> Ops:
    """``ops``, with every call made through ``replay``."""
    recorded: dict[str, Any] = {name: partial(op, replay) for name, op in _OPS.items()}
    return replace(ops, commit=partial(_recorded_commit, replay), edit=replay, **recorded)


CPU = replace(_recording(_PLAIN, Replay(keep=False)), commit=_commit, edit=_PLAIN.edit)
"""Every op as float32 matrix products, for one core and few slots."""

CPU_FAST = replace(
    CPU,
    name="cpu, fast",
    pack_conv1d=partial(pack_conv1d, halve=True),
    pack_conv_transpose1d=partial(pack_conv_transpose1d, halve=True),
    pack_lstm=partial(pack_lstm, halve=True),
)
"""The same, except that a single stream's largest products have float16 operands, which are as
precise as TF32: they are limited by memory, and read half as much of it. This changes some codes.
Activations beyond 65504 overflow; with audio within [-1, 1] they stay far below."""
