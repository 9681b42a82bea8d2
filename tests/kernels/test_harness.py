"""The harness of the kernel tests catches what it is for."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

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


@triton.jit
def _copy_kernel(x_ptr, y_ptr, read, write, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    value = tl.load(x_ptr + place, mask=place < read, other=0.0)
    tl.store(y_ptr + place, value, mask=place < write)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="only the interpreter looks at every access")
@pytest.mark.parametrize(("read", "write", "outside"), [(5, 5, 0), (6, 5, 1), (5, 8, 3), (0, 6, 1)])
def test_an_access_outside_all_tensors_is_refused(read: int, write: int, outside: int) -> None:
    # Of two neighbours in one storage the arena in between is outside.
    arena = torch.zeros(20)
    x, y = arena[:5], arena[10:15]
    if not outside:
        _copy_kernel[(1,)](x, y, read, write, BLOCK=8)
        return
    with pytest.raises(interpreter.InterpreterError, match=f"{outside} of . accesses lie outside"):
        _copy_kernel[(1,)](x, y, read, write, BLOCK=8)
