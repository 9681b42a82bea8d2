"""One tick of an engine over fixed buffers, so that a CUDA graph can replay all of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from encodec_rt.errors import BackendUnavailable

Step = Callable[[Tensor, Tensor], Tensor]
"""Input [S, ...] and active [S] bool -> output [S, ...]; changes the state of active slots only."""

WARM_UP = 3
"""Runs before a capture: kernels compile, libraries allocate their workspaces."""


class Tick:
    """Calls a step on fixed buffers; the result is one buffer, on the device of the input.

    On a CUDA device a graph holds the whole tick. For an input on the host that includes the
    copies through pinned memory in and out, and one wait for the result, the only one there is.
    ``eager_because`` is None, or says why there is no graph.
    """

    @torch.no_grad()
    def __init__(self, step: Step, x: Tensor, *, graph: bool | None) -> None:
        """Prepare for inputs shaped like ``x``, on the device of ``x``.

        ``graph`` True raises BackendUnavailable if there cannot be one, None does without.
        """
        self._step = step
        self._x = x
        self._active = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._every = torch.ones(len(x), dtype=torch.bool)
        # No slot is active, so this moves no state.
        self._y = step(x, self._active).clone()
        self._on_device = self._run
        self._on_host = self._run_from_host
        if x.device.type == "cuda":
            self._x_host, self._active_host, self._y_host = (
                torch.zeros(buffer.shape, dtype=buffer.dtype, pin_memory=True)
                for buffer in (x, self._active, self._y)
            )
        self.eager_because = self._capture() if graph is not False else "graph=False"
        if graph and self.eager_because is not None:
            raise BackendUnavailable(f"graph=True: {self.eager_because}; use graph=None")

    def __call__(self, x: Tensor, active: Tensor | None) -> Tensor:
        """The step's result for ``x``, valid until the next call; ``active`` None means all."""
        active = self._every if active is None else active
        if x.device != self._x.device:
            self._x_host.copy_(x)
            self._active_host.copy_(active)
            self._on_host()
            torch.cuda.current_stream(self._x.device).synchronize()
            return self._y_host
        self._x.copy_(x)
        self._active.copy_(active)
        self._on_device()
        return self._y

    def _run(self) -> None:
        self._y.copy_(self._step(self._x, self._active))

    def _run_from_host(self) -> None:
        self._x.copy_(self._x_host, non_blocking=True)
        self._active.copy_(self._active_host, non_blocking=True)
        self._run()
        self._y_host.copy_(self._y, non_blocking=True)

    def _capture(self) -> str | None:
        """Put graphs in the place of both runs; returns None, or why there are none."""
        if self._x.device.type != "cuda":
            return f"device {str(self._x.device)!r} has no CUDA graphs"
        try:
            self._on_device = capture(self._run, self._x.device)
            self._on_host = capture(self._run_from_host, self._x.device)
        except RuntimeError as error:
            self._on_device, self._on_host = self._run, self._run_from_host
            return f"the capture failed: {error}"
        return None


def capture(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """``run`` as a CUDA graph, and its replay. Raises RuntimeError if it cannot be captured."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    replay: Callable[[], None] = graph.replay
    return replay
