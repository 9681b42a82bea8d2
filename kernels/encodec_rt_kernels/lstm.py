"""A stack of LSTM layers, plus the input.

    i, f, g, o = w [x, h] + b        one product over the concatenated input and hidden state
    c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c');  y = h' (+ x at the top)

One launch per layer and step: a program owns all four gates of its units, so gates, cell, hidden
state and skip never leave it, and no program waits for another. The weights limit it: 8.4 MB a
layer at 512 units, read once per step for all slots.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from encodec_rt_kernels import configs
from encodec_rt_kernels.device import Arguments, follow, launch_metadata, load_tile, tanh

Packed = tuple[Tensor, ...]


def _products(arguments: Arguments) -> int:
    return int(arguments["slots"] * 8 * arguments["UNITS"] ** 2)


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
    take = tl.zeros((ROWS, COLS), tl.float32)
    keep = tl.zeros((ROWS, COLS), tl.float32)
    new = tl.zeros((ROWS, COLS), tl.float32)
    show = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, 2 * UNITS, DEPTH):
        k = start + tl.arange(0, DEPTH)
        k_valid = k < 2 * UNITS
        x = load_tile(x_ptr, slot, slot_valid, k, k < UNITS, x_stride)
        hidden = load_tile(
            hidden_ptr - UNITS, slot, slot_valid, k, (k >= UNITS) & k_valid, hidden_stride
        )
        value = tl.where((k < UNITS)[None, :], x, hidden)
        w_take = load_tile(weight_ptr, k, k_valid, unit, unit_valid, 4 * UNITS)
        w_keep = load_tile(weight_ptr + UNITS, k, k_valid, unit, unit_valid, 4 * UNITS)
        w_new = load_tile(weight_ptr + 2 * UNITS, k, k_valid, unit, unit_valid, 4 * UNITS)
        w_show = load_tile(weight_ptr + 3 * UNITS, k, k_valid, unit, unit_valid, 4 * UNITS)
        take = tl.dot(value, w_take, take, input_precision=DOT)
        keep = tl.dot(value, w_keep, keep, input_precision=DOT)
        new = tl.dot(value, w_new, new, input_precision=DOT)
        show = tl.dot(value, w_show, show, input_precision=DOT)
    bias = bias_ptr + unit
    take += tl.load(bias, mask=unit_valid, other=0.0)[None, :]
    keep += tl.load(bias + UNITS, mask=unit_valid, other=0.0)[None, :]
    new += tl.load(bias + 2 * UNITS, mask=unit_valid, other=0.0)[None, :]
    show += tl.load(bias + 3 * UNITS, mask=unit_valid, other=0.0)[None, :]
    valid = slot_valid[:, None] & unit_valid[None, :]
    cell = load_tile(cell_ptr, slot, slot_valid, unit, unit_valid, cell_stride)
    cell = tl.sigmoid(keep) * cell + tl.sigmoid(take) * tanh(new)
    hidden = tl.sigmoid(show) * tanh(cell)
    tl.store(cell_next_ptr + (slot * cell_next_stride)[:, None] + unit[None, :], cell, mask=valid)
    tl.store(
        hidden_next_ptr + (slot * hidden_next_stride)[:, None] + unit[None, :], hidden, mask=valid
    )
    if TOP:
        place = (slot * y_stride)[:, None] + unit[None, :]
        hidden += tl.load(skip_ptr + place, mask=valid, other=0.0)
        tl.store(y_ptr + place, hidden, mask=valid)


def pack_lstm(weights: Packed) -> Packed:
    """Per layer (w_ih [4D, D], w_hh [4D, D], b_ih, b_hh) -> ([2D, 4D], the sum of the biases)."""
    packed: list[Tensor] = []
    for layer in range(0, len(weights), 4):
        weight_ih, weight_hh, bias_ih, bias_hh = weights[layer : layer + 4]
        packed += [torch.cat([weight_ih, weight_hh], 1).t().contiguous(), bias_ih + bias_hh]
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
    tile = configs.lstm(configs.architecture(x.device), rules, units)
    grid = (triton.cdiv(slots, tile.rows), triton.cdiv(units, tile.cols))
    y = torch.empty_like(x)
    for step in range(steps):
        # A program reads all of the old hidden state, so the new one has to be elsewhere; a cell is
        # read and written by one program only.
        last = step == steps - 1
        hidden_out = hidden_next if last else torch.empty(slots, layers, units, device=x.device)
        cell_in = cell if step == 0 else cell_next
        below = x[:, step]
        for layer in range(layers):
            _lstm_kernel[grid](
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
                ROWS=tile.rows,
                COLS=tile.cols,
                DEPTH=tile.depth,
                DOT=tile.dot,
                **tile.options,
            )
            below = hidden_out[:, layer]
        hidden = hidden_out
    return y
