"""The network of the portable language model in floating point, to be trained.

Its weights and activations are rounded as in ``integer``, with the gradient passing through, or
only kept within the same limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encodec_rt.errors import ConfigError
from encodec_rt.lm.integer import LOG_STEPS, UNIT, IntegerLm
from encodec_rt.lm.tensors import MAX_INT8, LmConfig

_LEAST_STEP = 1e-5
"""The finest step of a row of weights; a smaller row counts as zero."""


def lm_config(
    layers: tuple[int, ...], codebook_size: int, widths: tuple[int, ...] | None = None
) -> LmConfig:
    """The shape of the package's own model for a stream of ``layers``: 5 MB for 16 codebooks."""
    if widths is None:
        widths = (96, *(64 for _ in layers[1:]))
    return LmConfig(layers, codebook_size, widths, (1, 2, 4, 8, 16, 32))


class QuantizedLinear(nn.Module):
    """A linear layer with weights rounded to 8 bits per row, and zero where ``mask`` is 0."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, mask: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        mask = torch.ones(outputs, inputs) if mask is None else mask
        self.register_buffer("mask", mask, persistent=False)
        self.rounding = True

    def rounded(self) -> tuple[Tensor, Tensor]:
        """Whole weights [outputs, inputs], and the step of each row."""
        weight = self.weight * self.mask
        step = (weight.detach().abs().amax(dim=1) / MAX_INT8).clamp(min=_LEAST_STEP)
        whole = weight / step[:, None]
        return whole + (whole.round() - whole).detach(), step

    def forward(self, x: Tensor, rows: slice = slice(None), inputs: int | None = None) -> Tensor:
        if self.rounding:
            whole, step = self.rounded()
            weight = whole * step[:, None]
        else:
            weight = self.weight * self.mask
        return nn.functional.linear(x, weight[rows, :inputs], self.bias[rows])


class TrainableLm(nn.Module):
    """The network of ``IntegerLm`` in floating point."""

    def __init__(self, config: LmConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        layer = torch.repeat_interleave(
            torch.arange(len(config.widths)), torch.tensor(config.widths)
        )
        seen = (layer[:, None] >= layer[None, :]).float()
        self.embedding = nn.ParameterList(
            nn.Parameter(0.2 * torch.randn(config.codebook_size, width - config.begin(of)))
            for of in config.layer_of_book
        )
        both = torch.cat([seen, seen], dim=1)
        self.mix = nn.ModuleList(QuantizedLinear(2 * width, width, both) for _ in config.dilations)
        self.back = nn.ModuleList(QuantizedLinear(width, width, seen) for _ in config.dilations)
        self.project = QuantizedLinear(width, width, seen)
        self.depend = QuantizedLinear(width, width, seen)
        self.head = nn.ModuleList(
            QuantizedLinear(config.widths[of], config.codebook_size) for of in config.layer_of_book
        )
        with torch.no_grad():
            for module in (*self.back, *self.head):
                module.weight.mul_(0.1)
        self.rounding = True

    def round(self, rounding: bool) -> None:
        """Whether weights and activations are rounded from now on, as they are at first."""
        self.rounding = rounding
        for module in self.modules():
            if isinstance(module, QuantizedLinear):
                module.rounding = rounding

    def forward(self, codes: Tensor, ages: Tensor | None = None) -> Tensor:
        """Codes [B, T, Q] -> the bits that each codebook takes on average [Q].

        Where a row holds several clips, ``ages`` [B, T] are the frames since the begin of the clip:
        nothing from before it is seen.
        """
        config, width = self.config, self.config.width
        embedded = [
            nn.functional.pad(self._to_unit(table)[codes[..., book]], (width - table.shape[1], 0))
            for book, table in enumerate(self.embedding)
        ]
        sums = _later(torch.stack(embedded).sum(0), 1, ages)
        for mix, back, dilation in zip(self.mix, self.back, config.dilations, strict=True):
            present = self._to_unit(sums)
            hidden = mix(torch.cat([present, _later(present, dilation, ages)], dim=-1))
            sums = sums + back(self._to_unit(hidden.relu()))
        contexts = self.project(self._to_unit(sums))
        below = torch.zeros_like(contexts)
        bits = []
        for book, layer in enumerate(config.layer_of_book):
            begin, end = config.begin(layer), config.ends[layer]
            known = below[..., :end].clamp(-MAX_INT8 / UNIT, MAX_INT8 / UNIT)
            found = contexts[..., begin:end] + self.depend(known, slice(begin, end), end)
            logits = self.head[book](self._to_unit(found.relu()))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), codes[..., book].flatten())
            bits.append(loss / math.log(2))
            below = below + embedded[book]
        return torch.stack(bits)

    def _to_unit(self, x: Tensor) -> Tensor:
        """Clipped to +-127/16, within which the gradient passes, and rounded to 16ths."""
        held = x.clamp(-MAX_INT8 / UNIT, MAX_INT8 / UNIT)
        if not self.rounding:
            return held
        return held + ((held * UNIT + 0.5).floor() / UNIT - held).detach()

    @torch.no_grad()
    def export(self, codes_sha256: bytes = bytes(32)) -> IntegerLm:
        """The model in integers, for the codes of the model of those weights."""
        tensors: dict[str, NDArray[Any]] = {}
        for name, module, unit in self._affine():
            whole, step = module.rounded()
            step = step.double()
            bias = (module.bias.double() * UNIT / step).round()
            multiplier, shift = _as_fraction(step.numpy() * unit)
            tensors[f"{name}.weight"] = whole.round().numpy().astype(np.int8)
            tensors[f"{name}.bias"] = bias.clamp(-(2**29), 2**29).numpy().astype(np.int32)
            tensors[f"{name}.multiplier"] = multiplier
            tensors[f"{name}.shift"] = shift
        for book, table in enumerate(self.embedding):
            scaled = (table * UNIT).round().clamp(-MAX_INT8, MAX_INT8)
            tensors[f"embedding.{book}"] = scaled.numpy().astype(np.int8)
        return IntegerLm(tensors, self.config, codes_sha256=codes_sha256)

    @torch.no_grad()
    def start_from(self, model: IntegerLm) -> None:
        """Take the weights of an exported model. Raises ConfigError if it has another shape."""
        if model.config != self.config:
            raise ConfigError(f"a language model of {model.config}; this one has {self.config}")
        for name, module, unit in self._affine():
            weight, bias, multiplier, shift = (
                torch.from_numpy(model.tensors[f"{name}.{part}"].astype(np.float64))
                for part in ("weight", "bias", "multiplier", "shift")
            )
            step = multiplier * torch.exp2(-shift) / unit
            module.weight.copy_(weight * step[:, None])
            module.bias.copy_(bias * step / UNIT)
        for book, table in enumerate(self.embedding):
            table.copy_(torch.from_numpy(model.tensors[f"embedding.{book}"]) / UNIT)

    def _affine(self) -> Iterator[tuple[str, QuantizedLinear, float]]:
        """Name in the exported file, layer, and what its outputs are multiplied with there."""
        for index in range(len(self.config.dilations)):
            yield f"block.{index}.mix", self.mix[index], 1.0  # type: ignore[misc]
            yield f"block.{index}.back", self.back[index], UNIT  # type: ignore[misc]
        yield "project", self.project, UNIT
        yield "depend", self.depend, UNIT
        for book, head in enumerate(self.head):
            unit = LOG_STEPS * math.log2(math.e) / UNIT
            yield f"head.{book}", head, unit  # type: ignore[misc]


def _later(x: Tensor, frames: int, ages: Tensor | None) -> Tensor:
    """[B, T, C] moved ``frames`` later, with zeros in front, also at the begin of each clip."""
    moved = nn.functional.pad(x, (0, 0, frames, 0))[:, : x.shape[1]]
    return moved if ages is None else torch.where(ages[..., None] >= frames, moved, 0.0)


def _as_fraction(
    scales: NDArray[np.float64],
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Each scale as a multiplier of 15 bits and a shift: multiplier / 2^shift."""
    _, exponents = np.frexp(scales)
    shift = np.clip(15 - exponents, 0, 40)
    multiplier = np.rint(np.ldexp(scales, shift))
    return multiplier.astype(np.int32), shift.astype(np.uint8)
