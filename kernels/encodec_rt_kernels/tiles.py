"""Tiles, and what they are chosen for: the ``Rules`` of a codec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import triton

Precision = Literal["exact", "fast"]
"""``exact``: float32 throughout. ``fast``: TF32 products, float32 sums."""

Options = dict[str, int | bool]


@dataclass(frozen=True, slots=True)
class Rules:
    """What tiles are chosen for: one choice for all layers and slots of a codec.

    ``few``: for one or a few slots, with narrow tiles, long products split over several programs,
    and matrix-vector kernels for the deepest layers. Otherwise for many slots, with tiles that
    reuse what they load. ``chained``: a launch starts while the previous one still runs
    (programmatic dependent launch), if the architecture supports it.
    """

    precision: Precision = "exact"
    few: bool = False
    chained: bool = False

    @property
    def dot(self) -> Literal["ieee", "tf32"]:
        """The arithmetic of products."""
        return "ieee" if self.precision == "exact" else "tf32"

    def chains(self, arch: int) -> bool:
        """Whether launches are chained on ``arch``: from 9.0 on, never in Triton's interpreter."""
        return self.chained and arch >= 90 and not triton.knobs.runtime.interpret


MANY = Rules()
"""Exact, for many slots, and each launch begins after the previous one has ended."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One program's share of a matrix product, and how many warps and pipeline stages it gets.

    If ``splits`` is above 1, that many programs divide the depth of the product among themselves.
    """

    rows: int
    cols: int
    depth: int
    warps: int
    stages: int
    dot: Literal["ieee", "tf32"]
    chained: bool = False
    splits: int = 1

    @property
    def options(self) -> Options:
        """Launch options."""
        return launch_options(self.warps, self.stages, self.chained)


def launch_options(warps: int, stages: int, chained: bool) -> Options:
    """Launch options, and the constant that tells a kernel whether it is chained.

    Fusing a*b+c is requested explicitly, since Triton's default is going to change.
    """
    return {
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
        "launch_pdl": chained,
        "CHAINED": chained,
    }
