"""Helpers for the kernel tests: poisoned outputs, arena views, bounds checks, program orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime import interpreter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GAP = 32
"""Number of floats between two slots' states, which no kernel may touch."""


def randn(*shape: int, scale: float = 1.0) -> Tensor:
    """Normal random numbers on the tests' device, the same on every device."""
    return (scale * torch.randn(*shape)).to(DEVICE)


def state(slots: int, *shape: int) -> Tensor:
    """A random view [slots, *shape] into a wider arena, like a view of the streaming state."""
    size = math.prod(shape)
    return randn(slots, size + GAP)[:, :size].view(slots, *shape)


def poisoned(like: Tensor) -> Tensor:
    """A view with the shape of ``like``, in an arena full of NaN, gaps included."""
    slots, size = like.shape[0], math.prod(like.shape[1:])
    arena = torch.full((slots, size + GAP), math.nan, device=DEVICE)
    return arena[:, :size].view(like.shape)


def gaps_are_untouched(view: Tensor) -> bool:
    """Whether the floats between the slots of a ``poisoned`` view are still NaN."""
    slots, size = view.shape[0], math.prod(view.shape[1:])
    arena = view.as_strided((slots, size + GAP), (size + GAP, 1))
    return bool(arena[:, size:].isnan().all())


def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what ``torch.empty`` returns with NaN, or with a code that no codebook has."""
    empty = torch.empty

    def filled(*shape: int, **options: Any) -> Tensor:
        found: Tensor = empty(*shape, **options)
        return found.fill_(math.nan if found.is_floating_point() else -(2**40))

    monkeypatch.setattr(torch, "empty", filled)
    monkeypatch.setattr(
        torch, "empty_like", lambda x: filled(*x.shape, dtype=x.dtype, device=x.device)
    )


def place_free_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the interpreter's products independent of a row's place in a tile, as on a GPU.

    On some processors numpy's BLAS sums the rows at a tile's edge in another order. Here sums are
    computed in float64 and rounded once.
    """
    matmul = interpreter.np.matmul

    def product(a: Any, b: Any, dtype: Any) -> Any:
        return matmul(a, b, dtype="float64").astype(dtype)

    monkeypatch.setattr(interpreter.np, "matmul", product)


@dataclass(frozen=True)
class Extent:
    """The addresses of a tensor: rows of ``length`` bytes that begin ``period`` bytes apart."""

    begin: int
    end: int
    period: int
    length: int

    def holds(self, places: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
        """Whether each element of ``size`` bytes at these addresses belongs to the tensor."""
        whole = (places >= self.begin) & (places + size <= self.end)
        inside: NDArray[np.bool_] = (places - self.begin) % self.period + size <= self.length
        return whole & inside


def extent(view: Tensor) -> Extent:
    """The extent of a tensor; gaps between the entries of its first axis do not belong to it."""
    size, begin = view.element_size(), view.data_ptr()
    last = sum(step * (count - 1) for step, count in zip(view.stride(), view.shape, strict=True))
    end = begin + (last + 1) * size
    if view.dim() > 1 and view.shape[0] > 1 and view[0].is_contiguous():
        period, length = view.stride(0) * size, view[0].numel() * size
        if period >= length:
            return Extent(begin, end, period, length)
    return Extent(begin, end, end - begin, end - begin)


def check_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the interpreter refuse every access outside the tensors passed to a launch.

    On a device such an access would read or write another kernel's memory, usually unnoticed; the
    interpreter accesses any address, too. The arena around a view counts as outside, and so do the
    gaps between its slots. Each load or store must stay within a single tensor, so running over
    into the next one is refused as well.
    """
    inside: list[Extent] = []
    prepare = interpreter.GridExecutor._init_args_hst
    builder = type(interpreter.interpreter_builder)
    load, store = builder.create_masked_load, builder.create_masked_store

    def remember(self: Any, args: Any, kwargs: Any) -> Any:
        given = prepare(self, args, kwargs)
        inside[:] = [extent(each) for each in (*given[0], *given[1].values()) if is_array(each)]
        return given

    def require_inside(ptrs: Any, mask: Any) -> None:
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        chosen = mask.data.astype(bool)
        places = np.broadcast_to(ptrs.data, chosen.shape)[chosen].astype(np.int64)
        if not places.size:
            return
        outside = min((int((~each.holds(places, size)).sum()) for each in inside), default=-1)
        if outside:
            raise IndexError(f"{outside} of {places.size} accesses lie outside the tensor")

    def checked_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        require_inside(ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def checked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        require_inside(ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", remember)
    monkeypatch.setattr(builder, "create_masked_load", checked_load)
    monkeypatch.setattr(builder, "create_masked_store", checked_store)


def is_array(value: object) -> bool:
    """Whether an argument of a launch is a tensor that is not empty."""
    return isinstance(value, Tensor) and value.numel() > 0


def error(given: Tensor, reference: Tensor) -> float:
    """||given - reference|| / ||reference||; NaN if ``given`` contains NaN, 0 for empty tensors."""
    if given.numel() == 0:
        return 0.0
    wanted = reference.double().cpu()
    return float((given.double().cpu() - wanted).norm() / wanted.norm())


@contextmanager
def _reversed_programs() -> Iterator[None]:
    kind = type(interpreter.interpreter_builder)
    forward = kind.set_grid_idx

    def backward(self: interpreter.InterpreterBuilder, x: int, y: int, z: int) -> None:
        across, down, deep = self.grid_dim
        forward(self, across - 1 - x, down - 1 - y, deep - 1 - z)

    kind.set_grid_idx = backward
    try:
        yield
    finally:
        kind.set_grid_idx = forward


def in_any_order(call: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Run ``call`` with the programs of each launch in order and in reverse; the bits must agree.

    This catches a program that reads what another one writes, since the interpreter runs them one
    after another. On a GPU the device chooses the order, and ``call`` simply runs twice.
    """
    first = call()
    if DEVICE.type == "cpu":
        with _reversed_programs():
            second = call()
    else:
        second = call()
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other), "the order of the programs changes the result"
    return first
