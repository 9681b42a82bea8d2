"""The portable language model: integer arithmetic throughout, so results are equal everywhere.

Weights and activations have 8 bits. Products are computed in float32, where every partial sum is an
integer below 2^24 and thus exact: in any order, on any device, with any BLAS. The steps in between
are computed in float64, and each is exact. docs/language-model.md explains the arithmetic.

Needs only numpy to compute; ``load`` and ``save`` need safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Context, Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encodec_rt.bitstream.coding import codes_sha256_of
from encodec_rt.bitstream.range_coder import TOTAL
from encodec_rt.errors import WeightsError
from encodec_rt.lm.tensors import MAX_INT8, LmConfig, check_tensors, tensor_shapes, tensors_sha256
from encodec_rt.types import Codes, Floats

Doubles = NDArray[np.float64]
Product = Callable[[Floats, Floats], Any]
"""The exact product of integers [T, K] and [K, N] whose partial sums are below 2^24."""

UNIT = 16
"""An 8-bit activation of 16 means 1.0. Sums have a 16 times finer resolution, 1/256."""
LOG_STEPS = 64
"""Logits are in 64ths of a bit."""
_TABLE_BITS = 20
TABLE_END = LOG_STEPS * _TABLE_BITS


class Affine:
    """y = floor((x W + b) * scale + 1/2) of integers x, W, b; scale = multiplier / 2^shift."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]], name: str) -> None:
        weight = tensors[f"{name}.weight"]
        self.weight: Floats = np.ascontiguousarray(weight.astype(np.float32).T)
        shift = tensors[f"{name}.shift"].astype(np.int64)
        self.scale: Doubles = np.ldexp(tensors[f"{name}.multiplier"].astype(np.float64), -shift)
        # This is exact too: bias * multiplier is below 2^46 and the shift at most 40.
        self.offset: Doubles = tensors[f"{name}.bias"] * self.scale + 0.5

    def part(self, rows: slice, columns: Sequence[slice]) -> Affine:
        """The same for the outputs ``rows`` and the inputs ``columns``, concatenated."""
        found = object.__new__(Affine)
        inputs = [self.weight[one, rows] for one in columns]
        found.weight = np.ascontiguousarray(np.concatenate(inputs))
        found.scale, found.offset = self.scale[rows], self.offset[rows]
        return found

    def __call__(self, x: Floats, product: Product) -> Doubles:
        """[T, K] -> [T, N]."""
        sums: Doubles = product(x, self.weight) * self.scale
        sums += self.offset
        return np.floor(sums, out=sums)


@dataclass
class LmState:
    """The state of a stream: its last frame, and a ring buffer per block.

    ``last`` [1, width] is the embedding of the last frame, from ``IntegerLm.embedded``. ``past``
    has the last inputs of each block, [dilation, width]; the oldest row is ``frames`` modulo
    dilation.
    """

    last: Doubles
    past: list[Floats]
    frames: int = 0


