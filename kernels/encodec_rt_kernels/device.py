"""What kernels share: activations, loading and carrying the context, and metadata for profilers.

``launch_metadata`` is passed to ``triton.jit``. With it a profiler shows each launch with its
layer's sizes, its floating-point operations and its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

SIZES = ("INPUTS", "CHANNELS", "UNITS", "WIDTH", "HIDDEN", "OUTPUTS", "SIZE", "TAPS", "STRIDE")
"""The constants of a kernel that identify its layer, in the order in which they are printed."""

Arguments = Mapping[str, Any]


def layer_sizes(arguments: Arguments) -> str:
    """The sizes of a launch's layer, such as 32x64x4x2."""
    return "x".join(str(arguments[size]) for size in SIZES if size in arguments)


def moved_once(arguments: Arguments) -> int:
    """Bytes of all tensors of a launch, if each is read or written once."""
    tensors = (value for value in arguments.values() if isinstance(value, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def conv1d_products(arguments: Arguments) -> int:
    """Number of products in a convolution."""
    rows = arguments["slots"] * arguments["steps_out"]
    return int(rows * arguments["INPUTS"] * arguments["TAPS"] * arguments["OUTPUTS"])


def launch_metadata(
    products: Callable[[Arguments], int], moved: Callable[[Arguments], int] = moved_once
) -> Callable[[object, Any, Arguments], dict[str, str | int]]:
    """The metadata that a profiler reads from launches with these ``products`` and bytes ``moved``.

    ``flops32`` is twice the number of products: a multiplication and an addition each.
    """

    def describe(grid: object, kernel: Any, arguments: Arguments) -> dict[str, str | int]:
        return {
            "name": f"{kernel.name} {layer_sizes(arguments)}".strip(),
            "flops32": 2 * products(arguments),
            "bytes": moved(arguments),
        }

    return describe


@triton.jit
def follow(CHAINED: tl.constexpr):
    """Wait until everything the previous launch wrote can be read, then let the next one start.

    A chained kernel calls this before it reads what another launch wrote; weights may be read
    earlier. Each launch waits for the previous one and so for all before it. In this order at most
    two launches are on the device at a time. If the next one were released before the wait, the
    launches of a whole tick would be resident at once and crowd onto a few multiprocessors.
    """
    if CHAINED:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0, relative error below 4e-7.

    Computed literally, exp(x) - 1 loses all digits for small x. The polynomial is the Taylor series
    up to x^7, whose remainder is below 1.6e-8 |x| for x above -0.35.
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
    """Hyperbolic tangent, from expm1(-2|x|), which is accurate for small x too."""
    e = expm1(-2.0 * tl.abs(x))
    magnitude = -e / (e + 2.0)
    return tl.where(x < 0.0, -magnitude, magnitude)


def to_dot(weight: Tensor, dot: str) -> Tensor:
    """A packed weight, ready for products in ``dot`` arithmetic: rounded to nearest for TF32."""
    if dot != "tf32":
        return weight.contiguous()
    bits = weight.contiguous().view(torch.int32)
    return ((bits + 0x1000) & -0x2000).view(torch.float32)


@triton.jit
def rounded(value, DOT: tl.constexpr):
    """An operand of a product: rounded to nearest for TF32, since a tensor core truncates it."""
    if DOT == "tf32":
        bits = value.to(tl.int32, bitcast=True)
        value = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return value


@triton.jit
def load_tile(matrix_ptr, row, row_valid, col, col_valid, width):
    """The tile (row, col) of a matrix with rows ``width`` elements apart; zero where not valid."""
    return tl.load(
        matrix_ptr + row[:, None] * width + col[None, :],
        mask=row_valid[:, None] & col_valid[None, :],
        other=0.0,
    )


@triton.jit
def load_window(
    x_row,
    context_row,
    row_valid,
    first,
    k,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    DILATION: tl.constexpr,
    PAST: tl.constexpr,
    ELU: tl.constexpr,
):
    """For each row, the entries ``k`` of its window of (context, x), flattened as (tap, channel).

    A row's window begins at step ``first`` of x; negative steps lie in the context, and
    ``context_row`` points just past a slot's last context step. Rows and ``k`` are broadcast:
    [R, 1] and [1, D] give a tile, a scalar and [D] a vector.
    """
    step = first + k // CHANNELS * DILATION
    offset = step * CHANNELS + k % CHANNELS
    valid = row_valid & (k < TAPS * CHANNELS)
    value = tl.load(x_row + offset, mask=valid & (step >= 0), other=0.0)
    if ELU:
        value = elu(value)
    if PAST > 0:
        old = tl.load(context_row + offset, mask=valid & (step < 0), other=0.0)
        value = tl.where(step < 0, old, value)
    return value


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
    """Write the last PAST steps of (context, x) to context_next, divided among all programs.

    The context is stored after the ELU. The old one is not overwritten, since other programs may
    still be reading it.
    """
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    program = program * tl.num_programs(2) + tl.program_id(2)
    programs = tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2)
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
