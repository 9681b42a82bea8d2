"""A training step as a CUDA graph: thousands of small kernels in a single launch.

On a GPU, launching the kernels of a small model one by one takes longer than computing them. The
step waits for no value from the device, so it can be recorded once and replayed; the inputs of each
step are copied into the tensors it was recorded with.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
Step = Callable[[Inputs], dict[str, Tensor]]

_WARM_UP = 3
"""Eager steps before a capture: optimisers create their state and cuDNN picks its algorithms."""


def on_device(inputs: Inputs, device: torch.device) -> Inputs:
    """``inputs`` on ``device``; on a GPU a batch is copied while the previous step still computes.

    For that they have to be in pinned memory.
    """
    if device.type == "cuda":
        inputs = {name: value.pin_memory() for name, value in inputs.items()}
    return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}


class EagerSteps:
    """Runs every step eagerly, as on a CPU."""

    def run(self, key: Hashable, step: Step, inputs: Inputs) -> dict[str, Tensor]:
        """The result of ``step``."""
        return step(inputs)


class CapturedSteps:
    """Records each kind of step after a few eager ones, and replays it from then on.

    All steps run on a stream of their own, as a capture requires. Recordings are kept until another
    stage begins.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin with nothing recorded."""
        self._stream = torch.cuda.Stream(device)
        self._stage: object = None
        self._runs: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, _Recorded] = {}

    def run(self, key: tuple[Hashable, ...], step: Step, inputs: Inputs) -> dict[str, Tensor]:
        """The result of ``step``; ``key`` is the stage, then whatever tells its steps apart."""
        if key[0] != self._stage:
            self._stage, self._runs, self._recorded = key[0], {}, {}
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._runs[key] = self._runs.get(key, 0) + 1
            if self._runs[key] <= _WARM_UP:
                measured = step(inputs)
            else:
                if key not in self._recorded:
                    self._recorded[key] = _Recorded(step, inputs, self._stream)
                measured = self._recorded[key].replay(inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        return measured


class _Recorded:
    """One recorded step with the tensors that it reads and writes."""

    def __init__(self, step: Step, inputs: Inputs, stream: torch.cuda.Stream) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        self._graph = torch.cuda.CUDAGraph()
        # The thread that pins batches allocates memory meanwhile; that must not break the capture.
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            measured = step(self._inputs)
            self._names = list(measured)
            self._values = torch.stack([value.float() for value in measured.values()])

    def replay(self, inputs: Inputs) -> dict[str, Tensor]:
        for name, value in inputs.items():
            self._inputs[name].copy_(value, non_blocking=True)
        self._graph.replay()
        return dict(zip(self._names, self._values.clone(), strict=True))
