"""One step over fixed buffers, so that a CUDA graph can replay all of it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from encodec_rt.errors import BackendUnavailable
from encodec_rt.streaming.ops import Ops, Work

WARM_UP = 3
"""Runs before a capture: kernels compile, libraries allocate their workspaces."""


class _Inputs:
    """A step's input and its mask in one piece of memory, so that one copy transfers both."""

    ALIGNMENT = 256
    """Bytes; kernels are compiled for buffers that begin at multiples of 16."""

    def __init__(self, x: Tensor, device: torch.device, *, pinned: bool = False) -> None:
        """Zeros on ``device``, for inputs shaped like ``x`` [S, ...]."""
        begin, size = self._aligned(x.nbytes), self._aligned(len(x))
        options: dict[str, Any] = {"pin_memory": True} if pinned else {}
        self.whole = torch.zeros(begin + size, dtype=torch.uint8, device=device, **options)
        self.x = self.whole[: x.nbytes].view(x.dtype).view(x.shape)
        self.active = self.whole[begin : begin + len(x)].view(torch.bool)

    def _aligned(self, size: int) -> int:
        return -(-size // self.ALIGNMENT) * self.ALIGNMENT

    def fill(self, x: Tensor, active: Tensor | None) -> None:
        """Store these; ``active`` None means all slots."""
        self.x.copy_(x)
        if active is None:
            self.active.fill_(True)
        else:
            self.active.copy_(active)


class Tick:
    """Calls a step on fixed buffers; the result is one buffer, on the device of the input.

    On a CUDA device a graph holds the whole tick. For an input on the host that includes one copy
    in and one out through pinned memory; waiting for the result is the only wait. ``eager_because``
    is None, or says why there is no graph.
    """

    @torch.no_grad()
    def __init__(
        self, step: Callable[[Tensor, Tensor], Tensor], x: Tensor, *, graph: bool | None
    ) -> None:
        """Prepare for inputs shaped like ``x``, on the device of ``x``.

        ``step`` takes x [S, ...] and active [S] bool, and advances only the active slots. With
        ``graph`` True a failed capture raises BackendUnavailable; None does without a graph.
        """
        self._step = step
        self._inputs = _Inputs(x, x.device)
        self._on_host: _Inputs | None = None
        # No bound method is kept here: the reference cycle would leave graphs to the garbage
        # collector, and destroying a graph during another's capture breaks that capture.
        self._replays: tuple[Callable[[], None], ...] | None = None
        with self._on_its_device():
            # No slot is active, so this moves no state.
            self._y = step(self._inputs.x, self._inputs.active).clone()
            if x.device.type == "cuda":
                self._prepare_host(pinned=True)
            self.eager_because = self._capture() if graph is not False else "graph=False"
        if graph and self.eager_because is not None:
            raise BackendUnavailable(f"graph=True: {self.eager_because}; use graph=None")

    def __call__(self, x: Tensor, active: Tensor | None) -> Tensor:
        """The step's result for ``x``, valid until the next call; ``active`` None means all."""
        device = self._inputs.x.device
        with self._on_its_device():
            if x.device == device or self._on_host is None:
                self._inputs.fill(x, active)
                self._run_on_device()
                return self._y
            self._on_host.fill(x, active)
            self._run_on_host()
            torch.cuda.current_stream(device).synchronize()
            return self._y_host

    def again(self) -> None:
        """Step again on the buffers' contents, on the device and without waiting for it."""
        with self._on_its_device():
            self._run_on_device()

    def _prepare_host(self, *, pinned: bool) -> None:
        """Buffers for inputs on the host."""
        cpu = torch.device("cpu")
        self._on_host = _Inputs(self._inputs.x, cpu, pinned=pinned)
        self._y_host = torch.zeros(
            self._y.shape, dtype=self._y.dtype, device=cpu, pin_memory=pinned
        )

    def _run_on_device(self) -> None:
        (self._run if self._replays is None else self._replays[0])()

    def _run_on_host(self) -> None:
        (self._run_from_host if self._replays is None else self._replays[1])()

    def _run(self) -> None:
        self._y.copy_(self._step(self._inputs.x, self._inputs.active))

    def _run_from_host(self) -> None:
        assert self._on_host is not None
        self._inputs.whole.copy_(self._on_host.whole, non_blocking=True)
        y = self._step(self._inputs.x, self._inputs.active)
        self._y_host.copy_(y, non_blocking=True)

    def _capture(self) -> str | None:
        """Replace both runs by graphs; returns None, or why there are none."""
        try:
            device = self._inputs.x.device
            self._replays = capture(device, self._run, self._run_from_host)
        except RuntimeError as error:
            return str(error)
        return None

    def _on_its_device(self) -> AbstractContextManager[None]:
        """Kernels go to the current device, which may not be the buffers' device."""
        device = self._inputs.x.device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return nullcontext()
        return torch.cuda.device(device)


def capture_graph(ops: Ops, work: Work, x: Tensor, *, graph: bool | None, live: bool) -> Tick:
    """``Ops.capture`` for a CUDA device."""
    return Tick(partial(work, ops), x, graph=graph)


def capture(device: torch.device, *runs: Callable[[], None]) -> tuple[Callable[[], None], ...]:
    """Replays of ``runs`` as CUDA graphs that share their memory; only one at a time may replay.

    A run must leave its results in tensors made before. Raises RuntimeError if a run cannot be
    captured.
    """
    if device.type != "cuda":
        raise RuntimeError(f"device {str(device)!r} has no CUDA graphs")
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            for run in runs:
                run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graphs: list[torch.cuda.CUDAGraph] = []
    with _no_collection():
        for run in runs:
            graphs.append(torch.cuda.CUDAGraph())
            pool = graphs[0].pool() if len(graphs) > 1 else None
            with torch.cuda.graph(graphs[-1], pool=pool, stream=stream):
                run()
    return tuple(graph.replay for graph in graphs)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect garbage before and not during the block: destroying a graph ends the capture."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
