"""Files of named tensors, whole or in shards: safetensors both ways, PyTorch's pickles only in.

Reading them cannot run code.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from encodec_rt.atomic import replacing
from encodec_rt.errors import ConfigError, WeightsError
from encodec_rt.pretrained import PretrainedSource, read_json, write_json

SAFE_NAME = "model.safetensors"
PICKLED_NAME = "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"

Tensors = dict[str, Tensor]

# What torch and its restricted unpickler raise for damaged files.
_UNREADABLE = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
    AssertionError, EOFError, MemoryError, OSError, pickle.UnpicklingError, struct.error,
)  # fmt: skip
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def candidates(use_safetensors: bool | None, variant: str | None) -> tuple[str, ...]:
    """The names that a model's weights may have, the preferred one first."""
    names = []
    if use_safetensors is not False:
        names += [SAFE_NAME, SAFE_NAME + INDEX_SUFFIX]
    if not use_safetensors:
        names += [PICKLED_NAME, PICKLED_NAME + INDEX_SUFFIX]
    return tuple(with_variant(name, variant) for name in names)


def with_variant(name: str, variant: str | None) -> str:
    """model.safetensors -> model.fp16.safetensors; raises ConfigError for an invalid variant."""
    if variant is None:
        return name
    if not isinstance(variant, str) or not re.fullmatch(r"\w[\w-]*", variant):
        raise ConfigError(
            f"variant={variant!r}; pass a word such as 'fp16', to be part of the name"
        )
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{variant}.{suffix}"


def read(source: PretrainedSource, path: Path) -> Tensors:
    """The tensors of one file, or of all the shards that an index in ``source`` names.

    Raises WeightsError.
    """
    if path.suffix != ".json":
        return _read_safe(path) if path.suffix == ".safetensors" else read_pickled(path)
    tensors: Tensors = {}
    for name in _shards(path):
        shard = source.find(name)
        held = _read_safe(shard) if name.endswith(".safetensors") else read_pickled(shard)
        if twice := held.keys() & tensors.keys():
            raise WeightsError(f"{shard} holds {min(twice)}, which another shard holds too")
        tensors.update(held)
    return tensors


def _shards(index: Path) -> list[str]:
    try:
        places = read_json(index).get("weight_map")
    except ConfigError as error:
        raise WeightsError(str(error)) from None
    if not isinstance(places, dict) or not places:
        raise WeightsError(f"{index} has no weight_map that says which file holds which tensor")
    for name in places.values():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*\.(safetensors|bin)", name):
            raise WeightsError(f"{index} names {name!r}, which is not a file of weights beside it")
    return sorted(set(places.values()))


def _read_safe(path: Path) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: Tensors = load_file(path, device="cpu")
    except (SafetensorError, *_UNREADABLE) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from None
    return tensors


def read_pickled(path: Path) -> Tensors:
    """The tensors of a file that torch.save wrote; nothing else in it is unpickled."""
    try:
        with warnings.catch_warnings():
            # torch's warnings about odd protocols and storages do not help the user, who gets
            # either the model or a reason.
            warnings.simplefilter("ignore")
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise WeightsError(
            f"{path} is not a readable PyTorch checkpoint: {_reason(error)}"
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise WeightsError(f"{path} holds a {type(tensors).__name__}, not tensors by name")
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise WeightsError(f"{path}: {name} is a {type(value).__name__}, not a tensor")
    return dict(tensors)


def _reason(error: BaseException) -> str:
    """Why a file cannot be read, without torch's advice to unpickle everything in it."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it refers to {found[1]}, and only tensors are unpickled; save its state_dict()"
    if "weights_only" in text.lower() or "weights only" in text.lower():
        return "it holds more than tensors, and only tensors are unpickled; save its state_dict()"
    return text.splitlines()[0] if text else type(error).__name__


def write(
    folder: Path, tensors: Tensors, max_shard_size: int | str | None, variant: str | None
) -> None:
    """Write model.safetensors, or shards of at most ``max_shard_size`` and their index.

    All shards appear together. Files of an earlier save with the same variant are removed if they
    would be read instead, or not at all. Raises ConfigError.
    """
    from safetensors.torch import save_file

    shards = _split(tensors, max_shard_size)
    whole = with_variant(SAFE_NAME, variant)
    stem, index = (
        whole.removesuffix(".safetensors"),
        with_variant(SAFE_NAME + INDEX_SUFFIX, variant),
    )
    names = [whole]
    if len(shards) > 1:
        names = [
            f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
            for number in range(1, len(shards) + 1)
        ]
    with ExitStack() as stack:
        for name, shard in zip(names, shards, strict=True):
            temporary = stack.enter_context(replacing(folder / name, force=True))
            save_file(shard, temporary, metadata={"format": "pt"})
    if len(shards) > 1:
        places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(value.nbytes for value in tensors.values())
        write_json(folder / index, {"metadata": {"total_size": total}, "weight_map": places})
        names.append(index)
    for path in folder.iterdir():
        is_shard = re.fullmatch(rf"{re.escape(stem)}-\d{{5}}-of-\d{{5}}\.safetensors", path.name)
        if (is_shard or path.name in (whole, index)) and path.name not in names:
            path.unlink()


def _split(tensors: Tensors, max_shard_size: int | str | None) -> list[Tensors]:
    limit = _bytes(max_shard_size)
    shards: list[Tensors] = [{}]
    size = 0
    for name, value in tensors.items():
        if limit is not None and shards[-1] and size + value.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    return shards


def _bytes(size: int | str | None) -> int | None:
    if size is None:
        return None
    found = re.fullmatch(r"(\d+)\s*([KMGT]?)B?", str(size), re.IGNORECASE)
    if found is None or not int(found[1]):
        raise ConfigError(f"max_shard_size={size!r}; pass bytes, or a string such as '200MB'")
    return int(found[1]) * _UNITS[found[2].upper()]
