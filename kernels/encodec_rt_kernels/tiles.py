"""What a rule for tiles gives and what it is given: a ``Tile``, and the ``Rules`` of a codec."""

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

    ``few``: for one or a few slots. Tiles are narrow, long products are split over programs, and
    the search reads tables of products between the codebooks instead of the books. Otherwise a tile
    reuses what it loads, for many slots. ``chained``: a launch is prepared while the one before it
    runs (programmatic dependent launch), where the architecture can.
    """

    precision: Precision = "exact"
    few: bool = False
    chained: bool = False

    @property
    def dot(self) -> Literal["ieee", "tf32"]:
        """The arithmetic of products."""
        return "ieee" if self.precision == "exact" else "tf32"

    def chains(self, arch: int) -> bool:
        """Whether launches are chained on ``arch``; Triton's interpreter cannot."""
        return self.chained and arch >= 90 and not triton.knobs.runtime.interpret


MANY = Rules()
"""Exact, for many slots, every launch after the one before it has ended."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One program's share of a matrix product, and how many warps and pipeline stages it gets.

    Where ``splits`` is above 1, that many programs share out the depth of the product.
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
        """Launch options. Contracting a*b+c is asked for, since Triton's default will change."""
        return launch_options(self.warps, self.stages, self.chained)


def launch_options(warps: int, stages: int, chained: bool) -> Options:
    """Launch options, and the constant that tells a kernel whether it is chained."""
    return {
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
        "launch_pdl": chained,
        "CHAINED": chained,
    }
