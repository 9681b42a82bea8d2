"""The optimisers: Adam for all parameters, or Muon for matrices and Adam for the rest.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") replaces the
momentum of a matrix by the nearest matrix with orthonormal rows or columns, so directions with
small gradients are learnt as fast as those with large ones. torch.optim.Muon accepts only
two-dimensional parameters; here a convolution's kernel is flattened to a matrix.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from encodec_rt.model.encodec import EncodecModel

Kind = Literal["adam", "muon"]

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""(a, b, c) of x -> a x + b x^3 + c x^5; five iterations bring singular values near 1."""

_ADAM_SIZE = 0.2
"""Root mean square of a typical Adam step at rate 1. Muon's steps are scaled to it, so that both
can use one learning rate (Liu et al. 2025, "Muon is scalable for LLM training")."""


@torch.no_grad()
def orthogonalised(matrix: Tensor, *, iterations: int = 5) -> Tensor:
    """[..., m, n] -> the same singular vectors, with singular values near 1.

    Those above 0.0014 of the Frobenius norm come to lie between 0.6 and 1.21; smaller ones stay
    smaller. Each iteration multiplies by a polynomial in x x^T, and these polynomials commute. So
    only the small matrix x x^T is iterated, and x is multiplied once, by the product of them all.
    """
    a, b, c = _QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram = x @ x.mT
    product: Tensor | None = None
    for i in range(iterations):
        step = torch.add(b * gram, gram @ gram, alpha=c)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        product = step if product is None else step @ product
        if i < iterations - 1:
            gram = step @ gram @ step
    assert product is not None
    x = product @ x
    nearest: Tensor = x.mT if tall else x
    return nearest


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum; every parameter is flattened to a matrix [shape[0], rest].

    Matrices of the same shape are orthogonalised together, since otherwise a GPU would spend its
    time launching many small products.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], *, momentum: float = 0.95) -> None:
        """Parameter groups as for any torch optimiser; the learning rate is 0 until it is set."""
        super().__init__([dict(group) for group in groups], {"lr": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; they must be on the same device."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if moved:
                self._move(moved, group["lr"], group["momentum"])

    def _move(self, parameters: list[Tensor], rate: float | Tensor, momentum: float) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        averages = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        wanted = torch._foreach_lerp(gradients, averages, momentum)
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for number, matrix in enumerate(wanted):
            by_shape[matrix.flatten(1).shape].append(number)
        for shape, numbers in by_shape.items():
            size = _ADAM_SIZE * math.sqrt(max(shape))
            directions = orthogonalised(torch.stack([wanted[n].flatten(1) for n in numbers]))
            for number, direction in zip(numbers, directions * (rate * size), strict=True):
                parameters[number].sub_(direction.view_as(parameters[number]))


class Optimiser:
    """Updates all of a model's parameters, each with the right optimiser and learning rate.

    The decoder's last convolution turns large activations into audio, so its single weight-norm
    magnitude is only a few thousandths. Steps as large as elsewhere would change the whole output
    by a fifth each time. So this layer uses Adam at ``output_rate_share`` of the learning rate, and
    its large gradient is excluded from clipping.
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
        """Group the parameters; vectors, biases and magnitudes always use Adam."""
        output = list(model.decoder.layers[-1].parameters())
        self.body = [p for p in model.parameters() if all(p is not other for other in output)]
        matrices = [p for p in self.body if kind == "muon" and _is_matrix(p)]
        others = [p for p in self.body if all(p is not matrix for matrix in matrices)]
        groups: list[dict[str, Any]] = [
            {"params": others, "share": 1.0},
            {"params": output, "share": output_rate_share},
        ]
        self.parts: list[torch.optim.Optimizer] = [adam(groups, betas)]
        if matrices:
            self.parts.append(Muon([{"params": matrices, "share": 1.0}]))
        self.parameters = [*self.body, *output]
        self.clip_norm = clip_norm

    def zero_grad(self) -> None:
        """Clear all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self, rate: Tensor) -> Tensor:
        """Clip the gradients and update at the learning ``rate`` (0-d) -> their norm (0-d).

        The norm is taken before clipping and without the last layer. If it is not finite, nothing
        is updated and the gradients count as zero. The device decides this, so no step waits for
        the previous one, and a CUDA graph can contain it.
        """
        norm = nn.utils.clip_grad_norm_(self.body, self.clip_norm)
        finite = norm.isfinite()
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad = torch.where(finite, parameter.grad, 0.0)
        for part in self.parts:
            for group in part.param_groups:
                set_rate(group, torch.where(finite, rate * group["share"], 0.0))
            part.step()
        return norm

    def state_dict(self) -> list[dict[str, Any]]:
        """The moments of all optimisers."""
        return [moments(part) for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Resume with the moments that ``state_dict`` returned for the same kind and model."""
        for part, state in zip(self.parts, states, strict=True):
            load_moments(part, state)


def moments(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimiser without its settings, which depend on the device."""
    state = optimiser.state_dict()
    groups = [{"params": group["params"]} for group in state["param_groups"]]
    return {"state": state["state"], "param_groups": groups}


def load_moments(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Resume with what ``moments`` returned, on this or another kind of device."""
    groups = [
        {**own, "params": theirs["params"]}
        for own, theirs in zip(optimiser.param_groups, state["param_groups"], strict=True)
    ]
    optimiser.load_state_dict({"state": state["state"], "param_groups": groups})


def adam(
    groups: Iterable[Any], betas: tuple[float, float], *, rate: float = 1e-3
) -> torch.optim.Adam:
    """Adam; on a GPU in a form that a CUDA graph can capture."""
    listed = list(groups)
    first = listed[0]["params"][0] if isinstance(listed[0], dict) else listed[0]
    if not first.is_cuda:
        return torch.optim.Adam(listed, lr=rate, betas=betas)
    tensor = torch.tensor(rate, device=first.device)
    return torch.optim.Adam(listed, lr=tensor, betas=betas, fused=True, capturable=True)


def set_rate(group: dict[str, Any], rate: Tensor) -> None:
    """Set the learning rate of a parameter group; on a GPU without reading its value."""
    group["lr"] = rate if rate.is_cuda else float(rate)


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim > 1 and parameter.shape[0] > 1 and parameter.numel() > parameter.shape[0]
