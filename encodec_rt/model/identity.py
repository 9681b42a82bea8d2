"""What identifies a model and a file: names and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from encodec_rt.config import PRESETS, EncodecConfig

if TYPE_CHECKING:
    from torch import Tensor

TRAINING_ONLY = ("inited", "cluster_size", "embed_avg")
"""Buffers of a codebook that only training reads; no code and no sample depends on them."""


class NamedModel(Protocol):
    """The part of EncodecModel that identifies it."""

    config: EncodecConfig

    def state_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Identity:
    """The name that an ``.ecdc`` file gives a model, and its hashes in hex.

    ``codes_sha256`` covers encoder and codebooks, which determine the codes; files and calls are
    checked by it, so an improved decoder can still decode them. ``weights_sha256`` covers
    everything, as the states of streams require.
    """

    name: str
    codes_sha256: str
    weights_sha256: str


def identify(model: NamedModel) -> Identity:
    """All names of ``model``, from one pass over its weights.

    Hashing takes 25 ms for the embedded model and 70 ms for the paper's, so keep the result if the
    weights no longer change.
    """
    weights, codes = hashlib.sha256(), hashlib.sha256()
    for name, values in _values(model):
        weights.update(values)
        if name.startswith(("encoder.", "quantizer.")):
            codes.update(values)
    hashes = codes.hexdigest(), weights.hexdigest()
    for preset, config in PRESETS.items():
        if model.config == config:
            return Identity(preset, *hashes)
    return Identity(f"encodec_rt-{hashes[0][:8]}", *hashes)


def model_name(model: NamedModel) -> str:
    """The paper's name for a model of the paper's architecture, else a hash of what makes codes."""
    return identify(model).name


def weights_sha256(model: NamedModel) -> str:
    """The SHA-256, in hex, of all parameters and codebooks in the order of their names.

    The values are hashed as float32, in which streams compute, so a model has the same hash in
    every type.
    """
    return identify(model).weights_sha256


def _values(model: NamedModel) -> Iterator[tuple[str, bytes]]:
    """Every tensor's name, and its name and values as they are hashed."""
    tensors: dict[str, Tensor] = model.state_dict()
    for name, tensor in sorted(tensors.items()):
        if name.rpartition(".")[2] not in TRAINING_ONLY:
            values = tensor.detach().cpu().float().contiguous().numpy()
            yield name, name.encode() + values.tobytes()


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hex; original ``.th`` files carry its start in their name."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
