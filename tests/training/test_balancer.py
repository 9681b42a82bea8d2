from __future__ import annotations

import pytest
import torch
from torch import Tensor

from encodec_rt.training.balancer import Balancer


def two_losses(output: Tensor, scale: float) -> dict[str, Tensor]:
    """Losses of orthogonal gradients, the second of which is ``scale`` times as steep."""
    return {"a": output[:, 0].sum(), "b": scale * output[:, 1].sum()}


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_weights_are_the_shares_of_the_gradient_whatever_a_losss_scale(scale: float) -> None:
    balancer = Balancer({"a": 3.0, "b": 1.0})
    for _ in range(3):
        output = torch.randn(4, 2, requires_grad=True)
        gradient = balancer.gradient(two_losses(output, scale), output)
    norms = gradient.norm(dim=0) / gradient.norm(dim=0).sum()
    assert norms.tolist() == pytest.approx([0.75, 0.25], rel=1e-4)


def test_a_total_sets_the_norm_of_the_whole() -> None:
    balancer = Balancer({"a": 1.0}, total=5.0)
    output = torch.randn(4, 7, requires_grad=True)
    gradient = balancer.gradient({"a": output.square().sum()}, output)
    assert float(gradient.flatten(1).norm(dim=1).mean()) == pytest.approx(5.0, rel=1e-5)


def test_a_sudden_steep_loss_counts_by_the_average_of_its_norms() -> None:
    balancer = Balancer({"b": 1.0}, decay=0.9)
    output = torch.zeros(1, 2, requires_grad=True)
    for _ in range(200):
        balancer.gradient({"b": output[:, 1].sum()}, output)
    burst = balancer.gradient({"b": 11 * output[:, 1].sum()}, output)
    # The average is then 0.9 * 1 + 0.1 * 11 = 2.
    assert float(burst[0, 1]) == pytest.approx(5.5, rel=1e-3)


def test_averages_go_on_after_a_resume() -> None:
    first, output = Balancer({"a": 1.0, "b": 2.0}), torch.randn(2, 2, requires_grad=True)
    first.gradient(two_losses(output, 7.0), output)
    second = Balancer({"a": 1.0, "b": 2.0})
    second.load_state_dict(first.state_dict())
    losses = two_losses(output, 3.0)
    assert torch.equal(first.gradient(losses, output), second.gradient(losses, output))
