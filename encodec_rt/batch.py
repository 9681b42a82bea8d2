"""Batches as Hugging Face's extractors return them: clips of one length, as arrays or tensors."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from encodec_rt.errors import InputError

Array = npt.NDArray[Any]


class BatchFeature(UserDict[str, Any]):
    """``input_values`` and ``padding_mask``, by name and by attribute."""

    def __getattr__(self, name: str) -> Any:
        """An entry by attribute."""
        # "data" itself is looked up here while an instance is being unpickled.
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Move every tensor to a device, or to a type if it is floating; changes this object."""
        device = kwargs.get("device")
        if device is None and args and not isinstance(args[0], torch.dtype):
            device = args[0]
        for name, value in self.data.items():
            if not isinstance(value, torch.Tensor):
                continue
            if value.is_floating_point():
                self.data[name] = value.to(*args, **kwargs)
            elif device is not None:
                self.data[name] = value.to(device, non_blocking=kwargs.get("non_blocking", False))
        return self


@dataclass(frozen=True)
class Padding:
    """How clips are brought to one length.

    ``strategy`` is "longest", "max_length" or "do_not_pad"; ``truncation`` cuts to ``max_length``;
    lengths are rounded up to a multiple of ``multiple``; ``side`` is "left" or "right".
    """

    strategy: str
    max_length: int | None
    truncation: bool
    side: str
    multiple: int = 1

    def __post_init__(self) -> None:
        """Raise InputError for a length that is not a number, or is needed and was not given."""
        if not isinstance(self.max_length, (int, np.integer, type(None))):
            raise InputError(f"max_length={self.max_length!r}; pass a number of samples")
        if self.max_length is None and (self.truncation or self.strategy == "max_length"):
            raise InputError("truncation=True and padding='max_length' need max_length")

    def apply(self, clips: Sequence[Array], value: float) -> list[Array]:
        """Clips [L_i, ...] -> the same, cut and padded with ``value``."""
        limit = None if self.max_length is None else self._rounded(self.max_length)
        if self.truncation:
            clips = [clip[:limit] for clip in clips]
        length = 0
        if self.strategy == "longest":
            length = self._rounded(max(len(clip) for clip in clips))
        elif self.strategy == "max_length" and limit is not None:
            length = limit
        return [self._padded(clip, length, value) for clip in clips]

    def _rounded(self, length: int) -> int:
        return -(-length // self.multiple) * self.multiple

    def _padded(self, clip: Array, length: int, value: float) -> Array:
        missing = max(0, length - len(clip))
        sides = (missing, 0) if self.side == "left" else (0, missing)
        widths = (sides, *((0, 0),) * (clip.ndim - 1))
        return np.pad(clip, widths, constant_values=value)


def padding_strategy(padding: bool | str) -> str:
    """The name of what ``padding`` asks for; raises InputError."""
    if padding is False:
        return "do_not_pad"
    if padding is True:
        padding = "longest"
    # Compared one by one: an enumeration's member may equal a name without being one.
    for name in ("longest", "max_length", "do_not_pad"):
        if padding == name:
            return name
    raise InputError(
        f"padding={padding!r}; accepted: True, False, 'longest', 'max_length', 'do_not_pad'"
    )


def columns(features: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """One example or several, as a mapping of lists or a list of mappings -> lists by name.

    Raises InputError where there is no ``input_values``, or the lists differ in length.
    """
    if not isinstance(features, (Mapping, list, tuple)):
        raise InputError(
            f"a batch of type {type(features).__name__}; pad takes a mapping or a list"
        )
    if not isinstance(features, Mapping):
        if not all(isinstance(example, Mapping) for example in features):
            raise InputError("a list of examples that are not mappings; each has input_values")
        names = list(features[0]) if features else []
        features = {name: [example[name] for example in features] for name in names}
    found = {name: list(values) for name, values in features.items()}
    known = {"input_values", "attention_mask"}
    if "input_values" not in found or found.keys() - known:
        raise InputError(
            f"a batch of {', '.join(found) or 'nothing'}; pad takes input_values and, if there is "
            "one, attention_mask"
        )
    if len({len(values) for values in found.values()}) != 1 or not found["input_values"]:
        raise InputError("pad takes one or more clips, and one mask per clip if any")
    return found


def stacked(rows: list[Array]) -> Array:
    """[B, L], or an array of arrays when they differ in length."""
    if len({len(row) for row in rows}) == 1:
        return np.stack(rows)
    ragged = np.empty(len(rows), dtype=object)
    ragged[:] = rows
    return ragged


def converted(values: list[Array] | Array, return_tensors: str | None) -> Any:
    """Arrays as one tensor ("pt"), one array ("np") or as they are; raises InputError."""
    if return_tensors is None:
        return values
    if len({value.shape for value in values}) > 1:
        raise InputError(
            "clips of different lengths do not fit into one tensor; use padding=True, or "
            "return_tensors=None for a list"
        )
    array = np.asarray(values)
    return torch.from_numpy(array) if return_tensors == "pt" else array
