"""Causal convolution over (context, x), with an ELU of x first.

    y[s, t, o] = bias[o] + sum_{k, c} w[k, c, o] * full[s, t * stride + k * dilation, c]
    full = context [s, P, c] followed by elu(x) [s, T, c]

``context`` is stored after the ELU. Without ``elu``, x is used as it is.

One launch: ELU, concatenation, product, bias, and the copy of the next context. The product runs
over the flattened (tap, channel) axis in one loop. One slot is limited by reading the weights
(8.4 MB for 256 -> 512 channels and 16 taps), many slots by the multiplications.

If the tile is split, several programs divide that axis among themselves, and a second launch adds
up their partial sums, in order, and the bias. The deepest layers have a separate kernel for few
slots, conv1d_vector.py, and so does a layer with one output, conv1d_single.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from encodec_rt_kernels import configs
from encodec_rt_kernels.conv1d_single import _conv1d_single_kernel
from encodec_rt_kernels.conv1d_vector import _conv1d_vector_kernel
from encodec_rt_kernels.device import (
    carry_context,
    conv1d_products,
    follow,
    launch_metadata,
    load_tile,
    load_window,
    rounded,
    to_dot,
)

Packed = tuple[Tensor, ...]


@triton.jit(
    do_not_specialize=["slots", "steps", "steps_out"],
    launch_metadata=launch_metadata(conv1d_products),
)
def _conv1d_kernel(
    x_ptr,
    context_ptr,
    context_next_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    context_stride,
    context_next_stride,
    slots,
    steps,
    steps_out,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TAPS: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    PAST: tl.constexpr,
    ELU: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    CARRY: tl.constexpr,
    SPLITS: tl.constexpr,
    DOT: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_valid = row < slots * steps_out
    slot = (row // steps_out).to(tl.int64)
    first = row % steps_out * STRIDE - PAST
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    x_row = x_ptr + slot * steps * INPUTS
    context_row = context_ptr + slot * context_stride + PAST * INPUTS
    acc = tl.zeros((ROWS, COLS), tl.float32)
    PART: tl.constexpr = (TAPS * INPUTS + SPLITS * DEPTH - 1) // (SPLITS * DEPTH) * DEPTH
    begin = 0
    end = TAPS * INPUTS
    if SPLITS > 1:
        begin = tl.program_id(2) * PART
        end = tl.minimum(begin + PART, TAPS * INPUTS)
    for start in range(begin, end, DEPTH):
        k = start + tl.arange(0, DEPTH)
        value = load_window(
            x_row[:, None],
            context_row[:, None],
            row_valid[:, None],
            first[:, None],
            k[None, :],
            INPUTS,
            TAPS,
            DILATION,
            PAST,
            ELU,
        )
        weight = load_tile(weight_ptr, k, k < TAPS * INPUTS, col, col < OUTPUTS, OUTPUTS)
        acc = tl.dot(rounded(value, DOT), weight, acc, input_precision=DOT)
    if SPLITS == 1:
        acc += tl.load(bias_ptr + col, mask=col < OUTPUTS, other=0.0)[None, :]
    else:
        y_ptr += tl.program_id(2).to(tl.int64) * slots * steps_out * OUTPUTS
    tl.store(
        y_ptr + row.to(tl.int64)[:, None] * OUTPUTS + col[None, :],
        acc,
        mask=row_valid[:, None] & (col < OUTPUTS)[None, :],
    )
    if PAST > 0:
        carry_context(
            x_ptr,
            context_ptr,
            context_next_ptr,
            context_stride,
            context_next_stride,
            slots,
            steps,
            INPUTS,
            PAST,
            ELU,
            CARRY,
        )


@triton.jit(do_not_specialize=["size"], launch_metadata=launch_metadata(lambda arguments: 0))
def _sum_kernel(
    parts_ptr,
    bias_ptr,
    y_ptr,
    size,
    OUTPUTS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = index < size
    acc = tl.load(parts_ptr + index, mask=valid, other=0.0)
    for _ in tl.static_range(1, SPLITS):
        parts_ptr += size
        acc += tl.load(parts_ptr + index, mask=valid, other=0.0)
    acc += tl.load(bias_ptr + index % OUTPUTS, mask=valid, other=0.0)
    tl.store(y_ptr + index, acc, mask=valid)


def tile_of(
    arch: int,
    rules: configs.Rules,
    inputs: int,
    outputs: int,
    taps: int,
    stride: int = 1,
    dilation: int = 1,
) -> configs.Tile:
    """The tile of a convolution, in whichever of the three kernels computes it."""
    single = configs.conv1d_single(arch, rules, inputs, outputs, taps, stride, dilation)
    vector = configs.conv1d_vector(arch, rules, inputs, outputs, taps)
    return single or vector or configs.conv1d(arch, rules, inputs, outputs, taps)


def pack_conv1d(
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int,
    dilation: int,
    rules: configs.Rules = configs.MANY,
) -> Packed:
    """Pack weight [C', C, K] and bias [C'] as ([K * C, C'], bias)."""
    outputs, inputs, taps = weight.shape
    arch = configs.architecture(weight.device)
    dot = tile_of(arch, rules, inputs, outputs, taps, stride, dilation).dot
    return to_dot(weight.permute(2, 1, 0).reshape(-1, outputs), dot), bias.contiguous()


def conv1d(
    x: Tensor,
    context: Tensor,
    context_next: Tensor,
    packed: Packed,
    *,
    kernel: int,
    stride: int,
    dilation: int,
    elu: bool,
    rules: configs.Rules = configs.MANY,
) -> Tensor:
    """x [S, T, C], context [S, P, C] -> [S, T / stride, C']. Writes context_next [S, P, C]."""
    weight, bias = packed
    x = x.contiguous()
    slots, steps, inputs = x.shape
    outputs = weight.shape[1]
    steps_out = steps // stride
    arch = configs.architecture(x.device)
    y = torch.empty(slots, steps_out, outputs, device=x.device)
    single = configs.conv1d_single(arch, rules, inputs, outputs, kernel, stride, dilation)
    vector = configs.conv1d_vector(arch, rules, inputs, outputs, kernel)
    tile = tile_of(arch, rules, inputs, outputs, kernel, stride, dilation)
    split = tile.splits > 1
    parts = torch.empty(tile.splits, *y.shape, device=x.device) if split else y
    row_tiles = 1 if vector else triton.cdiv(slots * steps_out, tile.rows)
    grid: tuple[int, ...] = (row_tiles, triton.cdiv(outputs, tile.cols), tile.splits)
    launch = _conv1d_kernel
    sizes: dict[str, int | str] = {
        "ROWS": tile.rows,
        "COLS": tile.cols,
        "DEPTH": tile.depth,
        "SPLITS": tile.splits,
        "DOT": tile.dot,
    }
    if single:
        launch = _conv1d_single_kernel
        grid = (slots * triton.cdiv(steps_out, tile.rows - context.shape[1]), 1)
        sizes = {"ROWS": tile.rows, "COLS": tile.cols, "DEPTH": tile.depth}
    elif vector:
        launch = _conv1d_vector_kernel
        sizes = {"COLS": tile.cols, "DEPTH": tile.depth, "SPLITS": tile.splits}
    launch[grid](
        x,
        context,
        context_next,
        weight,
        bias,
        parts,
        context.stride(0),
        context_next.stride(0),
        slots,
        steps,
        steps_out,
        INPUTS=inputs,
        OUTPUTS=outputs,
        TAPS=kernel,
        STRIDE=stride,
        DILATION=dilation,
        PAST=context.shape[1],
        ELU=elu,
        CARRY=configs.CARRY_BLOCK,
        **sizes,
        **tile.options,
    )
    if split:
        _sum_kernel[(triton.cdiv(y.numel(), configs.SUM_BLOCK),)](
            parts,
            bias,
            y,
            y.numel(),
            OUTPUTS=outputs,
            SPLITS=tile.splits,
            BLOCK=configs.SUM_BLOCK,
            **configs.copy(arch, rules),
        )
    return y
