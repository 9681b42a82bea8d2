"""A stack of LSTM layers with a skip connection around the whole stack.

    i, f, g, o = w [x, h] + b        one product over the concatenated input and hidden state
    c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c');  y = h' (+ x at the top)

One launch per layer and step: a program owns all four gates of its units, so gates, cell, hidden
state and skip are computed in one place, and no program waits for another. The limit is reading the
weights: 8.4 MB per layer of 512 units, once per step for all slots. For few slots a step is a
matrix-vector product: a program keeps its weights in registers, read before the vector is ready.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from encodec_rt_kernels import configs
from encodec_rt_kernels.device import (
    Arguments,
    follow,
    launch_metadata,
    load_tile,
    rounded,
    tanh,
    to_dot,
)

Packed = tuple[Tensor, ...]


def _products(arguments: Arguments) -> int:
    return int(arguments["slots"] * 8 * arguments["UNITS"] ** 2)


@triton.jit
def through_gates(gates, cell):
    """Gates [..., 2, 2], in the order i, f, g, o, and cell [...] -> next cell and hidden state."""
    even, odd = tl.split(gates)
    take, new = tl.split(even)
    keep, show = tl.split(odd)
    cell = tl.sigmoid(keep) * cell + tl.sigmoid(take) * tanh(new)
    return cell, tl.sigmoid(show) * tanh(cell)


@triton.jit(do_not_specialize=["slots"], launch_metadata=launch_metadata(_products))
def _lstm_kernel(
    x_ptr,
    hidden_ptr,
    cell_ptr,
    weight_ptr,
    bias_ptr,
    hidden_next_ptr,
    cell_next_ptr,
    skip_ptr,
    y_ptr,
    x_stride,
    hidden_stride,
    cell_stride,
    hidden_next_stride,
    cell_next_stride,
    y_stride,
    slots,
    UNITS: tl.constexpr,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    slot = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    slot_valid = slot < slots
    unit = tl.program_id(1) * COLS + tl.arange(0, COLS)
    unit_valid = unit < UNITS
    col = tl.program_id(1) * 4 * COLS + tl.arange(0, 4 * COLS)
    col_valid = col < 4 * UNITS
    acc = tl.zeros((ROWS, 4 * COLS), tl.float32)
    for start in range(0, 2 * UNITS, DEPTH):
        k = start + tl.arange(0, DEPTH)
        k_valid = k < 2 * UNITS
        x = load_tile(x_ptr, slot, slot_valid, k, k < UNITS, x_stride)
        hidden = load_tile(
            hidden_ptr - UNITS, slot, slot_valid, k, (k >= UNITS) & k_valid, hidden_stride
        )
        value = tl.where((k < UNITS)[None, :], x, hidden)
        weight = load_tile(weight_ptr, k, k_valid, col, col_valid, 4 * UNITS)
        acc = tl.dot(rounded(value, DOT), weight, acc, input_precision=DOT)
    acc += tl.load(bias_ptr + col, mask=col_valid, other=0.0)[None, :]
    valid = slot_valid[:, None] & unit_valid[None, :]
    cell = load_tile(cell_ptr, slot, slot_valid, unit, unit_valid, cell_stride)
    cell, hidden = through_gates(tl.reshape(acc, (ROWS, COLS, 2, 2)), cell)
    tl.store(cell_next_ptr + (slot * cell_next_stride)[:, None] + unit[None, :], cell, mask=valid)
    tl.store(
        hidden_next_ptr + (slot * hidden_next_stride)[:, None] + unit[None, :], hidden, mask=valid
    )
    if TOP:
        place = (slot * y_stride)[:, None] + unit[None, :]
        hidden += tl.load(skip_ptr + place, mask=valid, other=0.0)
        tl.store(y_ptr + place, hidden, mask=valid)


@triton.jit(do_not_specialize=["slots"], launch_metadata=launch_metadata(_products))
def _lstm_vector_kernel(
    x_ptr,
    hidden_ptr,
    cell_ptr,
    weight_ptr,
    bias_ptr,
    hidden_next_ptr,
    cell_next_ptr,
    skip_ptr,
    y_ptr,
    x_stride,
    hidden_stride,
    cell_stride,
    hidden_next_stride,
    cell_next_stride,
    y_stride,
    slots,
    UNITS: tl.constexpr,
    TOP: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHAINED: tl.constexpr,
):
    unit = tl.program_id(0) * COLS + tl.arange(0, COLS)
    unit_valid = unit < UNITS
    col = tl.program_id(0) * 4 * COLS + tl.arange(0, 4 * COLS)
    col_valid = col < 4 * UNITS
    k = tl.arange(0, DEPTH)
    k_valid = k < UNITS
    # [DEPTH, 4 * COLS] each, kept in registers for all slots, and read before x is ready.
    from_x = load_tile(weight_ptr, k, k_valid, col, col_valid, 4 * UNITS)
    from_hidden = load_tile(weight_ptr + 4 * UNITS * UNITS, k, k_valid, col, col_valid, 4 * UNITS)
    bias = tl.load(bias_ptr + col, mask=col_valid, other=0.0)
    follow(CHAINED)
    for index in range(0, slots):
        slot = tl.cast(index, tl.int64)
        x = tl.load(x_ptr + slot * x_stride + k, mask=k_valid, other=0.0)
        hidden = tl.load(hidden_ptr + slot * hidden_stride + k, mask=k_valid, other=0.0)
        cell = tl.load(cell_ptr + slot * cell_stride + unit, mask=unit_valid, other=0.0)
        terms = x[:, None] * from_x + hidden[:, None] * from_hidden
        gates = tl.sum(terms, axis=0) + bias
        cell, hidden = through_gates(tl.reshape(gates, (COLS, 2, 2)), cell)
        tl.store(cell_next_ptr + slot * cell_next_stride + unit, cell, mask=unit_valid)
        tl.store(hidden_next_ptr + slot * hidden_next_stride + unit, hidden, mask=unit_valid)
        if TOP:
            hidden += tl.load(skip_ptr + slot * y_stride + unit, mask=unit_valid, other=0.0)
            tl.store(y_ptr + slot * y_stride + unit, hidden, mask=unit_valid)


def pack_lstm(weights: Packed, *, rules: configs.Rules = configs.MANY) -> Packed:
    """Pack (w_ih [4D, D], w_hh [4D, D], b_ih, b_hh) of each layer as ([2D, 4D], b_ih + b_hh).

    The four gates of a unit become adjacent columns.
    """
    packed: list[Tensor] = []
    for layer in range(0, len(weights), 4):
        weight_ih, weight_hh, bias_ih, bias_hh = weights[layer : layer + 4]
        gates, units = torch.cat([weight_ih, weight_hh], 1), weight_hh.shape[1]
        gates = gates.unflatten(0, (4, units)).transpose(0, 1).flatten(0, 1)
        bias = (bias_ih + bias_hh).unflatten(0, (4, units)).t().flatten()
        arch = configs.architecture(gates.device)
        tile = configs.lstm_vector(arch, rules, units) or configs.lstm(arch, rules, units)
        packed += [to_dot(gates.t(), tile.dot), bias.contiguous()]
    return tuple(packed)


def lstm(
    x: Tensor,
    hidden: Tensor,
    cell: Tensor,
    hidden_next: Tensor,
    cell_next: Tensor,
    packed: Packed,
    *,
    rules: configs.Rules = configs.MANY,
) -> Tensor:
    """x [S, T, D], hidden and cell [S, layers, D] -> [S, T, D]. Writes both ``*_next``."""
    x = x.contiguous()
    slots, steps, units = x.shape
    layers = hidden.shape[1]
    arch = configs.architecture(x.device)
    vector = configs.lstm_vector(arch, rules, units)
    tile = vector or configs.lstm(arch, rules, units)
    grid = (triton.cdiv(slots, tile.rows), triton.cdiv(units, tile.cols))
    launch = _lstm_kernel
    sizes: dict[str, int | str] = {"ROWS": tile.rows, "DOT": tile.dot}
    if vector:
        launch, grid, sizes = _lstm_vector_kernel, (grid[1], 1), {}
    y = torch.empty_like(x)
    for step in range(steps):
        # Every program reads the whole old hidden state, so the new one must not overwrite it; a
        # cell is read and written by the same program.
        last = step == steps - 1
        hidden_out = hidden_next if last else torch.empty(slots, layers, units, device=x.device)
        cell_in = cell if step == 0 else cell_next
        below = x[:, step]
        for layer in range(layers):
            launch[grid](
                below,
                hidden[:, layer],
                cell_in[:, layer],
                packed[2 * layer],
                packed[2 * layer + 1],
                hidden_out[:, layer],
                cell_next[:, layer],
                x[:, step],
                y[:, step],
                below.stride(0),
                hidden.stride(0),
                cell_in.stride(0),
                hidden_out.stride(0),
                cell_next.stride(0),
                y.stride(0),
                slots,
                UNITS=units,
                TOP=layer == layers - 1,
                COLS=tile.cols,
                DEPTH=tile.depth,
                **sizes,
                **tile.options,
            )
            below = hidden_out[:, layer]
        hidden = hidden_out
    return y
