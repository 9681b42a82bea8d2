"""The layout of weights for the CPU's ops: packed once, for products that read them in order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from encodec_rt.streaming.backends.cpu.hugepages import in_huge_pages
from encodec_rt.streaming.backends.torch import TORCH
from encodec_rt.streaming.ops import Packed

_TALL = 8
"""Weights with this many times more inputs than outputs are stored output by output: a product
with a single row is then one long dot product per output, which the BLAS streams best."""

_FEW_OUTPUTS = 4
"""Convolutions with this few outputs multiply first and shift the products afterwards."""

LARGE = 1 << 18
"""From this many floats on (a megabyte) a product with one row is limited by memory."""


def _laid_out(weight: Tensor) -> Tensor:
    """[K, N] in the memory order that products with few rows read fastest."""
    inputs, outputs = weight.shape
    tall = inputs >= _TALL * outputs
    return _stored(weight.t().contiguous().t() if tall else weight.contiguous())


def _stored(weight: Tensor) -> Tensor:
    return in_huge_pages(weight) if weight.numel() >= LARGE else weight


def _halved(weight: Tensor) -> Packed:
    """The weight [K, N] as float16, for products with one row, which then read half the memory."""
    if weight.numel() < LARGE:
        return ()
    return (in_huge_pages(weight.t().to(torch.float16).contiguous()),)


def pack_conv1d(
    weight: Tensor, bias: Tensor, *, stride: int, dilation: int, halve: bool = False
) -> Packed:
    """[C', C, K] -> [K * C, C'], taps outermost; [K, C', C] flattened if there are few outputs."""
    if multiplies_first(weight.shape[0], stride):
        return weight.permute(2, 0, 1).reshape(-1, weight.shape[1]).contiguous(), bias.clone()
    taps = _laid_out(weight.permute(2, 1, 0).flatten(0, 1))
    return taps, bias.clone(), *(_halved(taps) if halve else ())


def multiplies_first(outputs: int, stride: int) -> bool:
    """Whether a convolution shifts its products rather than its inputs."""
    return outputs <= _FEW_OUTPUTS and stride == 1


def pack_conv_transpose1d(
    weight: Tensor, bias: Tensor, *, stride: int, dilation: int, halve: bool = False
) -> Packed:
    """[C, C', K] -> [C, blocks * stride * C'], taps outermost and filled up with zeros.

    The bias goes with the first block only: every output is in exactly one first block.
    """
    missing = -weight.shape[2] % stride
    taps = _laid_out(functional.pad(weight, (0, missing)).permute(0, 2, 1).flatten(1))
    biases = functional.pad(bias.repeat(stride), (0, taps.shape[1] - stride * len(bias)))
    return taps, biases, *(_halved(taps) if halve else ())


def pack_resblock(weights: Packed) -> Packed:
    """The dilated convolution, the 1x1 one as [C', C], both last biases in one, the shortcut."""
    weight, bias, weight_out, bias_out, *shortcut = weights
    dilated = pack_conv1d(weight, bias, stride=1, dilation=1)
    if not shortcut:
        return *dilated, _laid_out(weight_out[:, :, 0].t()), bias_out.clone()
    straight = _laid_out(shortcut[0][:, :, 0].t())
    return *dilated, _laid_out(weight_out[:, :, 0].t()), bias_out + shortcut[1], straight


def pack_lstm(weights: Packed, *, halve: bool = False) -> Packed:
    """Per layer [W_ih | W_hh] as [2 * D, 4 * D] and one bias, the three sigmoid gates first; then
    the four plain weights.
    """
    packed: list[Tensor] = []
    for layer in range(len(weights) // 4):
        plain = weights[4 * layer : 4 * layer + 4]
        weight_ih, weight_hh, bias_ih, bias_hh = plain
        weight = _stored(_g_last(torch.cat([weight_ih, weight_hh], dim=1)).t().contiguous())
        packed += [weight, _g_last(bias_ih + bias_hh), *plain]
        packed += _halved(weight) if halve else ()
    return tuple(packed)


def _g_last(rows: Tensor) -> Tensor:
    i, f, g, o = rows.chunk(4)
    return torch.cat([i, f, o, g])


def pack_codebooks(weights: Packed) -> Packed:
    """Per codebook: -2 * vectors over squared norms [D + 1, V], and vectors | 0 [V + 1, D + 1].

    A latent followed by a 1 then gives the distances in one product, and stays so when a vector
    is taken from it. The last of the vectors is zero.
    """
    books, norms = TORCH.pack_codebooks(weights)
    searches = _stored(torch.cat([-2 * books.transpose(1, 2), norms[:, None]], dim=1))
    vectors = functional.pad(books, (0, 1, 0, 1))
    return tuple(part for pair in zip(searches, vectors, strict=True) for part in pair)
