"""Training the portable language model: the same network in floating point, with fake rounding.

Towards the end weights and activations are rounded as in ``integer``, with the gradient passing
through, so that the exported model predicts as well as the trained one. Before that they are only
kept within the same limits, which saves a quarter of the time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encodec_rt.errors import ConfigError, InputError
from encodec_rt.lm.integer import LOG_STEPS, UNIT, IntegerLm
from encodec_rt.lm.tensors import MAX_INT8, LmConfig
from encodec_rt.types import Codes

_LEAST_STEP = 1e-5
"""The finest step of a row of weights; a smaller row counts as zero."""
_LOOK_EVERY = 20
"""Steps between looks at the loss, for which a GPU has to be waited for."""


@dataclass(frozen=True)
class LmRecipe:
    """How a model is trained: ``minutes`` of batches of ``batch`` pieces of ``frames`` frames.

    The minutes are those of the processor, on a GPU of the clock. For the last ``rounded_share`` of
    them it is rounded as the exported model is.
    """

    minutes: float = 10.0
    steps: int | None = None
    batch: int = 4
    frames: int = 150
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warm_up: float = 0.03
    rounded_share: float = 0.25
    seed: int = 0


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
        self.register_buffer("mask", torch.ones(outputs, inputs) if mask is None else mask)
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

    def forward(self, codes: Tensor) -> Tensor:
        """Codes [B, T, Q] -> the bits that each codebook takes on average [Q]."""
        config, width = self.config, self.config.width
        embedded = [
            nn.functional.pad(self._to_unit(table)[codes[..., book]], (width - table.shape[1], 0))
            for book, table in enumerate(self.embedding)
        ]
        sums = _later(torch.stack(embedded).sum(0), 1)
        for mix, back, dilation in zip(self.mix, self.back, config.dilations, strict=True):
            present = self._to_unit(sums)
            hidden = mix(torch.cat([present, _later(present, dilation)], dim=-1))
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


def train_lm(
    clips: Sequence[Codes],
    config: LmConfig,
    recipe: LmRecipe,
    on_progress: Callable[[float, float], None] = lambda share, bits: None,
    *,
    start_from: IntegerLm | None = None,
    device: torch.device | str = "cpu",
) -> TrainableLm:
    """Train on ``clips`` of codes [frames, Q] -> the model, on the CPU.

    It begins with the weights of ``start_from`` if that is given. ``on_progress`` gets the share
    done and bits per code. Raises InputError if the clips hold too little, ConfigError for a
    ``start_from`` of another shape.
    """
    books, device = sum(config.layers), torch.device(device)
    flat, starts = _pieces(clips, books, recipe.frames)
    codes, within = torch.from_numpy(flat.astype(np.int16)).to(device), np.arange(recipe.frames)
    torch.manual_seed(recipe.seed)
    chance = np.random.default_rng(recipe.seed)
    model = TrainableLm(config)
    if start_from is not None:
        model.start_from(start_from)
    model.to(device)
    optimiser = torch.optim.AdamW(
        model.parameters(),
        recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    began, step, smooth = clock(), 0, math.nan
    while True:
        done = step / recipe.steps if recipe.steps else (clock() - began) / (60 * recipe.minutes)
        if done >= 1:
            model.round(True)
            return model.cpu().eval()
        model.round(done >= 1 - recipe.rounded_share)
        rate = min(done / recipe.warm_up + 0.01, 0.5 * (1 + math.cos(math.pi * done)) + 0.01)
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * rate
        places = chance.choice(starts, recipe.batch)[:, None] + within
        bits = model(codes[torch.from_numpy(places).to(device)].long()).mean()
        optimiser.zero_grad()
        bits.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        if device.type == "cpu" or step % _LOOK_EVERY == 0:
            latest = bits.item()
            smooth = latest if math.isnan(smooth) else 0.95 * smooth + 0.05 * latest
            on_progress(done, smooth)


def bits_per_code(model: IntegerLm, clips: Sequence[Codes], frames: int) -> NDArray[np.float64]:
    """The average bits of each codebook of ``clips``, with a restart after every ``frames``."""
    books = sum(model.config.layers)
    total, count = np.zeros(books), 0
    for clip in clips:
        for start in range(0, len(clip), frames):
            codes = clip[start : start + frames, :books]
            contexts = model.contexts(codes[:-1], model.start(), len(model.config.layers))
            below = np.zeros((len(codes), model.config.width))
            for book in range(books):
                counts = model.counts(contexts, below, book)
                chosen = counts[np.arange(len(codes)), codes[:, book]]
                total[book] -= np.log2(chosen / 65536).sum()
                below += model.embed(codes[:, book], book)
            count += len(codes)
    return total / max(1, count)


def _pieces(clips: Sequence[Codes], books: int, frames: int) -> tuple[Codes, NDArray[np.int64]]:
    """All codes in one array, and where in it a piece of ``frames`` may begin."""
    whole = [clip[:, :books] for clip in clips if len(clip) and clip.shape[1] >= books]
    lengths = [len(clip) for clip in whole]
    if not any(length >= frames for length in lengths):
        raise InputError(f"no clip has {frames} frames of {books} codebooks to train on")
    ends = np.cumsum(lengths)
    starts = [
        np.arange(end - length, end - frames + 1)
        for end, length in zip(ends, lengths, strict=True)
        if length >= frames
    ]
    return np.concatenate(whole), np.concatenate(starts)


def _later(x: Tensor, frames: int) -> Tensor:
    """[B, T, C] moved ``frames`` later, with zeros in front."""
    return nn.functional.pad(x, (0, 0, frames, 0))[:, : x.shape[1]]


def _as_fraction(
    scales: NDArray[np.float64],
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Each scale as a multiplier of 15 bits and a shift: multiplier / 2^shift."""
    _, exponents = np.frexp(scales)
    shift = np.clip(15 - exponents, 0, 40)
    multiplier = np.rint(np.ldexp(scales, shift))
    return multiplier.astype(np.int32), shift.astype(np.uint8)
