"""A layer's weights as the matrix products it consists of, which every exported format holds."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from encodec_rt.streaming.plan import ConvTransposeSpec, LayerSpec, LstmSpec, ResBlockSpec


def products(spec: LayerSpec, weights: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight [K, N] and bias [N], where y = x @ weight + bias, of each product of a layer.

    ``weights`` are those of ``layer_weights``. K is [kernel, inputs] for a convolution; a
    transposed one has N = [kernel, outputs] and the bias of one output alone. A residual block's
    second product takes [hidden, then inputs if the shortcut is a convolution]. An LSTM has one
    per layer, of [input, hidden], with N = [i, f, g, o], the gates.
    """
    if isinstance(spec, LstmSpec):
        for layer in range(spec.layers):
            from_input, from_hidden, bias, bias_hidden = weights[4 * layer : 4 * layer + 4]
            yield torch.cat([from_input, from_hidden], 1).t(), bias + bias_hidden
        return
    weight, bias = weights[:2]
    if isinstance(spec, ConvTransposeSpec):
        yield weight.permute(0, 2, 1).flatten(1), bias
        return
    yield weight.permute(2, 1, 0).flatten(0, 1), bias
    if isinstance(spec, ResBlockSpec):
        out, bias_out, *shortcut = weights[2:]
        straight = [shortcut[0][:, :, 0]] if shortcut else []
        total = bias_out + shortcut[1] if shortcut else bias_out
        yield torch.cat([out[:, :, 0], *straight], 1).t(), total
