"""Shape and tensors of the portable language model, as its file has them.

Needs numpy alone.
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
    """Shape of a model: the stream's ``layers`` and, for each, how many ``widths`` units it adds.

    A layer's units see the codes of that layer and of those below, never of those above, so that a
    stream can drop its upper layers. Block i sees the current frame and the one ``dilations[i]``
    before.
    """

    layers: tuple[int, ...]
    codebook_size: int
    widths: tuple[int, ...]
    dilations: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raise WeightsError for an impossible shape."""
        numbers = (*self.layers, *self.widths, *self.dilations)
        if len(self.layers) != len(self.widths) or not self.layers or min(numbers) < 1:
            raise WeightsError(f"a language model of layers {self.layers} and widths {self.widths}")
        if not 2 <= self.codebook_size <= TOTAL // 2:
            raise WeightsError(f"a language model for codebooks of {self.codebook_size}")
        if 2 * self.width * MAX_INT8**2 >= _MAX_PRODUCT:
            raise WeightsError(f"{self.width} units; sums of more than 520 would not be exact")

    @cached_property
    def width(self) -> int:
        """Units of all layers."""
        return sum(self.widths)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Units of each layer and those below."""
        return tuple(accumulate(self.widths))

    @cached_property
    def layer_of_book(self) -> tuple[int, ...]:
        """The layer of each codebook."""
        return tuple(layer for layer, books in enumerate(self.layers) for _ in range(books))

    def begin(self, layer: int) -> int:
        """The first unit of ``layer``."""
        return self.ends[layer] - self.widths[layer]


def tensor_shapes(config: LmConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    """The tensors of a model with their shapes and types."""
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
    """[units, units] True where an output would see an input of a layer above it."""
    layer = np.repeat(np.arange(len(config.widths)), config.widths)
    return np.asarray(layer[:, None] < layer[None, :])


def check_tensors(tensors: Mapping[str, NDArray[Any]], config: LmConfig) -> None:
    """Raise WeightsError for tensors that are not those of a model of this shape."""
    wanted = tensor_shapes(config)
    if set(tensors) != set(wanted):
        raise WeightsError("the tensors of the file are not those of a language model")
    for name, (shape, kind) in wanted.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.dtype(kind):
            raise WeightsError(f"{name} is {tensor.dtype} {tensor.shape}; {kind} {shape} is needed")
        if kind == "int8" and (tensor == -128).any():
            raise WeightsError(f"{name} has a weight of -128; they lie from -127 to 127")
        if name.startswith(("block", "project", "depend")) and kind == "int8":
            above = np.tile(unseen(config), shape[1] // config.width)
            if tensor[above].any():
                raise WeightsError(f"{name} lets a layer see the codes of those above it")
        if name.endswith(".multiplier") and (tensor.min() < 0 or tensor.max() >= 2**16):
            raise WeightsError(f"{name} has numbers beyond 16 bits")
        if name.endswith(".shift") and tensor.max() > 40:
            raise WeightsError(f"{name} has shifts beyond 40")
        if name.endswith(".bias") and np.abs(tensor.astype(np.int64)).max() >= 2**30:
            raise WeightsError(f"{name} has numbers beyond 30 bits")


def tensors_sha256(tensors: Mapping[str, NDArray[Any]], config: LmConfig) -> bytes:
    """The hash by which a stream names the model that it was coded with."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        little = tensors[name].astype(tensors[name].dtype.newbyteorder("<"))
        digest.update(little.tobytes())
    return digest.digest()
