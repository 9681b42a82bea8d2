"""What a model and a file are known by: names and hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from encodec_rt.config import PRESETS, EncodecConfig

if TYPE_CHECKING:
    from torch import Tensor

TRAINING_ONLY = ("inited", "cluster_size", "embed_avg")
"""Buffers of a codebook that only training reads; no code and no sample depends on them."""


class NamedModel(Protocol):
    """As much of EncodecModel as names it."""

    config: EncodecConfig

    def state_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Identity:
    """The name that an ``.ecdc`` file gives a model, and the hash of its weights."""

    name: str
    weights_sha256: str


def identify(model: NamedModel) -> Identity:
    """Both names of ``model``, from one pass over its weights.

    Hashing takes 25 ms for the embedded model and 70 ms for the paper's, so whoever holds a model
    whose weights no longer change keeps the result.
    """
    digest = weights_sha256(model)
    for name, preset in PRESETS.items():
        if model.config == preset:
            return Identity(name, digest)
    return Identity(f"encodec_rt-{digest[:8]}", digest)


def model_name(model: NamedModel) -> str:
    """The paper's name for a model of the paper's architecture, else the hash of the weights."""
    return identify(model).name


def weights_sha256(model: NamedModel) -> str:
    """The SHA-256, in hex, of all parameters and codebooks in the order of their names.

    Hashed are their values as float32, in which streams compute, so that a model has one hash
    whatever type it is held in.
    """
    digest = hashlib.sha256()
    tensors: dict[str, Tensor] = model.state_dict()
    for name, tensor in sorted(tensors.items()):
        if name.rpartition(".")[2] in TRAINING_ONLY:
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hex; original ``.th`` files carry its start in their name."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
