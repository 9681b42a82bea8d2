"""The harness of the kernel tests catches what it is for."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from encodec_rt_kernels import conv1d, pack_conv1d
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
def _copy_kernel(x_ptr, y_ptr, read, write, shift, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    value = tl.load(x_ptr + place + shift, mask=place < read, other=0.0)
    tl.store(y_ptr + place, value, mask=place < write)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="only the interpreter looks at every access")
@pytest.mark.parametrize(
    ("read", "write", "shift", "outside"),
    [(5, 5, 0, 0), (6, 5, 0, 1), (5, 8, 0, 3), (0, 6, 0, 1), (5, 5, -1, 1), (5, 5, 1, 1)],
)
def test_an_access_outside_all_tensors_is_refused(
    read: int, write: int, shift: int, outside: int
) -> None:
    # Of two neighbours in one storage the arena in between is outside.
    arena = torch.zeros(20)
    x, y = arena[4:9], arena[10:15]
    if not outside:
        _copy_kernel[(1,)](x, y, read, write, shift, BLOCK=8)
        return
    with pytest.raises(interpreter.InterpreterError, match=f"{outside} of . accesses lie outside"):
        _copy_kernel[(1,)](x, y, read, write, shift, BLOCK=8)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="only the interpreter looks at every access")
@pytest.mark.parametrize(("read", "write"), [(6, 5), (5, 6)])
def test_an_access_that_runs_over_into_the_next_tensor_is_refused(read: int, write: int) -> None:
    arena = torch.zeros(16)
    x, y, z = arena[:5], arena[5:10], arena[10:]
    given = (x, y) if read > write else (y, x)
    _copy_kernel[(1,)](*given, 5, 5, 0, BLOCK=8)
    with pytest.raises(interpreter.InterpreterError, match="1 of 6 accesses lie outside"):
        _copy_kernel[(1,)](*given, read, write, 0, BLOCK=8)
    assert not z.any()


@triton.jit
def _rows_kernel(x_ptr, y_ptr, stride, width, BLOCK: tl.constexpr):
    slot, place = tl.arange(0, 2), tl.arange(0, BLOCK)
    index = slot[:, None] * stride + place[None, :]
    value = tl.load(x_ptr + index, mask=(place < width)[None, :], other=0.0)
    tl.store(y_ptr + index, value, mask=(place < width)[None, :])


@pytest.mark.skipif(DEVICE.type != "cpu", reason="only the interpreter looks at every access")
def test_an_access_between_two_slots_is_refused() -> None:
    x, y = state(2, 3), poisoned(state(2, 3))
    _rows_kernel[(1,)](x, y, x.stride(0), 3, BLOCK=4)
    assert torch.equal(x, y)
    # The element after the last slot's lies outside all of the view, the other one in a gap.
    with pytest.raises(interpreter.InterpreterError, match="2 of 8 accesses lie outside"):
        _rows_kernel[(1,)](x, y, x.stride(0), 4, BLOCK=4)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="only the interpreter looks at every access")
@pytest.mark.parametrize("size", ["slots", "steps_out"])
def test_a_shipped_kernel_that_is_told_one_too_many_is_refused(
    size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, context = torch.randn(3, 5, 7), state(3, 3, 7)
    packed = pack_conv1d(torch.randn(9, 7, 4), torch.randn(9), stride=1, dilation=1)
    layer = {"kernel": 4, "stride": 1, "dilation": 1, "elu": True}
    conv1d(x, context, poisoned(context), packed, **layer)  # type: ignore[arg-type]
    kernel = conv1d.__globals__["_conv1d_kernel"]
    place = kernel.arg_names.index(size)
    run = kernel.run

    def one_more(*given: object, **options: object) -> None:
        changed = list(given)
        changed[place] = int(str(changed[place])) + 1
        run(*changed, **options)

    monkeypatch.setattr(kernel, "run", one_more)
    with pytest.raises(interpreter.InterpreterError, match="accesses lie outside"):
        conv1d(x, context, poisoned(context), packed, **layer)  # type: ignore[arg-type]
