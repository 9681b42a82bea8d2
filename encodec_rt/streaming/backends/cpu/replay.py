"""Calls on tensors at fixed addresses: recorded once, and replayed for every frame."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from encodec_rt.streaming.ops import Ops, Work

_CPU = torch.device("cpu")


class Replay:
    """Makes every call that it is given immediately, and keeps it for replaying.

    Views and buffers, which cost more than most calls, are made only once. Calls write into memory
    from ``empty`` or into tensors that live as long as the replay. With ``keep`` False nothing is
    kept and calls are only made.
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
        """Memory for a tensor; a layer's result keeps it until the end of the next layer."""
        if not self._keep:
            return torch.empty(shape, dtype=torch.float32, device=_CPU)
        size = math.prod(shape)
        fitting = [at for at, block in enumerate(self._free) if len(block) >= size]
        if fitting:
            block = self._free.pop(min(fitting, key=lambda at: len(self._free[at])))
        else:
            block = torch.empty(size, dtype=torch.float32, device=_CPU)
        self._taken.append(block)
        return block[:size].view(shape)

    def begin_layer(self, x: Tensor) -> None:
        """Reclaim the memory of earlier layers, except that of ``x``, the input of this one."""
        kept = x.untyped_storage().data_ptr()
        taken, self._taken = self._taken, []
        for block in taken:
            (self._taken if block.data_ptr() == kept else self._free).append(block)


class ReplayedStep:
    """Records the calls that its work makes for one input, and replays them for the next ones."""

    def __init__(self, record: Callable[[Replay], Ops], work: Work, eager_because: str) -> None:
        """``record`` gives ops that make each of their calls through a replay."""
        self._record, self._work = record, work
        self._made: tuple[Replay, Tensor, Tensor, Tensor] | None = None
        self.eager_because: str | None = eager_because

    def __call__(self, x: Tensor, active: Tensor | None) -> Tensor:
        """The result for ``x``, which is like every other; ``active`` None means all."""
        if self._made is None:
            return self._first(x, active)
        replay, given, mask, y = self._made
        given.copy_(x)
        if active is None:
            mask.fill_(True)
        else:
            mask.copy_(active)
        replay.play()
        return y

    def again(self) -> None:
        """Step once more on the last input."""
        assert self._made is not None, "a step comes before its repetition"
        self._made[0].play()

    def _first(self, x: Tensor, active: Tensor | None) -> Tensor:
        replay, given = Replay(), x.clone(memory_format=torch.contiguous_format)
        mask = torch.ones(len(x), dtype=torch.bool, device=x.device)
        if active is not None:
            mask.copy_(active)
        y = self._work(self._record(replay), given, mask)
        # Kept only now, since an interrupted recording would replay half a step.
        self._made = replay, given, mask, y
        return y
