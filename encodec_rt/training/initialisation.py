"""Initial weights for training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Initialise every convolution so that layers preserve the variance; biases become zero.

    The standard deviation is 1 / sqrt(fan_in) (LeCun et al. 1998), where fan_in counts the inputs
    that reach one output: a transposed convolution's kernel is spread over ``stride`` outputs. The
    last convolution gets a tenth of that. With PyTorch's defaults almost no signal passes through
    an untrained EnCodec, and hundreds of steps learn nothing.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            fan = module.in_channels * module.kernel_size[0]
            if isinstance(module, nn.ConvTranspose1d):
                fan = fan // module.stride[0]
            shape = module.weight.shape
            _set_weight(module, torch.randn(shape, generator=generator) / math.sqrt(fan))
            if module.bias is not None:
                module.bias.zero_()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv1d)]
    # Audio is about a tenth as large as the activations that it is computed from.
    _set_weight(convolutions[-1], 0.1 * convolutions[-1].weight)


def _set_weight(module: nn.Conv1d | nn.ConvTranspose1d, weight: Tensor) -> None:
    if is_parametrized(module, "weight"):
        module.weight = weight
    else:
        module.weight.copy_(weight)
