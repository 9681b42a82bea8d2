"""The portable language model frame by frame, for decoders and live encoders.

It computes the same numbers as ``integer.py``, which documents them. Here every array is allocated
once, since for a single frame allocation costs more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encodec_rt.bitstream.range_coder import TOTAL
from encodec_rt.lm.integer import (
    TABLE_END,
    UNIT,
    Affine,
    Doubles,
    IntegerLm,
    LmState,
    Product,
    powers,
)
from encodec_rt.lm.tensors import MAX_INT8
from encodec_rt.types import Floats


class LmStepper:
    """Predicts one frame at a time.

    Call ``begin``, then for each codebook get its ``probabilities`` and ``take`` its code, and then
    call ``end``.
    """

    def __init__(self, model: IntegerLm, depth: int, product: Product = np.matmul) -> None:
        """For frames with the codebooks of the first ``depth`` layers."""
        config, parts = model.config, model.depths[depth - 1]
        self._product = product
        self._embeddings, self._layer_of_book = model.embeddings, config.layer_of_book
        self._width = parts.width
        self._sums: Doubles = np.empty((1, parts.width))
        self._inputs: Floats = np.empty((1, 2 * parts.width), np.float32)
        self._units = _RowRounding(parts.width)
        self._hidden = _RowRounding(parts.width)
        step: Doubles = np.empty((1, parts.width))
        self._blocks = [
            (_RowAffine(mix, step), _RowAffine(back, step)) for mix, back in parts.blocks
        ]
        self._project = _RowAffine(parts.project)
        self._context: Doubles = np.empty((1, parts.width))
        self._below: Floats = np.empty((1, config.width), np.float32)
        self._layers = [_LayerUnits(model, layer, self._below) for layer in range(depth)]
        self._heads = _BookHeads(model.heads[: sum(config.layers[:depth])])
        self._book = 0

    def clear(self, state: LmState) -> None:
        """Clear the state of the layers above; call it before the first frame of a packet."""
        for ring in state.past:
            ring[:, self._width :] = 0

    def begin(self, state: LmState) -> None:
        """Compute the context of the next frame, and advance ``state`` except for ``last``."""
        width, product, inputs = self._width, self._product, self._inputs
        np.multiply(state.last[:, :width], UNIT, out=self._sums)
        for ring, (mix, back) in zip(state.past, self._blocks, strict=True):
            place = state.frames % len(ring)
            present = self._units(self._sums, -MAX_INT8)
            inputs[:, :width] = present
            inputs[:, width:] = ring[place, :width]
            ring[place, :width] = present
            hidden = self._hidden.clipped(mix(inputs, product), 0)
            self._sums += back(hidden, product)
        state.frames += 1
        self._context = self._project(self._units(self._sums, -MAX_INT8), product)
        self._below.fill(0)
        self._book = 0

    def probabilities(self) -> Doubles:
        """The next codebook's probabilities [1, size], multiples of 2^-16.

        The array is valid until the next call.
        """
        layer = self._layers[self._layer_of_book[self._book]]
        units = layer.units(self._context, self._product)
        return self._heads(self._book, units, self._product)

    def take(self, code: int) -> None:
        """Set the code of the next codebook."""
        below = self._layers[self._layer_of_book[self._book]].below
        np.add(below, self._embeddings[self._book][code], out=below)
        self._book += 1

    def end(self, state: LmState) -> None:
        """End the frame: set ``last`` of ``state``."""
        state.last[:] = self._below


class _RowAffine:
    """An ``Affine`` for one row, always into the same array."""

    def __init__(self, affine: Affine, out: Doubles | None = None) -> None:
        self._weight, self._scale, self._offset = affine.weight, affine.scale, affine.offset
        self._out: Doubles = np.empty((1, len(affine.scale))) if out is None else out

    def __call__(self, x: Floats, product: Product) -> Doubles:
        out = self._out
        np.multiply(product(x, self._weight), self._scale, out=out)
        np.add(out, self._offset, out=out)
        return np.floor(out, out=out)


class _RowRounding:
    """Rounds sums to 8 bits, as ``integer.py`` does."""

    def __init__(self, width: int) -> None:
        self._doubles: Doubles = np.empty((1, width))
        self._floats: Floats = np.empty((1, width), np.float32)

    def __call__(self, sums: Doubles, least: int) -> Floats:
        doubles = self._doubles
        np.multiply(sums, 1 / UNIT, out=doubles)
        np.add(doubles, 0.5, out=doubles)
        return self.clipped(np.floor(doubles, out=doubles), least)

    def clipped(self, values: NDArray[Any], least: int) -> Floats:
        np.maximum(values, least, out=self._doubles)
        np.minimum(self._doubles, MAX_INT8, out=self._floats, casting="same_kind")
        return self._floats


class _LayerUnits:
    """A layer's predictions from the context and the frame's earlier codebooks."""

    def __init__(self, model: IntegerLm, layer: int, below: Floats) -> None:
        begin, end = model.config.begin(layer), model.config.ends[layer]
        self.below = below[0, begin:]
        self._known, self._own = below[:, :end], slice(begin, end)
        self._limited: Floats = np.empty((1, end), np.float32)
        self._depend = _RowAffine(model.depths[layer].depend)
        self._sums: Doubles = np.empty((1, end - begin))
        self._units = _RowRounding(end - begin)

    def units(self, context: Doubles, product: Product) -> Floats:
        np.maximum(self._known, -MAX_INT8, out=self._limited)
        np.minimum(self._limited, MAX_INT8, out=self._limited)
        np.add(context[:, self._own], self._depend(self._limited, product), out=self._sums)
        return self._units(self._sums, 0)


class _BookHeads:
    """Probabilities of each codebook, those of ``integer.to_probabilities`` for its logits."""

    def __init__(self, affines: Sequence[Affine]) -> None:
        size = len(affines[0].scale)
        # All codebooks share one set of arrays, which then stays in the L1 cache.
        self._logits: Doubles = np.empty((1, size))
        self._counts: Doubles = np.empty((1, size))
        self._index: NDArray[np.intp] = np.empty((1, size), np.intp)
        self._steps = [_RowAffine(affine, self._logits) for affine in affines]
        # The products of shares and total are below 2^36 and their sum below 2^53, so a float64
        # division rounded down equals the integer division.
        self._free = TOTAL - size
        self._shares: Doubles = (powers() * self._free).astype(np.float64)

    def __call__(self, book: int, units: Floats, product: Product) -> Doubles:
        logits, counts, index = self._steps[book](units, product), self._counts, self._index
        likeliest = int(logits.argmax())
        np.subtract(logits[0, likeliest], logits, out=logits)
        np.minimum(logits, TABLE_END, out=logits)
        np.copyto(index, logits, casting="unsafe")
        self._shares.take(index, out=counts, mode="clip")
        np.divide(counts, np.add.reduce(counts, axis=1)[0] / self._free, out=counts)
        np.floor(counts, out=counts)
        np.add(counts, 1, out=counts)
        counts[0, likeliest] += TOTAL - np.add.reduce(counts, axis=1)[0]
        return np.multiply(counts, 1 / TOTAL, out=counts)
