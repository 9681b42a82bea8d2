"""Values of which a test knows more than their types say; it fails where it is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def present(value: T | None) -> T:
    """``value``, which is not None."""
    assert value is not None
    return value


def all_of(kind: type[T], items: Iterable[object]) -> list[T]:
    """``items``, each of which is a ``kind``."""
    found = []
    for item in items:
        assert isinstance(item, kind), item
        found.append(item)
    return found
