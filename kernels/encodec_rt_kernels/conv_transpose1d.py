"""Transposed convolution of elu(x) that carries its overlap from frame to frame.

    full[s, t * stride + j, o] += sum_c w[j, c, o] * elu(x)[s, t, c]      j < kernel
    full[:, : kernel - stride] += tail
    y = full[:, : T * stride] + bias
    tail_next = full[:, T * stride :], without bias

Taken in output blocks of ``stride`` samples this is a plain convolution with ceil(kernel / stride)
taps and stride * C' outputs, so no sample is written twice and no addition is atomic. The blocks
past T are the next tail. One launch: ELU, product, overlap-add, bias, next tail. One slot is
limited by reading the weights, many slots by the multiplications. For few slots the deepest layer
is a matrix-vector product: a program keeps its weights in registers, read before the vector is
ready.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from encodec_rt_kernels import configs
from encodec_rt_kernels.device import (
    Arguments,
    elu,
    follow,
    launch_metadata,
    load_tile,
    rounded,
    to_dot,
)

Packed = tuple[Tensor, ...]


def _products(arguments: Arguments) -> int:
    rows, width = (
        arguments["slots"] * arguments["steps"],
        arguments["STRIDE"] * arguments["OUTPUTS"],
    )
    return int(rows * arguments["INPUTS"] * arguments["TAPS"] * width)


@triton.jit(do_not_specialize=["slots", "steps"], launch_metadata=launch_metadata(_products))
def _conv_transpose1d_kernel(
    x_ptr,
    tail_ptr,
    tail_next_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    tail_stride,
    tail_next_stride,
    slots,
    steps,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TAPS: tl.constexpr,
    STRIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    WIDTH: tl.constexpr = STRIDE * OUTPUTS
    # The last programs compute the tails: the blocks past the end, beyond the first tap's reach.
    ready_tiles = tl.cdiv(slots * steps, ROWS)
    tails = tl.program_id(0) >= ready_tiles
    blocks = tl.where(tails, TAPS - 1, steps)
    row = (tl.program_id(0) - tl.where(tails, ready_tiles, 0)) * ROWS + tl.arange(0, ROWS)
    row_valid = row < slots * blocks
    slot = (row // blocks).to(tl.int64)
    block = row % blocks + tl.where(tails, steps, 0)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    col_valid = col < WIDTH
    x_row = x_ptr + slot * steps * INPUTS
    acc = tl.zeros((ROWS, COLS), tl.float32)
    begin = tl.where(tails, INPUTS, 0)
    # With fewer steps than taps, the last taps have no input and would only add zeros.
    end = tl.where(tails, TAPS, tl.minimum(steps, TAPS)) * INPUTS
    for start in range(begin, end, DEPTH):
        k = start + tl.arange(0, DEPTH)
        k_valid = k < TAPS * INPUTS
        step = block[:, None] - (k // INPUTS)[None, :]
        valid = row_valid[:, None] & k_valid[None, :] & (step >= 0) & (step < steps)
        offset = step * INPUTS + (k % INPUTS)[None, :]
        value = elu(tl.load(x_row[:, None] + offset, mask=valid, other=0.0))
        weight = load_tile(weight_ptr, k, k_valid, col, col_valid, WIDTH)
        acc = tl.dot(rounded(value, DOT), weight, acc, input_precision=DOT)
    valid = row_valid[:, None] & col_valid[None, :]
    place = block[:, None] * WIDTH + col[None, :]
    tail = tl.load(
        tail_ptr + (slot * tail_stride)[:, None] + place,
        mask=valid & (place < OVERLAP * OUTPUTS),
        other=0.0,
    )
    acc += tail
    bias = tl.load(bias_ptr + col % OUTPUTS, mask=col_valid, other=0.0)
    ready = steps * WIDTH
    tl.store(
        y_ptr + (slot * ready)[:, None] + place, acc + bias[None, :], mask=valid & (place < ready)
    )
    tl.store(
        tail_next_ptr + (slot * tail_next_stride)[:, None] + place - ready,
        acc,
        mask=valid & (place >= ready) & (place < ready + OVERLAP * OUTPUTS),
    )


@triton.jit(do_not_specialize=["slots", "steps"], launch_metadata=launch_metadata(_products))
def _conv_transpose1d_vector_kernel(
    x_ptr,
    tail_ptr,
    tail_next_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    tail_stride,
    tail_next_stride,
    slots,
    steps,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TAPS: tl.constexpr,
    STRIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHAINED: tl.constexpr,
):
    tl.static_assert(TAPS == 2)
    WIDTH: tl.constexpr = STRIDE * OUTPUTS
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    col_valid = col < WIDTH
    overlaps = col < OVERLAP * OUTPUTS
    k = tl.arange(0, DEPTH)
    k_valid = k < INPUTS
    # [DEPTH, COLS] each, kept in registers for all steps, and read before the steps are ready.
    now = load_tile(weight_ptr, k, k_valid, col, col_valid, WIDTH)
    later = load_tile(weight_ptr + INPUTS * WIDTH, k, k_valid, col, col_valid, WIDTH)
    bias = tl.load(bias_ptr + col % OUTPUTS, mask=col_valid, other=0.0)
    follow(CHAINED)
    for index in range(0, slots):
        slot = tl.cast(index, tl.int64)
        rest = tl.load(tail_ptr + slot * tail_stride + col, mask=overlaps, other=0.0)
        for step in range(0, steps):
            place = slot * steps + step
            value = elu(tl.load(x_ptr + place * INPUTS + k, mask=k_valid, other=0.0))
            y = tl.sum(value[:, None] * now, axis=0) + rest + bias
            rest = tl.sum(value[:, None] * later, axis=0)
            tl.store(y_ptr + place * WIDTH + col, y, mask=col_valid)
        tl.store(tail_next_ptr + slot * tail_next_stride + col, rest, mask=overlaps)


def tile_of(arch: int, rules: configs.Rules, inputs: int, width: int, taps: int) -> configs.Tile:
    """The tile of a transposed convolution, in whichever of the two kernels computes it."""
    vector = configs.conv_transpose1d_vector(arch, rules, inputs, taps)
    return vector or configs.conv_transpose1d(arch, rules, inputs, width)


def pack_conv_transpose1d(
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int,
    dilation: int,
    rules: configs.Rules = configs.MANY,
) -> Packed:
    """Pack weight [C, C', K], bias [C'] as ([U * C, stride * C'], bias), U = ceil(K / stride)."""
    assert dilation == 1, "no transposed convolution of the model is dilated"
    inputs, outputs, kernel = weight.shape
    taps = -(-kernel // stride)
    padded = torch.nn.functional.pad(weight, (0, taps * stride - kernel))
    blocks = padded.reshape(inputs, outputs, taps, stride).permute(2, 0, 3, 1)
    width = stride * outputs
    dot = tile_of(configs.architecture(weight.device), rules, inputs, width, taps).dot
    return to_dot(blocks.reshape(taps * inputs, width), dot), bias.contiguous()


def conv_transpose1d(
    x: Tensor,
    tail: Tensor,
    tail_next: Tensor,
    packed: Packed,
    *,
    kernel: int,
    stride: int,
    rules: configs.Rules = configs.MANY,
) -> Tensor:
    """x [S, T, C], tail [S, kernel - stride, C'] -> [S, T * stride, C']. Writes tail_next."""
    weight, bias = packed
    x = x.contiguous()
    slots, steps, inputs = x.shape
    outputs = len(bias)
    taps = -(-kernel // stride)
    arch = configs.architecture(x.device)
    vector = configs.conv_transpose1d_vector(arch, rules, inputs, taps)
    tile = tile_of(arch, rules, inputs, stride * outputs, taps)
    y = torch.empty(slots, steps * stride, outputs, device=x.device)
    rows = triton.cdiv(slots * steps, tile.rows) + triton.cdiv(slots * (taps - 1), tile.rows)
    grid = (rows, triton.cdiv(stride * outputs, tile.cols))
    launch = _conv_transpose1d_kernel
    sizes: dict[str, int | str] = {"ROWS": tile.rows, "COLS": tile.cols, "DEPTH": tile.depth}
    if vector:
        launch, grid = _conv_transpose1d_vector_kernel, (grid[1], 1)
        del sizes["ROWS"]
    else:
        sizes["DOT"] = tile.dot
    launch[grid](
        x,
        tail,
        tail_next,
        weight,
        bias,
        y,
        tail.stride(0),
        tail_next.stride(0),
        slots,
        steps,
        INPUTS=inputs,
        OUTPUTS=outputs,
        TAPS=taps,
        STRIDE=stride,
        OVERLAP=kernel - stride,
        **sizes,
        **tile.options,
    )
    return y
