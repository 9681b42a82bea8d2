"""Convolutions on a CPU: matrix products with weights that are packed once.

A frame has at most a few hundred rows and often one, so the aim is to read each weight once, in
memory order, and to issue few operations. Channels-last activations make that possible: a strided
convolution is a product over blocks of ``stride`` inputs, a transposed one a product and an
overlap-add.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from encodec_rt.streaming.backends.cpu.replay import Replay
from encodec_rt.streaming.backends.cpu.weights import LARGE, multiplies_first
from encodec_rt.streaming.ops import Packed

_WINDOW_FLOATS = 1 << 15
"""Windows of up to this many floats are copied (they stay in the first caches); beyond that,
accumulating one product per tap reads less memory."""

_PIECE_FLOATS = 1 << 17
"""For the same reason a single stream's block goes through a layer in pieces of this size."""

_FEW_ROWS = 16
"""Up to this many rows the BLAS reads a large weight once per row, so it is processed in panels
that stay in a cache: at 4 rows that takes 0.6 of the time."""

_PANEL_FLOATS = 1 << 15

_NARROW = 16
"""With fewer channels than this a product per tap is too small; their windows are always copied."""

_LARGE_FLOATS = 1 << 16
"""From about this many elements on, an elementwise operation takes longer than its call."""


