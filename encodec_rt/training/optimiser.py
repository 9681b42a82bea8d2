"""What turns gradients into steps: Adam for all parameters, or Muon for the matrices among them.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") replaces the
momentum of a matrix by the nearest matrix with orthonormal rows or columns, so that a direction
with small gradients is learnt as fast as one with large ones. torch.optim.Muon takes
two-dimensional parameters only; a convolution's kernel is a matrix once it is flattened.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from encodec_rt.model.encodec import EncodecModel

Kind = Literal["adam", "muon"]

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of x -> a x + b x^3 + c x^5, which brings singular values near 1 within five iterations."""

_ADAM_SIZE = 0.2
"""Root mean square of a typical Adam step at rate 1, so that both share one learning rate (Liu et
al. 2025, "Muon is scalable for LLM training")."""


@torch.no_grad()
def orthogonalised(matrix: Tensor, *, iterations: int = 5) -> Tensor:
    """[m, n] -> [m, n] with the same singular vectors and singular values between 0.6 and 1.3.

    Every iteration multiplies by a polynomial of x x^T, and all of these commute. So the small
    matrix x x^T alone is iterated, and x is multiplied once, by their product.
    """
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.t() if tall else matrix
    x = x / (x.norm() + 1e-7)
    gram = x @ x.t()
    product: Tensor | None = None
    for i in range(iterations):
        step = torch.add(b * gram, gram @ gram, alpha=c)
        step.diagonal().add_(a)
        product = step if product is None else step @ product
        if i < iterations - 1:
            gram = step @ gram @ step
    assert product is not None
    x = product @ x
    nearest: Tensor = x.t() if tall else x
    return nearest


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum; every parameter is a matrix [shape[0], the rest]."""

    def __init__(self, groups: Iterable[Mapping[str, Any]], *, momentum: float = 0.95) -> None:
        """Each group has its parameters and, until a step sets it, the learning rate 0."""
        super().__init__([dict(group) for group in groups], {"lr": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step for every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["momentum"])

    def _move(self, parameter: Tensor, rate: float, momentum: float) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(parameter.grad, 1 - momentum)
        matrix = parameter.grad.lerp(average, momentum).flatten(1)
        size = _ADAM_SIZE * math.sqrt(max(matrix.shape))
        direction = orthogonalised(matrix)
        parameter.add_(direction.view_as(parameter), alpha=-rate * size)


class Optimiser:
    """All of a model's parameters, each with the optimiser and the share of the rate it needs.

    The decoder's last convolution turns large activations into audio, so that its one magnitude is
    a few thousandths. Steps as large as everywhere else would shake the whole output by a fifth
    each: it has Adam at ``output_rate_share`` of the rate, and its steep gradient is no part of the
    clipping.
    """

    def __init__(
        self,
        model: EncodecModel,
        kind: Kind,
        *,
        betas: tuple[float, float],
        output_rate_share: float,
        clip_norm: float,
    ) -> None:
        """Sort the parameters; vectors, biases and magnitudes always have Adam."""
        output = list(model.decoder.layers[-1].parameters())
        self.body = [p for p in model.parameters() if all(p is not other for other in output)]
        matrices = [p for p in self.body if kind == "muon" and _is_matrix(p)]
        others = [p for p in self.body if all(p is not matrix for matrix in matrices)]
        groups: list[dict[str, Any]] = [
            {"params": others, "share": 1.0},
            {"params": output, "share": output_rate_share},
        ]
        self.parts: list[torch.optim.Optimizer] = [torch.optim.Adam(groups, betas=betas)]
        if matrices:
            self.parts.append(Muon([{"params": matrices, "share": 1.0}]))
        self.clip_norm = clip_norm

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self, rate: float) -> float:
        """Clip and move by the learning ``rate``, unless a gradient is not finite; their norm."""
        norm = float(nn.utils.clip_grad_norm_(self.body, self.clip_norm))
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate * group["share"]
            if math.isfinite(norm):
                part.step()
        return norm

    def state_dict(self) -> list[dict[str, Any]]:
        """The moments of every part."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on with the moments that ``state_dict`` gave of the same kind and model."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim > 1 and parameter.shape[0] > 1 and parameter.numel() > parameter.shape[0]
