"""The harness of the kernel tests catches what it is for."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.support.kernel_harness import (
    DEVICE,
    GAP,
    error,
    gaps_are_untouched,
    in_any_order,
    poisoned,
    state,
)


@triton.jit
def _in_place_kernel(state_ptr, y_ptr, BLOCK: tl.constexpr):
    """Every program reads the state, and the last one overwrites it."""
    program = tl.program_id(0)
    index = tl.arange(0, BLOCK)
    old = tl.load(state_ptr + index)
    tl.store(y_ptr + program * BLOCK + index, old)
    tl.store(state_ptr + index, old + 1.0, mask=index < BLOCK * (program // 3))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="only the interpreter has an order to reverse")
def test_a_program_that_reads_what_another_writes_is_caught() -> None:
    def run() -> tuple[Tensor]:
        carried, y = torch.zeros(16), torch.zeros(4, 16)
        _in_place_kernel[(4,)](carried, y, BLOCK=16)
        return (y,)

    with pytest.raises(AssertionError, match="order of the programs"):
        in_any_order(run)


def test_a_write_between_two_slots_is_seen() -> None:
    view = poisoned(state(2, 3, 4))
    assert gaps_are_untouched(view)
    view.as_strided((2, 12 + GAP), (12 + GAP, 1))[1, 12] = 0.0
    assert not gaps_are_untouched(view)


def test_an_output_that_was_not_written_has_no_error_that_passes() -> None:
    wanted = torch.ones(2, 3)
    given = wanted.clone()
    given[1, 2] = torch.nan
    assert not error(given, wanted) <= 1.0