class IntegerLm:
    """A model that is ready to predict; all its results are integers."""

    def __init__(
        self,
        tensors: Mapping[str, NDArray[Any]],
        config: LmConfig,
        *,
        codes_sha256: bytes = bytes(32),
    ) -> None:
        """``tensors`` are those of ``tensor_shapes``; raises WeightsError for any others.

        ``codes_sha256`` is the hash of the encoder and codebooks whose codes it was trained on.
        """
        check_tensors(tensors, config)
        self.codes_sha256 = codes_sha256
        self.config = config
        self.tensors = dict(tensors)
        self.sha256 = tensors_sha256(tensors, config)
        books = config.layer_of_book
        self.embeddings = [
            tensors[f"embedding.{book}"].astype(np.float32) for book in range(len(books))
        ]
        self.heads = [Affine(tensors, f"head.{book}") for book in range(len(books))]
        # Computed now, since the first frame of a stream may be live.
        powers()
        self.depths = [Depth(tensors, config, depth) for depth in range(1, len(config.ends) + 1)]

    @classmethod
    def load(cls, path: Path) -> IntegerLm:
        """Read a model that ``save`` wrote. Raises WeightsError for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                values = json.loads(metadata["config"])
                layers, widths, dilations = (
                    tuple(map(int, values[name])) for name in ("layers", "widths", "dilations")
                )
                config = LmConfig(layers, int(values["codebook_size"]), widths, dilations)
                tensors = {name: file.get_tensor(name) for name in tensor_shapes(config)}
                weights = bytes.fromhex(codes_sha256_of(metadata))
                return cls(tensors, config, codes_sha256=weights)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise WeightsError(f"{path} does not hold a language model: {error}") from None

    def save(self, path: Path) -> None:
        """Write a safetensors file; equal models give equal bytes."""
        from safetensors.numpy import save_file

        config = json.dumps(asdict(self.config), sort_keys=True)
        save_file(self.tensors, path, {"config": config, "codes_sha256": self.codes_sha256.hex()})

    def start(self) -> LmState:
        """The state before the first frame."""
        width = self.config.width
        past = [np.zeros((d, width), np.float32) for d in self.config.dilations]
        return LmState(np.zeros((1, width)), past)

    def contexts(
        self, codes: Codes, state: LmState, depth: int, product: Product = np.matmul
    ) -> Doubles:
        """The contexts of T frames, each computed from the frames before it.

        -> [T, units of the first ``depth`` layers]. The first frame follows ``state.last``, the
        others follow ``codes`` [T - 1, Q]. Advances ``state`` except for ``last``, which the caller
        sets.
        """
        parts = self.depths[depth - 1]
        sums = np.concatenate([state.last, self.embedded(codes)])[:, : parts.width] * UNIT
        before, state.frames = state.frames, state.frames + len(sums)
        for index, (mix, back) in enumerate(parts.blocks):
            present = _to_int8(sums)
            ring = state.past[index]
            past = np.roll(ring, -(before % len(ring)), axis=0)
            both = np.concatenate([past[:, : parts.width], present])
            inputs = np.concatenate([present, both[: len(present)]], axis=1)
            hidden = _clipped(mix(inputs, product), 0).astype(np.float32)
            sums = sums + back(hidden, product)
            keep = np.zeros_like(past)
            keep[:, : parts.width] = both[len(both) - len(past) :]
            state.past[index] = np.roll(keep, state.frames % len(ring), axis=0)
        return parts.project(_to_int8(sums), product)

    def counts(
        self,
        contexts: Doubles,
        below: Doubles,
        book: int,
        product: Product = np.matmul,
    ) -> NDArray[np.int64]:
        """The distribution of codebook ``book`` -> counts [T, codebook_size] that sum to TOTAL.

        ``contexts`` come from ``contexts``; ``below`` [T, width] is the sum of ``embed`` over the
        frame's codebooks before ``book``.
        """
        config = self.config
        layer = config.layer_of_book[book]
        begin, end = config.begin(layer), config.ends[layer]
        known = _clipped(below[:, :end], -MAX_INT8).astype(np.float32)
        sums = contexts[:, begin:end] + self.depths[layer].depend(known, product)
        units = _clipped(np.floor(sums / UNIT + 0.5), 0).astype(np.float32)
        return to_probabilities(self.heads[book](units, product))

    def embed(self, codes: NDArray[np.integer[Any]], book: int) -> Doubles:
        """The embeddings of codes [T] of one codebook -> [T, width], zero in lower layers."""
        found = np.zeros((len(codes), self.config.width))
        begin = self.config.begin(self.config.layer_of_book[book])
        found[:, begin:] = self.embeddings[book][codes]
        return found

    def embedded(self, codes: Codes) -> Doubles:
        """The embeddings of whole frames [T, Q] -> [T, width]: sums over the codebooks."""
        sums = np.zeros((len(codes), self.config.width))
        for book in range(codes.shape[1]):
            sums += self.embed(codes[:, book], book)
        return sums


class Depth:
    """The part of the weights that predictions for the first ``depth`` layers need."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]], config: LmConfig, depth: int) -> None:
        self.width, all_units = config.ends[depth - 1], config.width
        rows = slice(0, self.width)
        taps = [rows, slice(all_units, all_units + self.width)]
        self.blocks = [
            (
                Affine(tensors, f"block.{index}.mix").part(rows, taps),
                Affine(tensors, f"block.{index}.back").part(rows, [rows]),
            )
            for index in range(len(config.dilations))
        ]
        self.project = Affine(tensors, "project").part(rows, [rows])
        own = slice(config.begin(depth - 1), self.width)
        self.depend = Affine(tensors, "depend").part(own, [rows])


def to_probabilities(logits: Doubles) -> NDArray[np.int64]:
    """Integer logits [T, n] in 64ths of a bit -> counts [T, n], each at least 1, that sum to TOTAL.

    Proportional to 2^logit (from a table) and rounded down; the likeliest code, the first on a tie,
    gets the remainder.
    """
    best = logits.max(axis=1, keepdims=True)
    below = np.minimum(best - logits, TABLE_END).astype(np.int64)
    shares = powers()[below]
    counts: NDArray[np.int64] = 1 + shares * (TOTAL - shares.shape[1]) // shares.sum(
        axis=1, keepdims=True
    )
    rows = np.arange(len(counts))
    counts[rows, logits.argmax(axis=1)] += TOTAL - counts.sum(axis=1)
    return counts


@lru_cache(maxsize=1)
def powers() -> NDArray[np.int64]:
    """round(2^20 * 2^(-i / 64)) for i up to TABLE_END.

    Computed in decimal arithmetic, which is the same on every machine.
    """
    context = Context(prec=40)
    roots = [
        context.power(Decimal(2), context.divide(Decimal(-index), Decimal(LOG_STEPS)))
        for index in range(LOG_STEPS)
    ]
    values = []
    for index in range(TABLE_END + 1):
        halvings, step = divmod(index, LOG_STEPS)
        value = context.multiply(roots[step], Decimal(2) ** (_TABLE_BITS - halvings))
        values.append(int(value.to_integral_value()))
    return np.array(values, np.int64)


def _to_int8(sums: Doubles) -> Floats:
    rounded = np.floor(sums / UNIT + 0.5)
    return _clipped(rounded, -MAX_INT8).astype(np.float32)


def _clipped(values: Doubles, least: int) -> Doubles:
    """Clip to [``least``, 127]; for few numbers several times faster than ``numpy.clip``."""
    clipped: Doubles = np.minimum(np.maximum(values, least), MAX_INT8)
    return clipped