def product(
    replay: Replay, rows: Tensor, weight: Tensor, bias: Tensor, halved: Sequence[Tensor], y: Tensor
) -> None:
    """rows [R, K] @ weight [K, N] + bias into y; one row takes ``halved`` if there is one."""
    if not halved or len(rows) > 1:
        few = 1 < len(rows) <= _FEW_ROWS and weight.numel() >= LARGE and weight.is_contiguous()
        height = max(1, _PANEL_FLOATS // len(bias)) if few else len(weight)
        replay(torch.addmm, bias, rows[:, :height], weight[:height], out=y)
        for at in range(height, len(weight), height):
            replay(y.addmm_, rows[:, at : at + height], weight[at : at + height])
        return
    row, sums = rows[0].half(), y[0].half()
    replay(row.copy_, rows[0])
    replay(torch.mv, halved[0], row, out=sums)
    replay(y[0].copy_, sums)
    replay(y.add_, bias)


def _pieces(slots: int, steps: int, floats: int, stride: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges to process at once: everything, or pieces whose steps of ``floats`` stay cached."""
    most = max(1, _PIECE_FLOATS // (floats * stride)) * stride if slots == 1 else steps
    for start in range(0, steps, most):
        yield start, min(start + most, steps)


def _with_context(
    replay: Replay, x: Tensor, context: Tensor, context_next: Tensor, elu: bool
) -> Tensor:
    """[S, P + T, C]: the context, then x after its ELU; the last P are written to context_next."""
    slots, steps, channels = x.shape
    past = context.shape[1]
    full = replay.empty(slots, past + steps, channels)
    if elu and slots * steps * channels >= _LARGE_FLOATS:
        # This reads and writes once; a copy and an in-place ELU would do so twice.
        replay(full.narrow(1, 0, past).copy_, context)
        replay(torch._C._nn.elu, x, out=full.narrow(1, past, steps))
    else:
        replay(torch.cat, [context, x], dim=1, out=full)
        if elu:
            replay(functional.elu_, full.narrow(1, past, steps))
    if past:
        replay(context_next.copy_, full.narrow(1, steps, past))
    return full


def _correlate(
    replay: Replay,
    full: Tensor,
    packed: Sequence[Tensor],
    kernel: int,
    stride: int,
    dilation: int,
    y: Tensor,
) -> None:
    """full [S, L, C] -> y [S, T', C'], no padding; both are contiguous."""
    weight, bias, *halved = packed
    slots, length, channels = full.shape
    if multiplies_first(len(bias), stride):
        _shift_products(replay, full, weight, bias, dilation, y)
        return
    if stride > 1 and dilation == 1 and kernel % stride == 0 and length % stride == 0:
        kernel, length, channels = kernel // stride, length // stride, channels * stride
        stride = 1
    steps = y.shape[1]
    reach = kernel * channels
    small = kernel > 2 and steps * reach <= _WINDOW_FLOATS
    if stride > 1 or channels < _NARROW or steps == 1 or small:
        windows = full.as_strided(
            (slots, steps, kernel, channels),
            (full.stride(0), stride * channels, dilation * channels, 1),
        )
        if not windows.is_contiguous():
            copied = replay.empty(*windows.shape)
            replay(copied.copy_, windows)
            windows = copied
        rows = windows.view(slots * steps, reach)
        product(replay, rows, weight, bias, halved, y.view(slots * steps, -1))
        return
    full = full.view(slots, length, channels)
    if len(bias) <= _NARROW and kernel % 2 and dilation == 1 and steps % 2 == 0:
        # A product with so few columns is slow: two steps at once double them, for 4/3 of the work.
        outputs = len(bias)
        full, y = full.view(slots, -1, 2 * channels), y.view(slots, -1, 2 * outputs)
        weight, bias = _in_pairs(weight, kernel, channels), bias.repeat(2)
        kernel, channels, steps = (kernel + 1) // 2, 2 * channels, steps // 2
    for rows, sums in zip(full, y, strict=True):
        replay(torch.addmm, bias, rows[:steps], weight[:channels], out=sums)
        for tap in range(1, kernel):
            start = tap * dilation
            part = weight[tap * channels : (tap + 1) * channels]
            replay(sums.addmm_, rows[start : start + steps], part)


def _in_pairs(weight: Tensor, kernel: int, channels: int) -> Tensor:
    """[K * C, C'] with odd K -> [(K + 1) * C, 2 * C'], which computes two steps at once."""
    outputs = weight.shape[1]
    both = weight.new_zeros((kernel + 1) * channels, 2 * outputs)
    both[: kernel * channels, :outputs] = weight
    both[channels:, outputs:] = weight
    return both


def _shift_products(
    replay: Replay, full: Tensor, weight: Tensor, bias: Tensor, dilation: int, y: Tensor
) -> None:
    slots, length, channels = full.shape
    steps, outputs = y.shape[1:]
    products = replay.empty(len(weight), slots * length)
    replay(torch.mm, weight, full.view(slots * length, channels).t(), out=products)
    taps = products.view(-1, outputs, slots, length).permute(0, 2, 3, 1)
    sums = taps[0, :, :steps]
    for tap in range(1, len(taps)):
        replay(sums.add_, taps[tap, :, tap * dilation : tap * dilation + steps])
    replay(torch.add, sums, bias, out=y)


def conv1d(
    replay: Replay,
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
    """``Ops.conv1d``, on a replay."""
    replay.begin_layer(x)
    slots, steps, channels = x.shape
    past = context.shape[1]
    # At a clip's end there may be a window left but no step.
    y = replay.empty(
        slots, (past + steps - (kernel - 1) * dilation - 1) // stride + 1, len(packed[1])
    )
    for start, end in _pieces(slots, steps, max(channels, y.shape[2] // stride), stride):
        full = _with_context(replay, x[:, start:end], context, context_next, elu)
        rows = y[:, start // stride : -(-end // stride)]
        _correlate(replay, full, packed, kernel, stride, dilation, rows)
        context = context_next
    return y


def resblock(
    replay: Replay,
    x: Tensor,
    context: Tensor,
    context_next: Tensor,
    packed: Packed,
    *,
    kernel: int,
    dilation: int,
) -> Tensor:
    """``Ops.resblock``, on a replay."""
    replay.begin_layer(x)
    weight_out, bias_out, *straight = packed[2:]
    slots, steps, channels = x.shape
    y = replay.empty(*x.shape)
    for start, end in _pieces(slots, steps, channels):
        full = _with_context(replay, x[:, start:end], context, context_next, True)
        hidden = replay.empty(slots, end - start, len(packed[1]))
        _correlate(replay, full, packed[:2], kernel, 1, dilation, hidden)
        replay(functional.elu_, hidden)
        rows, sums = (part[:, start:end].view(-1, channels) for part in (x, y))
        inner = hidden.view(len(rows), -1)
        if straight:
            replay(torch.addmm, bias_out, rows, straight[0], out=sums)
            replay(sums.addmm_, inner, weight_out)
        else:
            replay(torch.addmm, bias_out, inner, weight_out, out=sums)
            replay(sums.add_, rows)
        context = context_next
    return y


def conv_transpose1d(
    replay: Replay,
    x: Tensor,
    tail: Tensor,
    tail_next: Tensor,
    packed: Packed,
    *,
    kernel: int,
    stride: int,
) -> Tensor:
    """``Ops.conv_transpose1d``, on a replay."""
    replay.begin_layer(x)
    weight, bias, *halved = packed
    slots, steps, channels = x.shape
    width = stride * tail.shape[2]
    y = replay.empty(slots, steps, width)
    for start, end in _pieces(slots, steps, weight.shape[1]):
        fresh = replay.empty(slots, end - start, channels)
        replay(fresh.copy_, x[:, start:end])
        replay(functional.elu_, fresh)
        products = replay.empty(slots * (end - start), weight.shape[1])
        product(replay, fresh.view(-1, channels), weight, bias, halved, products)
        blocks = products.view(slots, end - start, -1, width).unbind(2)
        _overlap(replay, blocks, tail, tail_next, y[:, start:end])
        tail = tail_next
    return y.view(slots, steps * stride, -1)


def _overlap(
    replay: Replay, blocks: Sequence[Tensor], tail: Tensor, tail_next: Tensor, y: Tensor
) -> None:
    """Add blocks [S, T, W], each one step later than the previous one, and the tail to y.

    The tail is as long as all blocks except the first, or ends within the last one.
    """
    slots, steps, width = y.shape
    if tail.shape[1] * tail.shape[2] == width:
        replay(torch.add, blocks[0][:, :1], tail.view(slots, 1, width), out=y[:, :1])
        if steps > 1:
            replay(torch.add, blocks[0][:, 1:], blocks[1][:, :-1], out=y[:, 1:])
        replay(tail_next.view(slots, width).copy_, blocks[1][:, -1])
        return
    full = replay.empty(slots, steps + len(blocks) - 1, width)
    replay(full.zero_)
    for index, block in enumerate(blocks):
        replay(full.narrow(1, index, steps).add_, block)
    samples = full.view(slots, -1, tail.shape[2])
    replay(samples.narrow(1, 0, tail.shape[1]).add_, tail)
    ready = steps * width // tail.shape[2]
    replay(tail_next.copy_, samples.narrow(1, ready, tail.shape[1]))
    replay(y.copy_, full.narrow(1, 0, steps))
