"""The convolution of ``conv1d.py`` for few rows, as matrix-vector products.

Each program holds part of the weights in registers and applies them to one row after another. With
so few rows, most of a tile would be padding.
"""

from __future__ import annotations

import triton
import triton.language as tl

from encodec_rt_kernels.device import (
    carry_context,
    conv1d_products,
    follow,
    launch_metadata,
    load_tile,
    load_window,
)


@triton.jit(
    do_not_specialize=["slots", "steps", "steps_out"],
    launch_metadata=launch_metadata(conv1d_products),
)
def _conv1d_vector_kernel(
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
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    CARRY: tl.constexpr,
    SPLITS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    k = tl.program_id(2) * DEPTH + tl.arange(0, DEPTH)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    col_valid = col < OUTPUTS
    # [DEPTH, COLS], kept in registers for all rows, and read before the rows are ready.
    weight = load_tile(weight_ptr, k, k < TAPS * INPUTS, col, col_valid, OUTPUTS)
    bias = tl.zeros((COLS,), tl.float32)
    if SPLITS == 1:
        bias = tl.load(bias_ptr + col, mask=col_valid, other=0.0)
    follow(CHAINED)
    rows = slots * steps_out
    y_ptr += tl.program_id(2).to(tl.int64) * rows * OUTPUTS
    for row in range(0, rows):
        slot = tl.cast(row // steps_out, tl.int64)
        value = load_window(
            x_ptr + slot * steps * INPUTS,
            context_ptr + slot * context_stride + PAST * INPUTS,
            row < rows,
            row % steps_out * STRIDE - PAST,
            k,
            INPUTS,
            TAPS,
            DILATION,
            PAST,
            ELU,
        )
        y = tl.sum(value[:, None] * weight, axis=0) + bias
        tl.store(y_ptr + tl.cast(row, tl.int64) * OUTPUTS + col, y, mask=col_valid)
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
