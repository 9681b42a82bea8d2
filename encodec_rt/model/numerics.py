"""What keeps a host program's settings out: default type, default device and autocast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch


class _OnDevice(Protocol):
    @property
    def device(self) -> torch.device: ...


Self = TypeVar("Self", bound=_OnDevice)
P = ParamSpec("P")
Result = TypeVar("Result")

FLOAT32_ON_CPU: Mapping[str, Any] = MappingProxyType(
    {"dtype": torch.float32, "device": torch.device("cpu")}
)
"""How every weight is made: ``torch.set_default_dtype`` and ``set_default_device`` change none."""


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A block in which products on ``device`` keep the type of their factors."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def without_autocast(
    method: Callable[Concatenate[Self, P], Result],
) -> Callable[Concatenate[Self, P], Result]:
    """``method``, computing in the types it is given, whatever autocast is around the call."""

    @wraps(method)
    def call(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        with no_autocast(self.device):
            return method(self, *args, **kwargs)

    return call
