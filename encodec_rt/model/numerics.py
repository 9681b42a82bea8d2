"""Types of weights, and protection from a program's default dtype, device and autocast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from encodec_rt.errors import ConfigError, InputError


class _OnDevice(Protocol):
    @property
    def device(self) -> torch.device: ...


Self = TypeVar("Self", bound=_OnDevice)
P = ParamSpec("P")
Result = TypeVar("Result")

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The types that weights may have."""
FLOAT32_ON_CPU: Mapping[str, Any] = MappingProxyType(
    {"dtype": torch.float32, "device": torch.device("cpu")}
)
"""How every weight is created, whatever ``torch.set_default_dtype`` and ``_device`` say."""


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """A floating type by name or as it is, float32 for None; raises ConfigError."""
    if dtype is None:
        return torch.float32
    for known in DTYPES:
        if str(dtype).removeprefix("torch.") == str(known).removeprefix("torch."):
            return known
    accepted = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
    raise ConfigError(f"dtype={dtype!r}; accepted: {accepted}, or 'auto' for the saved one")


def require_tensors(padding_mask: object, **arguments: object) -> None:
    """Raise InputError, naming the argument, unless all are tensors; a mask may also be None."""
    given = arguments if padding_mask is None else {**arguments, "padding_mask": padding_mask}
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{name} of type {type(value).__name__}; pass a torch tensor")


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A block in which products on ``device`` keep the type of their operands."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def without_autocast(
    method: Callable[Concatenate[Self, P], Result],
) -> Callable[Concatenate[Self, P], Result]:
    """``method``, computing in the types it is given, regardless of autocast around the call."""

    @wraps(method)
    def call(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        with no_autocast(self.device):
            return method(self, *args, **kwargs)

    return call
