"""The state of one direction of the codec for a batch of slots."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from encodec_rt.streaming.plan import Plan

_ALIGN = 32
"""Floats: every entry starts on a 128-byte line, so that vector loads never straddle two."""


@dataclass(frozen=True)
class StreamState:
    """One arena [S, N] float32 and its named views [S, ...]; allocated once, never rebound.

    A step reads one StreamState and writes another; ``Ops.commit`` makes the new one current for
    the slots that took part.
    """

    arena: Tensor
    views: Mapping[str, Tensor]

    @staticmethod
    def allocate(specs: Plan, slots: int, device: torch.device) -> StreamState:
        """A zero state for ``slots`` streams through the layers of ``specs``."""
        layout: dict[str, tuple[int, tuple[int, ...]]] = {}
        offset = 0
        for spec in specs:
            for name, shape in spec.state.items():
                layout[name] = (offset, shape)
                offset += -(-math.prod(shape) // _ALIGN) * _ALIGN
        arena = torch.zeros(slots, offset, dtype=torch.float32, device=device)
        # Not ``view``, which gives a single slot a different stride: kernels are compiled for
        # strides.
        views = {}
        for name, (start, shape) in layout.items():
            inner = (math.prod(shape[at + 1 :]) for at in range(len(shape)))
            views[name] = arena.as_strided((slots, *shape), (offset, *inner), start)
        return StreamState(arena, views)

    def load_(self, slots: Tensor | int | slice, row: Tensor) -> None:
        """Load the state of one slot [N], as from ``row``, into ``slots``."""
        self.arena[slots] = row

    def row(self, slot: int) -> Tensor:
        """A copy [N] of one slot's state."""
        return self.arena[slot].clone()
