"""The rows for a CPU: every layer as plain matrix products over weights that are packed once.

A frame is a few hundred rows at most and often one, so what counts is to read each weight once, in
the order it lies in memory, and to issue few operations. Channels-last activations make that
possible: a strided convolution is a product over blocks of ``stride`` inputs, a transposed one a
product and an overlap-add. Every operation goes through a tape into memory that is there already,
so that the next frame repeats the operations and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from encodec_rt.streaming.ops import TORCH, Ops, Packed
from encodec_rt.streaming.tape import Tape

_WINDOW_FLOATS = 1 << 15
"""Windows of up to this many floats are copied out (they stay in the first caches); beyond that
one product per tap, accumulated, reads less memory."""

_PIECE_FLOATS = 1 << 17
"""A single stream's block goes through a layer in pieces of so many floats, for the same reason."""

_LONG = 32
"""Steps from which torch's own LSTM is faster: it first packs its weights, in some milliseconds."""

_NARROW = 16
"""Fewer channels than this make a product per tap too thin; their windows are always copied."""


def _product(
    tape: Tape, rows: Tensor, weight: Tensor, bias: Tensor, halved: Sequence[Tensor], y: Tensor
) -> None:
    """rows [R, K] @ weight [K, N] + bias into y; one row takes ``halved`` if there is one."""
    if not halved or len(rows) > 1:
        tape(torch.addmm, bias, rows, weight, out=y)
        return
    row, sums = rows[0].half(), y[0].half()
    tape(row.copy_, rows[0])
    tape(torch.mv, halved[0], row, out=sums)
    tape(y[0].copy_, sums)
    tape(y.add_, bias)


