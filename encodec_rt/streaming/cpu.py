"""The rows for a CPU: every layer as plain matrix products over weights that are packed once.

A frame is a few hundred rows at most and often one, so what counts is to read each weight once, in
the order it lies in memory, and to issue few operations. Channels-last activations make that
possible: a strided convolution is a product over blocks of ``stride`` inputs, a transposed one a
product and an overlap-add.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from encodec_rt.streaming.cpu_weights import (
    multiplies_first,
    pack_codebooks,
    pack_conv1d,
    pack_conv_transpose1d,
    pack_lstm,
    pack_resblock,
)
from encodec_rt.streaming.ops import TORCH, Packed

_WINDOW_FLOATS = 1 << 15
"""Windows of up to this many floats are copied out (they stay in the first caches); beyond that
one product per tap, accumulated, reads less memory."""

_LONG = 32
"""Steps from which torch's own LSTM is faster: it first packs its weights, in some milliseconds."""

_NARROW = 16
"""Fewer channels than this make a product per tap too thin; their windows are always copied."""


def _product(rows: Tensor, weight: Tensor, bias: Tensor, halved: Sequence[Tensor]) -> Tensor:
    """rows [R, K] @ weight [K, N] + bias; one row takes ``halved`` if there is one."""
    if halved and len(rows) == 1:
        return torch.mv(halved[0], rows[0].half()).float().add_(bias)[None]
    return torch.addmm(bias, rows, weight)


def _with_context(x: Tensor, context: Tensor, context_next: Tensor, elu: bool) -> Tensor:
    """[S, P + T, C], the context and x, after its ELU; the last P are written to context_next."""
    past = context.shape[1]
    if not past:
        return (functional.elu(x) if elu else x.clone()).contiguous()
    full = torch.cat([context, x], dim=1)
    if elu:
        functional.elu_(full.narrow(1, past, x.shape[1]))
    context_next.copy_(full.narrow(1, x.shape[1], past))
    return full


def _correlate(
    full: Tensor, packed: Sequence[Tensor], kernel: int, stride: int, dilation: int
) -> Tensor:
    """full [S, L, C], contiguous in its last two axes -> [S, T', C'], no padding."""
    weight, bias, *halved = packed
    slots, length, channels = full.shape
    if multiplies_first(len(bias), stride):
        return _shift_products(full, weight, bias, kernel, dilation)
    if stride > 1 and dilation == 1 and kernel % stride == 0 and length % stride == 0:
        kernel, length, channels = kernel // stride, length // stride, channels * stride
        stride = 1
    steps = (length - (kernel - 1) * dilation - 1) // stride + 1
    reach = kernel * channels
    small = kernel > 2 and steps * reach <= _WINDOW_FLOATS
    if stride > 1 or channels < _NARROW or steps == 1 or small:
        windows = full.as_strided(
            (slots, steps, kernel, channels),
            (full.stride(0), stride * channels, dilation * channels, 1),
        )
        y = _product(windows.reshape(slots * steps, reach), weight, bias, halved)
        return y.view(slots, steps, -1)
    # Windows that run from one slot into the next are computed too, and never looked at.
    rows = full.reshape(slots * length, channels)
    used = len(rows) - (kernel - 1) * dilation
    y = torch.addmm(bias, rows[:used], weight[:channels])
    for tap in range(1, kernel):
        start = tap * dilation
        y.addmm_(rows[start : start + used], weight[tap * channels : (tap + 1) * channels])
    return y.as_strided((slots, steps, len(bias)), (length * len(bias), len(bias), 1))


def _shift_products(
    full: Tensor, weight: Tensor, bias: Tensor, kernel: int, dilation: int
) -> Tensor:
    slots, length, channels = full.shape
    outputs, steps = len(bias), length - (kernel - 1) * dilation
    products = weight @ full.reshape(slots * length, channels).t()
    total = slots * length
    shifted = products.as_strided(
        (kernel, outputs, slots, steps), (outputs * total + dilation, total, length, 1)
    )
    return shifted.sum(0).permute(1, 2, 0) + bias


def _conv1d(
    x: Tensor,
    context: Tensor,
    context_next: Tensor,
    packed: Packed,
    *,
    kernel: int,
    stride: int,
    dilation: int,
    elu: bool,
) -> Tensor:
    full = _with_context(x, context, context_next, elu)
    return _correlate(full, packed, kernel, stride, dilation)


def _resblock(
    x: Tensor,
    context: Tensor,
    context_next: Tensor,
    packed: Packed,
    *,
    kernel: int,
    dilation: int,
) -> Tensor:
    weight_out, bias_out, *straight = packed[2:]
    full = _with_context(x, context, context_next, True)
    hidden = functional.elu_(_correlate(full, packed[:2], kernel, 1, dilation))
    rows, inner = x.reshape(-1, x.shape[2]), hidden.reshape(-1, hidden.shape[2])
    if straight:
        y = torch.addmm(bias_out, rows, straight[0]).addmm_(inner, weight_out)
    else:
        y = torch.addmm(bias_out, inner, weight_out).add_(rows)
    return y.view(x.shape)


