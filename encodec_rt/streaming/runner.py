"""One direction of the codec over a batch of slots: a network and the state it is stepped with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from encodec_rt.streaming.backends.cpu.replay import Replay
from encodec_rt.streaming.ops import Ops
from encodec_rt.streaming.state import StreamState
from encodec_rt.streaming.steps import Edge, PackedLayers, run


class CachedStep:
    """What ``work`` makes of one tensor, put on replay for a shape that comes twice in a row."""

    def __init__(self, ops: Ops, work: Callable[[Ops, Tensor], Tensor]) -> None:
        """For rows that cannot be put on replay it is ``work`` and nothing else."""
        self._ops = ops
        self._work = work
        self._shape: torch.Size | None = None
        self._tape: tuple[Replay, Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The result for ``x``, which the next call may overwrite."""
        if x.shape != self._shape:
            self._shape, self._tape = x.shape, None
            return self._work(self._ops, x)
        if self._tape is not None:
            replay, given, y = self._tape
            given.copy_(x)
            replay.play()
            return y
        if self._ops.replaying is None:
            return self._work(self._ops, x)
        replay, given = Replay(), x.clone(memory_format=torch.contiguous_format)
        y = self._work(self._ops.replaying(replay), given)
        self._tape = replay, given, y
        return y


class Runner:
    """Steps a network for S slots. Every method writes nothing unless it succeeds as a whole."""

    def __init__(
        self, net: PackedLayers, slots: int, device: torch.device, *, live: bool = True
    ) -> None:
        """Allocate the state, all zero: what ``start="zero"`` means.

        Steps that are not ``live`` are long: a replay would gain nothing and hold their memory.
        """
        self.net = net
        self.device = device
        self.now = now = StreamState.allocate(net.plan, slots, device)
        self.proposed = proposed = StreamState.allocate(net.plan, slots, device)
        self._steps = CachedStep(
            net.ops if live else replace(net.ops, replaying=None),
            lambda ops, x: run(replace(net, ops=ops), now, proposed, x),
        )

    def step(self, x: Tensor, active: Tensor) -> Tensor:
        """x [S, T, C] -> [S, T', C']; the slots that are ``active`` [S] move on.

        The result may be overwritten by the next step.
        """
        y = self._steps(x)
        self.net.ops.commit(self.now.arena, self.proposed.arena, active)
        return y

    def begin(self, slot: int, x: Tensor) -> Tensor:
        """x [1, T, C], the first frames of a stream -> [1, T', C']; ``slot`` is then mid-stream."""
        zero, after = self._single(), self._single()
        y = run(self.net, zero, after, x, Edge.LEFT)
        self.now.load_(slot, after.arena[0])
        return y

    def run_from_start(self, x: Tensor, first: int, step: int) -> Tensor:
        """x [1, T, C], ``first`` inputs at once and then ``step`` by ``step``, through slot 0."""
        every = torch.ones(1, dtype=torch.bool, device=self.device)
        outputs = [self.begin(0, x[:, :first])]
        rest = range(first, x.shape[1], step)
        outputs += [self.step(x[:, at : at + step], every).clone() for at in rest]
        return torch.cat(outputs, dim=1)

    def finish(self, slot: int, x: Tensor) -> Tensor:
        """x [1, T, C], the rest of a stream, T >= 0 -> [1, T', C']; the state stays as it was."""
        now, after = self._single(), self._single()
        now.load_(0, self.now.arena[slot])
        return run(self.net, now, after, x, Edge.RIGHT)

    def whole(self, x: Tensor) -> Tensor:
        """x [1, T, C], a clip too short for ``begin`` -> [1, T', C']; no state is involved."""
        return run(self.net, self._single(), self._single(), x, Edge.LEFT | Edge.RIGHT)

    def _single(self) -> StreamState:
        return StreamState.allocate(self.net.plan, 1, self.device)
