"""The paper's loss balancer (section 3.4): a loss weight is a share of the gradient's norm."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Balancer:
    """Rescales the gradients of several losses with respect to the model's output.

    Each gradient is divided by a moving average of its own norm (of decay ``decay``, with bias
    correction) and multiplied by ``total * weights[name] / sum(weights)``, so that the weights, not
    the scales of the losses, set their shares. The averages stay on the device, so no step waits
    for them.
    """

    def __init__(
        self, weights: Mapping[str, float], *, decay: float = 0.999, total: float = 1.0
    ) -> None:
        """Start with empty averages."""
        self.weights = dict(weights)
        self.decay = decay
        self.total = total
        self._start: dict[str, tuple[float, int]] = {}
        # Per loss: the average of its norms and their number, on the loss's own device.
        self._averages: dict[str, tuple[Tensor, Tensor]] = {}

    def gradient(self, losses: Mapping[str, Tensor], output: Tensor) -> Tensor:
        """The balanced gradient of all ``losses`` with respect to ``output`` [B, ...].

        The norm of a loss's gradient is the mean of its items' norms. The graph is kept, so the
        caller can continue with ``output.backward(gradient)``.
        """
        sum_of_weights = sum(self.weights[name] for name in losses)
        combined = torch.zeros_like(output)
        for name, loss in losses.items():
            (gradient,) = torch.autograd.grad(loss, output, retain_graph=True)
            average, steps = self._averages_of(name, gradient)
            average.lerp_(gradient.flatten(1).norm(dim=1).mean().double(), 1 - self.decay)
            steps.add_(1)
            scale = average / (1 - self.decay**steps)
            share = self.weights[name] / sum_of_weights
            combined += gradient * (self.total * share / (scale + 1e-12))
        return combined

    def _averages_of(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        if name not in self._averages:
            start = self._start.get(name, (0.0, 0))
            norm, steps = (like.new_full((), value, dtype=torch.float64) for value in start)
            self._averages[name] = norm, steps
        return self._averages[name]

    def state_dict(self) -> dict[str, dict[str, float] | dict[str, int]]:
        """The moving averages and the number of norms in each, as plain numbers."""
        found = dict(self._start)
        for name, (average, steps) in self._averages.items():
            found[name] = float(average), int(steps)
        return {
            "norms": {name: norm for name, (norm, _) in found.items()},
            "steps": {name: steps for name, (_, steps) in found.items()},
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Resume with the averages that ``state_dict`` returned."""
        self._averages = {}
        self._start = {
            name: (float(norm), int(state["steps"][name])) for name, norm in state["norms"].items()
        }
