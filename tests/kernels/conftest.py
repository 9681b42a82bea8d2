"""Every access of a kernel in these tests is looked at, where the interpreter runs it."""

from __future__ import annotations

import pytest

from tests.support.kernel_harness import DEVICE, check_bounds


@pytest.fixture(autouse=True)
def _inside_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cpu":
        check_bounds(monkeypatch)