def _pieces(slots: int, steps: int, floats: int, stride: int = 1) -> Iterator[tuple[int, int]]:
    """From where to where to go at once: all of it, or so that a step of ``floats`` stays near."""
    most = max(1, _PIECE_FLOATS // (floats * stride)) * stride if slots == 1 else steps
    for start in range(0, steps, most):
        yield start, min(start + most, steps)


def _with_context(
    tape: Tape, x: Tensor, context: Tensor, context_next: Tensor, elu: bool
) -> Tensor:
    """[S, P + T, C], the context and x, after its ELU; the last P are written to context_next."""
    slots, steps, channels = x.shape
    past = context.shape[1]
    full = tape.empty(slots, past + steps, channels)
    tape(torch.cat, [context, x], dim=1, out=full)
    if elu:
        tape(functional.elu_, full.narrow(1, past, steps))
    if past:
        tape(context_next.copy_, full.narrow(1, steps, past))
    return full


def _correlate(
    tape: Tape,
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
        _shift_products(tape, full, weight, bias, dilation, y)
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
            copied = tape.empty(*windows.shape)
            tape(copied.copy_, windows)
            windows = copied
        rows = windows.view(slots * steps, reach)
        _product(tape, rows, weight, bias, halved, y.view(slots * steps, -1))
        return
    for rows, sums in zip(full.view(slots, length, channels), y, strict=True):
        tape(torch.addmm, bias, rows[:steps], weight[:channels], out=sums)
        for tap in range(1, kernel):
            start = tap * dilation
            part = weight[tap * channels : (tap + 1) * channels]
            tape(sums.addmm_, rows[start : start + steps], part)


def _shift_products(
    tape: Tape, full: Tensor, weight: Tensor, bias: Tensor, dilation: int, y: Tensor
) -> None:
    slots, length, channels = full.shape
    steps, outputs = y.shape[1:]
    products = tape.empty(len(weight), slots * length)
    tape(torch.mm, weight, full.view(slots * length, channels).t(), out=products)
    taps = products.view(-1, outputs, slots, length).permute(0, 2, 3, 1)
    sums = taps[0, :, :steps]
    for tap in range(1, len(taps)):
        tape(sums.add_, taps[tap, :, tap * dilation : tap * dilation + steps])
    tape(torch.add, sums, bias, out=y)


def _conv1d(
    tape: Tape,
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
    slots, steps, channels = x.shape
    past = context.shape[1]
    # Where no step is left of a clip's end, a window may still be.
    y = tape.empty(
        slots, (past + steps - (kernel - 1) * dilation - 1) // stride + 1, len(packed[1])
    )
    for start, end in _pieces(slots, steps, max(channels, y.shape[2] // stride), stride):
        full = _with_context(tape, x[:, start:end], context, context_next, elu)
        rows = y[:, start // stride : -(-end // stride)]
        _correlate(tape, full, packed, kernel, stride, dilation, rows)
        context = context_next
    return y


def _resblock(
    tape: Tape,
    x: Tensor,
    context: Tensor,
    context_next: Tensor,
    packed: Packed,
    *,
    kernel: int,
    dilation: int,
) -> Tensor:
    weight_out, bias_out, *straight = packed[2:]
    slots, steps, channels = x.shape
    y = tape.empty(*x.shape)
    for start, end in _pieces(slots, steps, channels):
        full = _with_context(tape, x[:, start:end], context, context_next, True)
        hidden = tape.empty(slots, end - start, len(packed[1]))
        _correlate(tape, full, packed[:2], kernel, 1, dilation, hidden)
        tape(functional.elu_, hidden)
        rows, sums = (part[:, start:end].view(-1, channels) for part in (x, y))
        inner = hidden.view(len(rows), -1)
        if straight:
            tape(torch.addmm, bias_out, rows, straight[0], out=sums)
            tape(sums.addmm_, inner, weight_out)
        else:
            tape(torch.addmm, bias_out, inner, weight_out, out=sums)
            tape(sums.add_, rows)
        context = context_next
    return y


def _conv_transpose1d(
    tape: Tape,
    x: Tensor,
    tail: Tensor,
    tail_next: Tensor,
    packed: Packed,
    *,
    kernel: int,
    stride: int,
) -> Tensor:
    weight, bias, *halved = packed
    slots, steps, channels = x.shape
    width = stride * tail.shape[2]
    y = tape.empty(slots, steps, width)
    for start, end in _pieces(slots, steps, weight.shape[1]):
        fresh = tape.empty(slots, end - start, channels)
        tape(fresh.copy_, x[:, start:end])
        tape(functional.elu_, fresh)
        products = tape.empty(slots * (end - start), weight.shape[1])
        _product(tape, fresh.view(-1, channels), weight, bias, halved, products)
        blocks = products.view(slots, end - start, -1, width).unbind(2)
        _overlap(tape, blocks, tail, tail_next, y[:, start:end])
        tail = tail_next
    return y.view(slots, steps * stride, -1)


def _overlap(
    tape: Tape, blocks: Sequence[Tensor], tail: Tensor, tail_next: Tensor, y: Tensor
) -> None:
    """Adds blocks [S, T, W] that are each one step later than the one before, and the tail, to y.

    The tail is as long as all blocks but the first, or ends within the last one.
    """
    slots, steps, width = y.shape
    if tail.shape[1] * tail.shape[2] == width:
        tape(torch.add, blocks[0][:, :1], tail.view(slots, 1, width), out=y[:, :1])
        if steps > 1:
            tape(torch.add, blocks[0][:, 1:], blocks[1][:, :-1], out=y[:, 1:])
        tape(tail_next.view(slots, width).copy_, blocks[1][:, -1])
        return
    full = tape.empty(slots, steps + len(blocks) - 1, width)
    tape(full.zero_)
    for index, block in enumerate(blocks):
        tape(full.narrow(1, index, steps).add_, block)
    samples = full.view(slots, -1, tail.shape[2])
    tape(samples.narrow(1, 0, tail.shape[1]).add_, tail)
    ready = steps * width // tail.shape[2]
    tape(tail_next.copy_, samples.narrow(1, ready, tail.shape[1]))
    tape(y.copy_, full.narrow(1, 0, steps))


def _lstm(
    tape: Tape,
    x: Tensor,
    hidden: Tensor,
    cell: Tensor,
    hidden_next: Tensor,
    cell_next: Tensor,
    packed: Packed,
) -> Tensor:
    slots, steps, width = x.shape
    parts = len(packed) // hidden.shape[1]
    layers = [packed[at : at + parts] for at in range(0, len(packed), parts)]
    y = tape.empty(*x.shape)
    if steps >= _LONG:
        plain = [weight for layer in layers for weight in layer[2:6]]
        tape(_lstm_at_once, x, (hidden, cell), (hidden_next, cell_next), plain, y)
        return y
    both, gates = tape.empty(slots, 2 * width), tape.empty(slots, 4 * width)
    shown = tape.empty(slots, width)
    h_now, c_now = hidden.unbind(1), cell.unbind(1)
    h_next, c_next = hidden_next.unbind(1), cell_next.unbind(1)
    for frame, following in zip(x.unbind(1), y.unbind(1), strict=True):
        above = frame
        for layer, (weight, bias, *rest) in enumerate(layers):
            tape(torch.cat, [above, h_now[layer]], dim=1, out=both)
            _product(tape, both, weight, bias, rest[4:], gates)
            _lstm_cell(tape, gates, c_now[layer], h_next[layer], c_next[layer], shown)
            above = h_next[layer]
        tape(torch.add, frame, above, out=following)
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
    tape: Tape, gates: Tensor, c: Tensor, h_next: Tensor, c_next: Tensor, shown: Tensor
) -> None:
    """From the gates [S, 4 * D], which are overwritten; ``c_next`` may be ``c``."""
    take, keep, show, new = gates.chunk(4, dim=1)
    tape(gates[:, : 3 * c.shape[1]].sigmoid_)
    tape(new.tanh_)
    tape(torch.mul, c, keep, out=c_next)
    tape(c_next.addcmul_, take, new)
    tape(torch.tanh, c_next, out=shown)
    tape(torch.mul, show, shown, out=h_next)


def _rvq_encode(tape: Tape, latents: Tensor, packed: Packed, *, codebooks: int) -> Tensor:
    slots, steps, width = latents.shape
    rows = slots * steps
    residual, chosen = tape.empty(rows, width + 1), tape.empty(rows, width + 1)
    tape(residual[:, :width].view(latents.shape).copy_, latents)
    tape(residual[:, width:].fill_, 1.0)
    distances = tape.empty(rows, packed[0].shape[1])
    nearest = distances.numpy()
    codes = torch.empty(codebooks, rows, dtype=torch.int64)
    for stage, indices in enumerate(codes):
        if stage:
            tape(torch.index_select, packed[2 * stage - 1], 0, codes[stage - 1], out=chosen)
            tape(residual.sub_, chosen)
        tape(torch.mm, residual, packed[2 * stage], out=distances)
        # Several times as fast as torch's; the lowest index wins a tie here too.
        tape(nearest.argmin, 1, indices.numpy())
    return codes.t().view(slots, steps, codebooks)


def _rvq_decode(tape: Tape, codes: Tensor, packed: Packed) -> Tensor:
    slots, steps, books = codes.shape
    width = packed[1].shape[1]
    latents, chosen = tape.empty(slots * steps, width), tape.empty(slots * steps, width)
    for stage, indices in enumerate(codes.view(-1, books).unbind(1)):
        tape(torch.index_select, packed[2 * stage + 1], 0, indices, out=chosen)
        tape((latents.add_ if stage else latents.copy_), chosen)
    return latents.view(slots, steps, width)[..., :-1]


def _commit(now: Tensor, proposed: Tensor, active: Tensor) -> None:
    if len(active) > 1:
        torch.where(active[:, None], proposed, now, out=now)
    elif active.item():
        now.copy_(proposed)


def _taped(row: Callable[..., Tensor], tape: Tape) -> Callable[..., Tensor]:
    def layer(x: Tensor, *args: Tensor | Packed, **kwargs: int) -> Tensor:
        tape.begin_layer(x)
        return row(tape, x, *args, **kwargs)

    return layer


def _on_tape(tape: Tape) -> Ops:
    return replace(
        CPU,
        conv1d=_taped(_conv1d, tape),
        conv_transpose1d=_taped(_conv_transpose1d, tape),
        resblock=_taped(_resblock, tape),
        lstm=_taped(_lstm, tape),
        rvq_encode=_taped(_rvq_encode, tape),
        rvq_decode=_taped(_rvq_decode, tape),
    )


_AT_ONCE = Tape(keep=False)

CPU = replace(
    TORCH,
    name="cpu",
    pack_conv1d=pack_conv1d,
    pack_conv_transpose1d=pack_conv_transpose1d,
    pack_resblock=pack_resblock,
    pack_lstm=pack_lstm,
    pack_codebooks=pack_codebooks,
    conv1d=partial(_conv1d, _AT_ONCE),
    conv_transpose1d=partial(_conv_transpose1d, _AT_ONCE),
    resblock=partial(_resblock, _AT_ONCE),
    lstm=partial(_lstm, _AT_ONCE),
    rvq_encode=partial(_rvq_encode, _AT_ONCE),
    rvq_decode=partial(_rvq_decode, _AT_ONCE),
    commit=_commit,
    on_tape=_on_tape,
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
