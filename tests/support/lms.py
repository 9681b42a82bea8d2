"""Small language models with random integer weights, for tests of exactness."""

from __future__ import annotations

import numpy as np

from encodec_rt.lm.integer import IntegerLm
from encodec_rt.lm.tensors import LmConfig, tensor_shapes, unseen
from encodec_rt.types import Codes

SMALL = LmConfig(layers=(1, 1, 2), codebook_size=16, widths=(12, 8, 8), dilations=(1, 2, 5))


def random_lm(config: LmConfig = SMALL, seed: int = 0, *, extreme: bool = False) -> IntegerLm:
    """A model with random weights, all of the largest size if ``extreme``."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, (shape, kind) in tensor_shapes(config).items():
        if kind == "int8":
            most = 127 if extreme else 40
            values = rng.integers(-most, most + 1, shape)
            if extreme:
                values = np.where(rng.random(shape) < 0.5, -127, 127)
        elif name.endswith("bias"):
            values = rng.integers(-3000, 3000, shape)
        elif name.endswith("multiplier"):
            values = rng.integers(2**14, 2**15, shape)
        else:
            values = np.full(
                shape, 17 if name.startswith(("project", "depend")) or "back" in name else 21
            )
            if name.startswith("head"):
                values = np.full(shape, 19)
        if name.startswith(("block", "project", "depend")) and kind == "int8":
            values[np.tile(unseen(config), shape[1] // config.width)] = 0
        tensors[name] = values.astype(kind)
    return IntegerLm(tensors, config)


def likely_codes(model: IntegerLm, frames: int, seed: int = 0) -> Codes:
    """Codes [frames, codebooks] drawn from the model's own predictions."""
    rng = np.random.default_rng(seed)
    books = sum(model.config.layers)
    codes = np.empty((frames, books), np.uint16)
    state = model.start()
    for frame in range(frames):
        contexts = model.contexts(codes[:0], state, len(model.config.layers))
        below = np.zeros((1, model.config.width))
        for book in range(books):
            counts = model.counts(contexts, below, book)[0]
            codes[frame, book] = rng.choice(len(counts), p=counts / 65536)
            below += model.embed(codes[frame, book : book + 1], book)
        state.last = below
    return codes
