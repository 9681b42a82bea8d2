"""One direction of the codec over a batch of slots: a network and the state it is stepped with."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from encodec_rt.streaming.ops import Ops
from encodec_rt.streaming.state import StreamState
from encodec_rt.streaming.steps import Edge, PackedLayers, run


class Runner:
    """Steps a network for S slots. Every method takes effect entirely or not at all."""

    def __init__(self, net: PackedLayers, slots: int, device: torch.device) -> None:
        """Allocate the state, all zero: what ``start="zero"`` means."""
        self.net = net
        self.device = device
        self.now = StreamState.allocate(net.plan, slots, device)
        self.proposed = StreamState.allocate(net.plan, slots, device)

    def step(self, x: Tensor, active: Tensor, ops: Ops | None = None) -> Tensor:
        """x [S, T, C] -> [S, T', C']; the ``active`` [S] slots advance.

        ``ops`` are those that a capture passes to its work instead of the network's own.
        """
        net = self.net if ops is None else replace(self.net, ops=ops)
        y = run(net, self.now, self.proposed, x)
        net.ops.commit(self.now.arena, self.proposed.arena, active)
        return y

    def propose(self, x: Tensor, active: Tensor, ops: Ops) -> Tensor:
        """As ``step``, but no slot advances: their next state is in ``proposed``."""
        return run(replace(self.net, ops=ops), self.now, self.proposed, x)

    def begin(self, slot: int, x: Tensor) -> Tensor:
        """x [1, T, C], the first frames of a stream -> [1, T', C']; ``slot`` is then mid-stream."""
        y, row = begin(self.net, x)
        self.now.load_(slot, row)
        return y

    def run_from_start(self, x: Tensor, first: int, step: int) -> Tensor:
        """x [1, T, C], ``first`` inputs at once, then ``step`` at a time, through slot 0."""
        every = torch.ones(1, dtype=torch.bool, device=self.device)
        outputs = [self.begin(0, x[:, :first])]
        rest = range(first, x.shape[1], step)
        outputs += [self.step(x[:, at : at + step], every).clone() for at in rest]
        return torch.cat(outputs, dim=1)

    def finish(self, slot: int, x: Tensor) -> Tensor:
        """x [1, T, C], the rest of a stream, T >= 0 -> [1, T', C']; the state stays as it was."""
        return finish(self.net, self.now.arena[slot], x)

    def whole(self, x: Tensor) -> Tensor:
        """x [1, T, C], a clip too short for ``begin`` -> [1, T', C']; no state is involved."""
        return whole(self.net, x)


def begin(net: PackedLayers, x: Tensor) -> tuple[Tensor, Tensor]:
    """x [1, T, C], the first frames of a stream -> [1, T', C'] and the state [N] after them."""
    after = _single(net, x)
    y = run(net, _single(net, x), after, x, Edge.LEFT)
    return y, after.arena[0]


def finish(net: PackedLayers, row: Tensor, x: Tensor) -> Tensor:
    """x [1, T, C], the rest, T >= 0, of a stream whose state is ``row`` [N] -> [1, T', C']."""
    now = _single(net, x)
    now.load_(0, row)
    return run(net, now, _single(net, x), x, Edge.RIGHT)


def whole(net: PackedLayers, x: Tensor) -> Tensor:
    """x [1, T, C], a clip too short for ``begin`` -> [1, T', C']."""
    return run(net, _single(net, x), _single(net, x), x, Edge.LEFT | Edge.RIGHT)


def _single(net: PackedLayers, x: Tensor) -> StreamState:
    return StreamState.allocate(net.plan, 1, x.device)
