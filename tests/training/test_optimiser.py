"""The optimisers of a training run."""

from __future__ import annotations

import math

import pytest
import torch

from encodec_rt.config import EncodecConfig
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.training.optimiser import Kind, Muon, Optimiser, orthogonalised

TINY = EncodecConfig(
    target_bandwidths=(1.5,), num_filters=2, hidden_size=8, codebook_size=16, num_lstm_layers=1
)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_orthogonalisation_keeps_directions_and_evens_sizes(shape: tuple[int, int]) -> None:
    left, _, right = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
        full_matrices=False,
    )
    sizes = torch.logspace(0, -2, min(shape), dtype=torch.float64)
    got = orthogonalised((left * sizes) @ right)
    inside = left.t() @ got @ right.t()
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-9
    large = inside.diagonal()[sizes > 0.05]
    assert large.min() > 0.6
    assert inside.diagonal().max() < 1.3


def test_muon_steps_are_as_large_as_adams() -> None:
    weight = torch.nn.Parameter(torch.zeros(24, 8, 10))
    muon = Muon([{"params": [weight]}])
    muon.param_groups[0]["lr"] = 0.5
    weight.grad = torch.randn(24, 8, 10, generator=torch.Generator().manual_seed(2))
    muon.step()
    size = weight.detach().square().mean().sqrt().item() / 0.5
    assert 0.1 < size < 0.3


def _optimiser(kind: Kind) -> tuple[EncodecModel, Optimiser]:
    torch.manual_seed(0)
    model = EncodecModel(TINY)
    return model, Optimiser(
        model,
        kind,
        betas=(0.8, 0.99),
        output_rate_share=0.03,
        clip_norm=1.0,
    )


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_every_parameter_has_exactly_one_optimiser(kind: Kind) -> None:
    model, optimiser = _optimiser(kind)
    held = [id(p) for part in optimiser.parts for g in part.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert len(optimiser.parts) == (2 if kind == "muon" else 1)


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_a_gradient_that_is_not_finite_moves_nothing(kind: Kind) -> None:
    model, optimiser = _optimiser(kind)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [p.detach().clone() for p in model.parameters()]
    next(model.encoder.parameters()).grad.view(-1)[0] = math.inf  # type: ignore[union-attr]
    assert not math.isfinite(optimiser.step(torch.tensor(1e-3)))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert math.isfinite(optimiser.step(torch.tensor(1e-3)))
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