def _conv_transpose1d(
    x: Tensor, tail: Tensor, tail_next: Tensor, packed: Packed, *, kernel: int, stride: int
) -> Tensor:
    weight, bias, *halved = packed
    slots, steps, channels = x.shape
    outputs, kept, ready = tail.shape[2], kernel - stride, steps * stride
    products = _product(functional.elu(x).reshape(-1, channels), weight, bias, halved)
    blocks = products.view(slots, steps, -1, stride * outputs).unbind(2)
    if kernel == 2 * stride:
        full = torch.cat([tail.reshape(slots, 1, -1), blocks[1]], dim=1)
        full.narrow(1, 0, steps).add_(blocks[0])
        samples = full.view(slots, -1, outputs)
    else:
        full = x.new_zeros(slots, steps + len(blocks) - 1, stride * outputs)
        for index, block in enumerate(blocks):
            full.narrow(1, index, steps).add_(block)
        samples = full.view(slots, -1, outputs)
        samples.narrow(1, 0, kept).add_(tail)
    tail_next.copy_(samples.narrow(1, ready, kept))
    return samples.narrow(1, 0, ready)


def _lstm(
    x: Tensor,
    hidden: Tensor,
    cell: Tensor,
    hidden_next: Tensor,
    cell_next: Tensor,
    packed: Packed,
) -> Tensor:
    parts = len(packed) // hidden.shape[1]
    layers = [packed[at : at + parts] for at in range(0, len(packed), parts)]
    if x.shape[1] >= _LONG:
        plain = [weight for layer in layers for weight in layer[2:6]]
        state = [part.transpose(0, 1).contiguous() for part in (hidden, cell)]
        y, *state = torch.lstm(x, state, plain, True, len(layers), 0.0, False, False, True)
        for part, part_next in zip(state, (hidden_next, cell_next), strict=True):
            part_next.copy_(part.transpose(0, 1))
        return y.add_(x)
    y = torch.empty_like(x)
    h_now, c_now = hidden.unbind(1), cell.unbind(1)
    h_next, c_next = hidden_next.unbind(1), cell_next.unbind(1)
    for frame, following in zip(x.unbind(1), y.unbind(1), strict=True):
        above = frame
        for layer, (weight, bias, *rest) in enumerate(layers):
            gates = _product(torch.cat([above, h_now[layer]], dim=1), weight, bias, rest[4:])
            _lstm_cell(gates, c_now[layer], h_next[layer], c_next[layer])
            above = h_next[layer]
        torch.add(frame, above, out=following)
        h_now, c_now = h_next, c_next
    return y


def _lstm_cell(gates: Tensor, c: Tensor, h_next: Tensor, c_next: Tensor) -> None:
    """From the gates [S, 4 * D], which are overwritten; ``c_next`` may be ``c``."""
    gates[:, : 3 * c.shape[1]].sigmoid_()
    take, keep, show, new = gates.chunk(4, dim=1)
    torch.mul(c, keep, out=c_next).addcmul_(take, new.tanh_())
    torch.mul(show, c_next.tanh(), out=h_next)


def _rvq_encode(latents: Tensor, packed: Packed, *, codebooks: int) -> Tensor:
    residual = functional.pad(latents.reshape(-1, latents.shape[2]), (0, 1), value=1.0)
    codes = torch.empty(codebooks, len(residual), dtype=torch.int64)
    last = codebooks - 1
    for stage, (products, vectors) in enumerate(_stages(packed, codebooks)):
        torch.argmin(torch.mm(residual, products), dim=-1, out=codes[stage])
        if stage < last:
            residual.sub_(vectors.index_select(0, codes[stage]))
    return codes.t().reshape(*latents.shape[:2], codebooks)


def _rvq_decode(codes: Tensor, packed: Packed) -> Tensor:
    columns = codes.unbind(-1)
    latents: Tensor | None = None
    for indices, (_, vectors) in zip(columns, _stages(packed, len(columns)), strict=True):
        chosen = torch.embedding(vectors, indices)
        latents = chosen if latents is None else latents.add_(chosen)
    assert latents is not None, "codes have at least one codebook"
    return latents[..., :-1]


def _stages(packed: Packed, codebooks: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(packed[: 2 * codebooks : 2], packed[1 : 2 * codebooks : 2], strict=True)


def _commit(now: Tensor, proposed: Tensor, active: Tensor) -> None:
    if len(active) > 1:
        torch.where(active[:, None], proposed, now, out=now)
    elif active.item():
        now.copy_(proposed)


CPU = replace(
    TORCH,
    name="cpu",
    pack_conv1d=pack_conv1d,
    pack_conv_transpose1d=pack_conv_transpose1d,
    pack_resblock=pack_resblock,
    pack_lstm=pack_lstm,
    pack_codebooks=pack_codebooks,
    conv1d=_conv1d,
    conv_transpose1d=_conv_transpose1d,
    resblock=_resblock,
    lstm=_lstm,
    rvq_encode=_rvq_encode,
    rvq_decode=_rvq_decode,
    commit=_commit,
)
"""Every row as float32 matrix products, for one core and few slots."""

CPU_FAST = replace(
    CPU,
    name="cpu, fast",
    pack_conv1d=partial(pack_conv1d, halve=True),
    pack_conv_transpose1d=partial(pack_conv_transpose1d, halve=True),
    pack_lstm=partial(pack_lstm, halve=True),
)
"""The same, but that a single stream's largest products have factors of float16, as precise as
TF32: they wait for memory, and read half as much of it. It changes some codes. Activations beyond
65504, from which those of audio within [-1, 1] are far, overflow."""
