"""Calls over tensors that stay where they are: recorded once, and replayed for every frame."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor


class Replay:
    """Makes every call that it is given at once, and keeps it to be played again.

    Views and buffers, which cost more than most calls, are made once.
    Calls write into memory from ``empty`` or into tensors that live as long as the replay. With
    ``keep`` False nothing is kept and this is no more than a way to make calls.
    """

    def __init__(self, *, keep: bool = True) -> None:
        """An empty replay."""
        self._keep = keep
        self._calls: list[Callable[[], object]] = []
        self._taken: list[Tensor] = []
        self._free: list[Tensor] = []

    def __call__(self, call: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Make the call now, and again whenever the replay is played."""
        again = partial(call, *args, **kwargs)
        again()
        if self._keep:
            self._calls.append(again)

    def play(self) -> None:
        """Make all calls again, in their order."""
        for call in self._calls:
            call()

    def empty(self, *shape: int) -> Tensor:
        """Memory for a tensor, the layer's until the end of the next layer if it is its result."""
        if not self._keep:
            return torch.empty(shape)
        size = math.prod(shape)
        fitting = [at for at, block in enumerate(self._free) if len(block) >= size]
        if fitting:
            block = self._free.pop(min(fitting, key=lambda at: len(self._free[at])))
        else:
            block = torch.empty(size)
        self._taken.append(block)
        return block[:size].view(shape)

    def begin_layer(self, x: Tensor) -> None:
        """Take back the memory of earlier layers, but for that of ``x``, the input of this one."""
        kept = x.untyped_storage().data_ptr()
        taken, self._taken = self._taken, []
        for block in taken:
            (self._taken if block.data_ptr() == kept else self._free).append(block)
