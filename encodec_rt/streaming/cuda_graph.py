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
        if x.device == self._x.device:
            self._x.copy_(x)
            _set_active(self._active, active)
            self._on_device()
            return self._y
        self._x_host.copy_(x)
        _set_active(self._active_host, active)
        self._on_host()
        torch.cuda.current_stream(self._x.device).synchronize()
        return self._y_host

    def again(self) -> None:
        """Step once more on what the buffers hold, on the device and without waiting for it."""
        self._on_device()

    def _run(self) -> None:
        self._y.copy_(self._step(self._x, self._active))

    def _run_from_host(self) -> None:
        self._x.copy_(self._x_host, non_blocking=True)
        self._active.copy_(self._active_host, non_blocking=True)
        self._run()
        self._y_host.copy_(self._y, non_blocking=True)

    def _capture(self) -> str | None:
        """Put graphs in the place of both runs; returns None, or why there are none."""
        try:
            runs = capture(self._x.device, self._run, self._run_from_host)
            self._on_device, self._on_host = runs
        except RuntimeError as error:
            self._on_device, self._on_host = self._run, self._run_from_host
            return str(error)
        return None


def _set_active(buffer: Tensor, active: Tensor | None) -> None:
    if active is None:
        buffer.fill_(True)
    else:
        buffer.copy_(active)


def capture(device: torch.device, *runs: Callable[[], None]) -> tuple[Callable[[], None], ...]:
    """Replays of ``runs`` as CUDA graphs that share their memory; only one at a time may replay.

    What a run leaves behind has to be in tensors made before. Raises RuntimeError if one of them
    cannot be captured.
    """
    if device.type != "cuda":
        raise RuntimeError(f"device {str(device)!r} has no CUDA graphs")
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            for run in runs:
                run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graphs: list[torch.cuda.CUDAGraph] = []
    for run in runs:
        graphs.append(torch.cuda.CUDAGraph())
        pool = graphs[0].pool() if len(graphs) > 1 else None
        with torch.cuda.graph(graphs[-1], pool=pool, stream=stream):
            run()
    return tuple(graph.replay for graph in graphs)
