"""Stepping some of an engine's slots: all in a batch with a mask, or gathered into a smaller one.

Under a mask a tick costs as much as all slots, and a slot's audio is bit for bit the same whatever
its neighbours do. Gathered, it costs only as much as the active slots; sums are then added in an
order that depends on their number, so that audio agrees to about 2e-7, and codes may differ where
two vectors are practically equidistant.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

import torch
from torch import Tensor

from encodec_rt.streaming.engine_work import MakeWork
from encodec_rt.streaming.ops import Step
from encodec_rt.streaming.runner import Runner
from encodec_rt.streaming.state import StreamState
from encodec_rt.streaming.steps import PackedLayers


def batch_sizes(slots: int) -> list[int]:
    """The batch sizes 1, 2, 3, 4, 6, 8, 12, 16, ..., up to ``slots``, which is the last."""
    sizes, power = [1], 2
    while sizes[-1] < slots:
        sizes += [power, power + power // 2] if power > 1 else [power]
        power *= 2
    return [*(size for size in sizes if size < slots), slots]


class SlotSteps(Protocol):
    """One direction of an engine: the state of its slots, and the steps that advance some."""

    state: StreamState

    def step(self, key: Hashable, make: MakeWork, slots: Tensor, x: Tensor) -> Tensor:
        """Step ``slots`` [n] with ``x`` [n, ...] -> [n, ...], valid until the next call.

        ``key`` identifies the work from ``make``, which is called once per batch size.
        """

    def prepare(self, key: Hashable, make: MakeWork, x: Tensor) -> None:
        """Prepare everything that a step with rows like ``x`` [...] needs; no slot advances."""


class MaskedSteps:
    """Computes every slot, and advances the given ones."""

    def __init__(self, runner: Runner, slots: int, graph: bool | None) -> None:
        """Advance the state of ``runner``."""
        self.state = runner.now
        self._runner, self._slots, self._graph = runner, slots, graph
        self._made: dict[Hashable, tuple[Step, Tensor, Tensor]] = {}

    def step(self, key: Hashable, make: MakeWork, slots: Tensor, x: Tensor) -> Tensor:
        """As SlotSteps has it."""
        step, batch, active = self._get(key, make, x[0])
        active.fill_(False)
        active[slots] = True
        batch[slots] = x.to(batch.device)
        return step(batch, active)[slots]

    def prepare(self, key: Hashable, make: MakeWork, x: Tensor) -> None:
        """As SlotSteps has it."""
        step, batch, active = self._get(key, make, x)
        active.fill_(False)
        step(batch, active)

    def _get(self, key: Hashable, make: MakeWork, row: Tensor) -> tuple[Step, Tensor, Tensor]:
        if key not in self._made:
            ops, device = self._runner.net.ops, self._runner.device
            like = torch.zeros(self._slots, *row.shape, dtype=row.dtype, device=device)
            work = make(self._runner.step, self._slots)
            step = ops.capture(ops, work, like, graph=self._graph, live=True)
            # On the host: a check never waits for the device, and a graph copies its input.
            batch = torch.zeros(self._slots, *row.shape, dtype=row.dtype, device="cpu")
            self._made[key] = step, batch, torch.zeros(self._slots, dtype=torch.bool, device="cpu")
        return self._made[key]


class GatheredSteps:
    """Gathers the given slots, steps them in the next batch size, and puts them back.

    An interrupted step advances no slot.
    """

    def __init__(self, net: PackedLayers, state: StreamState, graph: bool | None) -> None:
        """Advance the slots of ``state``, on the host."""
        self.state = state
        self._net, self._graph = net, graph
        self._sizes = batch_sizes(len(state.arena))
        self._runners: dict[int, Runner] = {}
        self._made: dict[Hashable, tuple[Step, Tensor]] = {}

    def step(self, key: Hashable, make: MakeWork, slots: Tensor, x: Tensor) -> Tensor:
        """As SlotSteps has it."""
        count = len(slots)
        size = next(size for size in self._sizes if size >= count)
        step, batch = self._get(key, make, x[0], size)
        runner = self._runners[size]
        torch.index_select(self.state.arena, 0, slots, out=runner.now.arena[:count])
        # The other rows hold finite values from an earlier step, which are not used.
        batch[:count] = x
        y = step(batch, None)
        self.state.arena.index_copy_(0, slots, runner.proposed.arena[:count])
        return y[:count]

    def prepare(self, key: Hashable, make: MakeWork, x: Tensor) -> None:
        """As SlotSteps has it."""
        for size in self._sizes:
            step, batch = self._get(key, make, x, size)
            step(batch, None)

    def _get(self, key: Hashable, make: MakeWork, row: Tensor, size: int) -> tuple[Step, Tensor]:
        if (key, size) not in self._made:
            runner = self._runners.get(size) or Runner(self._net, size, self.state.arena.device)
            self._runners[size] = runner
            ops = self._net.ops
            batch = torch.zeros(size, *row.shape, dtype=row.dtype, device=self.state.arena.device)
            work = make(runner.propose, size)
            step = ops.capture(ops, work, batch, graph=self._graph, live=True)
            self._made[key, size] = step, batch
        return self._made[key, size]


def slot_steps(runner: Runner, slots: int, graph: bool | None, gather: bool) -> SlotSteps:
    """How the slots of ``runner`` are stepped."""
    if gather:
        return GatheredSteps(runner.net, runner.now, graph)
    return MaskedSteps(runner, slots, graph)


class SomeStep:
    """A ``Step`` of all slots that computes only the active ones."""

    eager_because: str | None = "gather=True"

    def __init__(self, steps: SlotSteps, key: Hashable, make: MakeWork, y: Tensor) -> None:
        """Of the work that ``key`` and ``make`` stand for in ``SlotSteps.step``; fills ``y``."""
        self._steps, self._key, self._make, self._y = steps, key, make, y
        self._last: tuple[Tensor, Tensor | None] | None = None

    def __call__(self, x: Tensor, active: Tensor | None) -> Tensor:
        """As Step has it."""
        self._last = x, active
        every = torch.arange(len(x), device="cpu")
        slots = every if active is None else every[active]
        if len(slots):
            self._y[slots] = self._steps.step(self._key, self._make, slots, x[slots])
        return self._y

    def again(self) -> None:
        """As Step has it."""
        assert self._last is not None, "a step comes before its repetition"
        self(*self._last)
