"""Functions that kernels call: activations, and the part of a convolution that carries context."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0, relative error below 4e-7.

    exp(x) - 1 as written loses all digits of a small x. The polynomial is the Taylor series to
    x^7, whose remainder above -0.35 is below 6e-9 of x.
    """
    tail = 1 / 24 + x * (1 / 120 + x * (1 / 720 + x * (1 / 5040)))
    series = x * (1.0 + x * (1 / 2 + x * (1 / 6 + x * tail)))
    return tl.where(x > -0.35, series, tl.exp(x) - 1.0)


@triton.jit
def elu(x):
    """x where positive, else exp(x) - 1."""
    return tl.where(x > 0.0, x, expm1(tl.minimum(x, 0.0)))


@triton.jit
def tanh(x):
    """Hyperbolic tangent, from expm1(-2|x|), which keeps the digits of a small x."""
    e = expm1(-2.0 * tl.abs(x))
    magnitude = -e / (e + 2.0)
    return tl.where(x < 0.0, -magnitude, magnitude)


@triton.jit
def carry_context(
    x_ptr,
    context_ptr,
    context_next_ptr,
    context_stride,
    context_next_stride,
    slots,
    steps,
    CHANNELS: tl.constexpr,
    PAST: tl.constexpr,
    ELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the last PAST steps of (context, x) to context_next, shared out over all programs.

    The context is stored after the ELU. It is read and written in two places, because other
    programs still read the old one.
    """
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    programs = tl.num_programs(0) * tl.num_programs(1)
    SIZE: tl.constexpr = PAST * CHANNELS
    for start in range(program * BLOCK, slots * SIZE, programs * BLOCK):
        index = start + tl.arange(0, BLOCK)
        valid = index < slots * SIZE
        slot = (index // SIZE).to(tl.int64)
        source = index % SIZE + steps * CHANNELS
        old = source < SIZE
        kept = tl.load(context_ptr + slot * context_stride + source, mask=valid & old, other=0.0)
        fresh = tl.load(
            x_ptr + slot * steps * CHANNELS + source - SIZE,
            mask=valid & (source >= SIZE),
            other=0.0,
        )
        if ELU:
            fresh = elu(fresh)
        value = tl.where(old, kept, fresh)
        tl.store(context_next_ptr + slot * context_next_stride + index % SIZE, value, mask=valid)
