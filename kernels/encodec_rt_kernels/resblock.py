"""Residual block: shortcut(x) + w_out elu(w_in * elu(context, x) + b_in) + bias.

``w_in`` is a dilated convolution to H hidden channels, ``w_out`` a 1x1 convolution back to C, and
the shortcut a 1x1 convolution or x itself. ``bias`` is the sum of both output biases.

Narrow blocks (C <= configs.FUSED_CHANNELS) take one launch: a program keeps the hidden channels of
its rows in registers, so they never reach memory. Wide blocks take two: the dilated convolution,
then both 1x1 convolutions as one product over [elu(hidden), x]. In one launch each program would
have to read all weights of the block (0.8 MB at C = 256), and one slot has rows for a few programs
only. Many slots are limited by the multiplications.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from encodec_rt_kernels import configs
from encodec_rt_kernels.conv1d import conv1d, tile_of
from encodec_rt_kernels.device import (
    Arguments,
    carry_context,
    elu,
    follow,
    launch_metadata,
    load_tile,
    load_window,
    rounded,
    to_dot,
)

Packed = tuple[Tensor, ...]


def _join_products(arguments: Arguments) -> int:
    depth = arguments["HIDDEN"] + arguments["CHANNELS"] * arguments["SHORTCUT"]
    return int(arguments["rows"] * arguments["CHANNELS"] * depth)


def _products(arguments: Arguments) -> int:
    rows, middle = arguments["slots"] * arguments["steps"], arguments["HIDDEN"] * arguments["TAPS"]
    dilated = rows * arguments["CHANNELS"] * middle
    return int(dilated + _join_products({**arguments, "rows": rows}))


@triton.jit(do_not_specialize=["slots", "steps"], launch_metadata=launch_metadata(_products))
def _resblock_kernel(
    x_ptr,
    context_ptr,
    context_next_ptr,
    weight_in_ptr,
    bias_in_ptr,
    weight_out_ptr,
    bias_ptr,
    shortcut_ptr,
    y_ptr,
    context_stride,
    context_next_stride,
    slots,
    steps,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    TAPS: tl.constexpr,
    DILATION: tl.constexpr,
    PAST: tl.constexpr,
    SHORTCUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    MIDDLE: tl.constexpr,
    CARRY: tl.constexpr,
    DOT: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_valid = row < slots * steps
    slot = (row // steps).to(tl.int64)
    first = row % steps - PAST
    col = tl.arange(0, COLS)
    col_valid = col < CHANNELS
    x_row = x_ptr + slot * steps * CHANNELS
    context_row = context_ptr + slot * context_stride + PAST * CHANNELS
    acc = tl.zeros((ROWS, COLS), tl.float32)
    for middle in tl.static_range(0, HIDDEN, MIDDLE):
        h = middle + tl.arange(0, MIDDLE)
        h_valid = h < HIDDEN
        hidden = tl.zeros((ROWS, MIDDLE), tl.float32)
        for start in range(0, TAPS * CHANNELS, DEPTH):
            k = start + tl.arange(0, DEPTH)
            value = load_window(
                x_row[:, None],
                context_row[:, None],
                row_valid[:, None],
                first[:, None],
                k[None, :],
                CHANNELS,
                TAPS,
                DILATION,
                PAST,
                True,
            )
            weight = load_tile(weight_in_ptr, k, k < TAPS * CHANNELS, h, h_valid, HIDDEN)
            hidden = tl.dot(rounded(value, DOT), weight, hidden, input_precision=DOT)
        hidden = elu(hidden + tl.load(bias_in_ptr + h, mask=h_valid, other=0.0)[None, :])
        weight_out = load_tile(weight_out_ptr, h, h_valid, col, col_valid, CHANNELS)
        acc = tl.dot(rounded(hidden, DOT), weight_out, acc, input_precision=DOT)
    place = row.to(tl.int64)[:, None] * CHANNELS + col[None, :]
    valid = row_valid[:, None] & col_valid[None, :]
    if SHORTCUT:
        for start in range(0, CHANNELS, DEPTH):
            k = start + tl.arange(0, DEPTH)
            value = load_tile(x_ptr, row.to(tl.int64), row_valid, k, k < CHANNELS, CHANNELS)
            weight = load_tile(shortcut_ptr, k, k < CHANNELS, col, col_valid, CHANNELS)
            acc = tl.dot(rounded(value, DOT), weight, acc, input_precision=DOT)
    else:
        acc += tl.load(x_ptr + place, mask=valid, other=0.0)
    acc += tl.load(bias_ptr + col, mask=col_valid, other=0.0)[None, :]
    tl.store(y_ptr + place, acc, mask=valid)
    if PAST > 0:
        carry_context(
            x_ptr,
            context_ptr,
            context_next_ptr,
            context_stride,
            context_next_stride,
            slots,
            steps,
            CHANNELS,
            PAST,
            True,
            CARRY,
        )


@triton.jit(do_not_specialize=["rows"], launch_metadata=launch_metadata(_join_products))
def _join_kernel(
    x_ptr,
    hidden_ptr,
    weight_out_ptr,
    bias_ptr,
    shortcut_ptr,
    y_ptr,
    rows,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    SHORTCUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    row_valid = row < rows
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    col_valid = col < CHANNELS
    acc = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, HIDDEN, DEPTH):
        k = start + tl.arange(0, DEPTH)
        value = load_tile(hidden_ptr, row, row_valid, k, k < HIDDEN, HIDDEN)
        weight = load_tile(weight_out_ptr, k, k < HIDDEN, col, col_valid, CHANNELS)
        acc = tl.dot(rounded(elu(value), DOT), weight, acc, input_precision=DOT)
    place = row[:, None] * CHANNELS + col[None, :]
    valid = row_valid[:, None] & col_valid[None, :]
    if SHORTCUT:
        for start in range(0, CHANNELS, DEPTH):
            k = start + tl.arange(0, DEPTH)
            value = load_tile(x_ptr, row, row_valid, k, k < CHANNELS, CHANNELS)
            weight = load_tile(shortcut_ptr, k, k < CHANNELS, col, col_valid, CHANNELS)
            acc = tl.dot(rounded(value, DOT), weight, acc, input_precision=DOT)
    else:
        acc += tl.load(x_ptr + place, mask=valid, other=0.0)
    acc += tl.load(bias_ptr + col, mask=col_valid, other=0.0)[None, :]
    tl.store(y_ptr + place, acc, mask=valid)


def pack_resblock(weights: Packed, *, rules: configs.Rules = configs.MANY) -> Packed:
    """Pack (w_in [H, C, K], b_in, w_out [C, H, 1], b_out), and a shortcut's (w [C, C, 1], b).

    -> ([K * C, H], b_in, [H, C], the sum of the output biases), and a shortcut's [C, C].
    """
    weight_in, bias_in, weight_out, bias_out, *shortcut = weights
    hidden, channels, taps = weight_in.shape
    dot = rules.dot
    if channels > configs.FUSED_CHANNELS:
        dot = tile_of(configs.architecture(weight_in.device), rules, channels, hidden, taps).dot
    packed = [
        to_dot(weight_in.permute(2, 1, 0).reshape(-1, len(bias_in)), dot),
        bias_in.contiguous(),
        to_dot(weight_out[:, :, 0].t(), rules.dot),
    ]
    if not shortcut:
        return *packed, bias_out.contiguous()
    weight, bias = shortcut
    return *packed, bias_out + bias, to_dot(weight[:, :, 0].t(), rules.dot)


def resblock(
    x: Tensor,
    context: Tensor,
    context_next: Tensor,
    packed: Packed,
    *,
    kernel: int,
    dilation: int,
    rules: configs.Rules = configs.MANY,
) -> Tensor:
    """x [S, T, C], context [S, P, C] -> [S, T, C]. Writes context_next [S, P, C]."""
    weight_in, bias_in, weight_out, bias, *shortcut = packed
    x = x.contiguous()
    slots, steps, channels = x.shape
    arch = configs.architecture(x.device)
    y = torch.empty_like(x)
    if channels > configs.FUSED_CHANNELS:
        hidden = conv1d(
            x,
            context,
            context_next,
            (weight_in, bias_in),
            kernel=kernel,
            stride=1,
            dilation=dilation,
            elu=True,
            rules=rules,
        )
        tile = configs.join(arch, rules, channels)
        grid = (triton.cdiv(slots * steps, tile.rows), triton.cdiv(channels, tile.cols))
        _join_kernel[grid](
            x,
            hidden,
            weight_out,
            bias,
            shortcut[0] if shortcut else bias,
            y,
            slots * steps,
            CHANNELS=channels,
            HIDDEN=len(bias_in),
            SHORTCUT=bool(shortcut),
            ROWS=tile.rows,
            COLS=tile.cols,
            DEPTH=tile.depth,
            DOT=tile.dot,
            **tile.options,
        )
        return y
    block = configs.resblock(arch, rules, channels)
    _resblock_kernel[(triton.cdiv(slots * steps, block.rows), 1)](
        x,
        context,
        context_next,
        weight_in,
        bias_in,
        weight_out,
        bias,
        shortcut[0] if shortcut else bias,
        y,
        context.stride(0),
        context_next.stride(0),
        slots,
        steps,
        CHANNELS=channels,
        HIDDEN=len(bias_in),
        TAPS=kernel,
        DILATION=dilation,
        PAST=context.shape[1],
        SHORTCUT=bool(shortcut),
        ROWS=block.rows,
        COLS=block.cols,
        DEPTH=block.depth,
        MIDDLE=configs.middle(len(bias_in)),
        CARRY=configs.CARRY_BLOCK,
        DOT=block.dot,
        **block.options,
    )
    return y
