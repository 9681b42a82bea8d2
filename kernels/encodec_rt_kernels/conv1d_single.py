"""The convolution of ``conv1d.py`` for a layer with one output, such as the decoder's last.

Each input is read once, goes through the ELU once, and is multiplied by the weights of all taps; an
output is the sum along a diagonal of these products. If each output read its own window of inputs,
the ELUs, one per tap, would take longer than the products.
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
def _conv1d_single_kernel(
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
    CHAINED: tl.constexpr,
):
    tl.static_assert(STRIDE == 1 and OUTPUTS == 1 and ROWS > PAST and COLS >= TAPS)
    channel = tl.arange(0, DEPTH)
    channel_valid = channel < INPUTS
    tap = tl.arange(0, COLS)
    # [COLS, DEPTH], one row per tap, read before x is ready.
    weight = load_tile(weight_ptr, tap, tap < TAPS, channel, channel_valid, INPUTS)
    bias = tl.load(bias_ptr)
    follow(CHAINED)
    # A program's rows are all the inputs that its outputs need.
    row = tl.arange(0, ROWS)
    blocks = tl.cdiv(steps_out, ROWS - PAST)
    slot = (tl.program_id(0) // blocks).to(tl.int64)
    begin = tl.program_id(0) % blocks * (ROWS - PAST)
    value = load_window(
        x_ptr + slot * steps * INPUTS,
        context_ptr + slot * context_stride + PAST * INPUTS,
        (begin + row < PAST + steps)[:, None] & channel_valid[None, :],
        (begin + row - PAST)[:, None],
        channel[None, :],
        INPUTS,
        1,
        1,
        PAST,
        ELU,
    )
    # [ROWS, COLS]: each row times the weights of each tap; an output is the sum along a diagonal.
    terms = tl.dot(value, tl.trans(weight), input_precision="ieee")
    later = tl.minimum(row[:, None] + tap[None, :] * DILATION, ROWS - 1)
    terms = tl.where((tap < TAPS)[None, :], tl.gather(terms, later, 0), 0.0)
    y = tl.sum(terms, axis=1) + bias
    valid = (row < ROWS - PAST) & (begin + row < steps_out)
    tl.store(y_ptr + slot * steps_out + begin + row, y, mask=valid)
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
