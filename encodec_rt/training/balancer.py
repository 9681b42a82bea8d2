"""The paper's loss balancer (section 3.4): a loss weight is a share of the gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Balancer:
    """Rescales the gradients of several losses with respect to the model's output.

    Each gradient is divided by a moving average of its own norm (decay ``decay``, corrected for its
    start at zero), so that ``weights[name] / sum(weights)`` is the share of the norm ``total`` that
    loss contributes, whatever the loss's own scale.
    """

    def __init__(
        self, weights: Mapping[str, float], *, decay: float = 0.999, total: float = 1.0
    ) -> None:
        """Remember the weights; the averages start empty."""
        self.weights = dict(weights)
        self.decay = decay
        self.total = total
        self.norms: dict[str, float] = {}
        self.steps: dict[str, int] = {}

    def gradient(self, losses: Mapping[str, Tensor], output: Tensor) -> Tensor:
        """The balanced gradient of all ``losses`` with respect to ``output`` [B, ...].

        A loss's norm is the mean over the batch of each item's norm. The graph from ``output`` back
        to the parameters is kept, so that ``output.backward`` may follow.
        """
        sum_of_weights = sum(self.weights[name] for name in losses)
        combined = torch.zeros_like(output)
        for name, loss in losses.items():
            (gradient,) = torch.autograd.grad(loss, output, retain_graph=True)
            norm = float(gradient.flatten(1).norm(dim=1).mean())
            steps = self.steps.get(name, 0) + 1
            average = self.decay * self.norms.get(name, 0.0) + (1 - self.decay) * norm
            self.steps[name], self.norms[name] = steps, average
            scale = average / (1 - self.decay**steps)
            share = self.weights[name] / sum_of_weights
            combined += gradient * (self.total * share / (scale + 1e-12))
        return combined

    def state_dict(self) -> dict[str, dict[str, float] | dict[str, int]]:
        """The moving averages, as plain numbers."""
        return {"norms": dict(self.norms), "steps": dict(self.steps)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Go on with averages that ``state_dict`` gave."""
        self.norms = {name: float(value) for name, value in state["norms"].items()}
        self.steps = {name: int(value) for name, value in state["steps"].items()}
