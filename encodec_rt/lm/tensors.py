"""Shape and tensors of the portable language model, as in its file.

Needs only numpy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encodec_rt.bitstream.range_coder import TOTAL
from encodec_rt.errors import WeightsError

MAX_INT8 = 127
_MAX_PRODUCT = 2**24


@dataclass(frozen=True)
class LmConfig:
    """Shape of a model: codebooks of each layer of the stream, and the units that each layer adds.

    A layer's units see the codes of that layer and of those below, never of those above, so a
    stream can drop its upper layers. Block i sees the current frame and the one ``dilations[i]``
    frames before it.
    """

    layers: tuple[int, ...]
    codebook_size: int
    widths: tuple[int, ...]
    dilations: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raise WeightsError for an impossible shape."""
        numbers = (*self.layers, *self.widths, *self.dilations)
        if len(self.layers) != len(self.widths) or not self.layers or min(numbers) < 1:
            raise WeightsError(
                f"a language model of layers {self.layers}, widths {self.widths} and dilations "
                f"{self.dilations}; accepted: as many widths as layers, and numbers from 1 up"
            )
        if not 2 <= self.codebook_size <= TOTAL // 2:
            raise WeightsError(
                f"a language model for codebooks of {self.codebook_size} entries; accepted: 2 to "
                f"{TOTAL // 2}"
            )
        if 2 * self.width * MAX_INT8**2 >= _MAX_PRODUCT:
            raise WeightsError(
                f"a language model of {self.width} units; accepted: at most 520, since sums over "
                "more would not be exact"
            )

    @cached_property
    def width(self) -> int:
        """Number of units of all layers."""
        return sum(self.widths)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Number of units up to and including each layer."""
        return tuple(accumulate(self.widths))

    @cached_property
    def layer_of_book(self) -> tuple[int, ...]:
        """The layer that each codebook belongs to."""
        return tuple(layer for layer, books in enumerate(self.layers) for _ in range(books))

    def begin(self, layer: int) -> int:
        """The first unit of ``layer``."""
        return self.ends[layer] - self.widths[layer]


def tensor_shapes(config: LmConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    """The tensors of a model by name, with their shapes and types."""
    width, size = config.width, config.codebook_size
    found: dict[str, tuple[tuple[int, ...], str]] = {}

    def affine(name: str, outputs: int, inputs: int) -> None:
        found[f"{name}.weight"] = (outputs, inputs), "int8"
        for part, kind in (("bias", "int32"), ("multiplier", "int32"), ("shift", "uint8")):
            found[f"{name}.{part}"] = (outputs,), kind

    for index in range(len(config.dilations)):
        affine(f"block.{index}.mix", width, 2 * width)
        affine(f"block.{index}.back", width, width)
    affine("project", width, width)
    affine("depend", width, width)
    for book, layer in enumerate(config.layer_of_book):
        found[f"embedding.{book}"] = (size, width - config.begin(layer)), "int8"
        affine(f"head.{book}", size, config.widths[layer])
    return found


def unseen(config: LmConfig) -> NDArray[np.bool_]:
    """[outputs, inputs] of a square weight; True where the input is of a layer above the output."""
    layer = np.repeat(np.arange(len(config.widths)), config.widths)
    return np.asarray(layer[:, None] < layer[None, :])


def check_tensors(tensors: Mapping[str, NDArray[Any]], config: LmConfig) -> None:
    """Raise WeightsError unless ``tensors`` are those of a model with this shape."""
    wanted = tensor_shapes(config)
    if set(tensors) != set(wanted):
        raise WeightsError("the tensors are not those of a language model of this shape")
    for name, (shape, kind) in wanted.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.dtype(kind):
            raise WeightsError(f"{name} is {tensor.dtype} {tensor.shape}; {kind} {shape} is needed")
        if kind == "int8" and (tensor == -128).any():
            raise WeightsError(f"{name} has a weight of -128; accepted: -127 to 127")
        if name.startswith(("block", "project", "depend")) and kind == "int8":
            above = np.tile(unseen(config), shape[1] // config.width)
            if tensor[above].any():
                raise WeightsError(f"{name} lets a layer see the codes of those above it")
        if name.endswith(".multiplier") and (tensor.min() < 0 or tensor.max() >= 2**16):
            raise WeightsError(f"{name} has numbers out of range; accepted: 0 to 65535")
        if name.endswith(".shift") and tensor.max() > 40:
            raise WeightsError(f"{name} has shifts out of range; accepted: 0 to 40")
        if name.endswith(".bias") and np.abs(tensor.astype(np.int64)).max() >= 2**30:
            raise WeightsError(f"{name} has numbers out of range; accepted: below 2^30 in size")


def tensors_sha256(tensors: Mapping[str, NDArray[Any]], config: LmConfig) -> bytes:
    """The SHA-256 by which a stream names the language model that it was coded with."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        little = tensors[name].astype(tensors[name].dtype.newbyteorder("<"))
        digest.update(little.tobytes())
    return digest.digest()
