"""Type narrowing for tests that know more about a value than its type says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def present(value: T | None) -> T:
    """``value``, which must not be None."""
    assert value is not None
    return value


def all_of(kind: type[T], items: Iterable[object]) -> list[T]:
    """``items``, each of which must be a ``kind``."""
    found = []
    for item in items:
        assert isinstance(item, kind), item
        found.append(item)
    return found
