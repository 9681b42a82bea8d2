"""The tile of every kernel, by rule from the layer's shape; no tuning at run time.

A rule sees the architecture, the layer's own sizes and the precision, never the number of slots
or frames: so a slot's result has the same bits whatever its neighbours are. ``make aot`` compiles
exactly what these rules give for the 24 kHz model.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["exact", "fast"]
"""``exact``: float32 throughout. ``fast``: TF32 products, float32 sums."""

Options = dict[str, int | bool]


@dataclass(frozen=True, slots=True)
class Tile:
    """One program's share of a matrix product, and how many warps and pipeline stages it gets."""

    rows: int
    cols: int
    depth: int
    warps: int
    stages: int
    dot: Literal["ieee", "tf32"]

    @property
    def options(self) -> Options:
        """Launch options. Contracting a*b+c is asked for, since Triton's default will change."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


COPY: Options = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
"""Launch options of a kernel that only moves data."""

COPY_BLOCK = 1024
"""Elements per program of such a kernel."""

CARRY_BLOCK = 256
"""Elements of context that a program copies at a time."""

_DOT: dict[str, Literal["ieee", "tf32"]] = {"exact": "ieee", "fast": "tf32"}

FUSED_CHANNELS = 64
"""Widest residual block done in one launch: beyond it one program would read too many weights."""

DEEP_CHANNELS = 256
"""From this width on a layer has at most a few rows per slot, and its weights are megabytes."""


@functools.cache
def architecture(device: torch.device) -> int:
    """Compute capability as one number, 90 for 9.0; 80 stands for a device that is no GPU."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _power_of_two(size: int, lowest: int, highest: int) -> int:
    return max(lowest, min(highest, 1 << (size - 1).bit_length()))


def _roomy(arch: int) -> bool:
    """Whether a program may have more than 99 KiB of shared memory."""
    return arch in (80, 90, 100, 103)


def conv1d(arch: int, precision: Precision, inputs: int, outputs: int, taps: int) -> Tile:
    """Tile of a convolution from ``inputs`` to ``outputs`` channels.

    Deep layers have few rows and megabytes of weights: narrow tiles share the weights out over
    many programs, and a deep pipeline keeps enough bytes in flight. Broad ones have many rows.
    """
    if max(inputs, outputs) >= DEEP_CHANNELS:
        return Tile(
            rows=16,
            cols=_power_of_two(outputs, 16, 16 if precision == "exact" else 32),
            depth=_power_of_two(inputs * taps, 16, 128 if precision == "exact" else 64),
            warps=4,
            stages=4 if _roomy(arch) else 3,
            dot=_DOT[precision],
        )
    return Tile(
        rows=64 if _roomy(arch) else 32,
        cols=_power_of_two(outputs, 16, 64),
        depth=_power_of_two(inputs * taps, 16, 32),
        warps=4,
        stages=3 if _roomy(arch) else 2,
        dot=_DOT[precision],
    )


def conv_transpose1d(arch: int, precision: Precision, inputs: int, width: int) -> Tile:
    """Tile of a transposed convolution to ``width`` = stride * channels outputs per input step."""
    return conv1d(arch, precision, inputs, width, 2)


def resblock(arch: int, precision: Precision, channels: int) -> Tile:
    """Tile of a residual block in one launch."""
    return Tile(
        rows=32,
        cols=_power_of_two(channels, 16, FUSED_CHANNELS),
        depth=_power_of_two(channels, 16, 32),
        warps=4,
        stages=3 if _roomy(arch) else 2,
        dot=_DOT[precision],
    )


def middle(hidden: int) -> int:
    """Hidden channels of a residual block that are in registers at a time."""
    return _power_of_two(hidden, 16, 32)


def join(arch: int, precision: Precision, channels: int) -> Tile:
    """Tile of both 1x1 convolutions of a residual block."""
    return conv1d(arch, precision, channels, channels, 2)


def lstm(arch: int, precision: Precision, units: int) -> Tile:
    """Tile of an LSTM step: ``cols`` counts units, each with its four gates."""
    return Tile(
        rows=16,
        cols=16,
        depth=_power_of_two(units, 16, 64),
        warps=4,
        stages=3 if _roomy(arch) else 2,
        dot=_DOT[precision],
    )


def rvq_encode(arch: int, width: int, size: int) -> Tile:
    """Tile of the codebook search, in float32 in both precisions; a vector is one tile deep."""
    return Tile(
        rows=8,
        cols=_power_of_two(size, 16, 64),
        depth=_power_of_two(width, 16, 1 << 20),
        warps=4,
        stages=2,
        dot="ieee",
    )
