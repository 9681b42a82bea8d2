"""A training step as a CUDA graph: thousands of small kernels, launched as one.

On a GPU the step of a small model is bound by its launches: some four thousand, of a few
microseconds each. The step waits for no value of the device, so it can be recorded once and
replayed; what changes from step to step is copied into the tensors it was recorded with.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
Step = Callable[[Inputs], dict[str, Tensor]]

_WARM_UP = 3
"""Real steps before a capture: optimisers make their state and cuDNN chooses its algorithms."""


class EagerSteps:
    """Runs each step as it is: on a CPU."""

    def run(self, key: Hashable, step: Step, inputs: Inputs) -> dict[str, Tensor]:
        """What ``step`` measured."""
        return step(inputs)


class CapturedSteps:
    """Records each kind of step after a few real ones, and replays it from then on.

    All steps run on one stream of their own, as captures must. The kinds of one stage are kept
    until another stage begins.
    """

    def __init__(self, device: torch.device) -> None:
        """Nothing is recorded yet."""
        self._stream = torch.cuda.Stream(device)
        self._stage: object = None
        self._runs: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, _Recorded] = {}

    def run(self, key: tuple[Hashable, ...], step: Step, inputs: Inputs) -> dict[str, Tensor]:
        """What ``step`` measured; ``key`` begins with the stage and names the kind of step."""
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
    """One kind of step with the tensors it reads and writes."""

    def __init__(self, step: Step, inputs: Inputs, stream: torch.cuda.Stream) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        self._graph = torch.cuda.CUDAGraph()
        # The thread that pins batches allocates meanwhile, which may not end the capture.
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            measured = step(self._inputs)
            self._names = list(measured)
            self._values = torch.stack([value.float() for value in measured.values()])

    def replay(self, inputs: Inputs) -> dict[str, Tensor]:
        for name, value in inputs.items():
            self._inputs[name].copy_(value, non_blocking=True)
        self._graph.replay()
        return dict(zip(self._names, self._values.clone(), strict=True))
