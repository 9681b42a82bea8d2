"""The host's side of a tick: what goes to the device and comes back, and in how many copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from encodec_rt.streaming.cuda_graph import Tick


class Copies(TorchDispatchMode):
    """Counts the copies between tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.sizes.append(args[0].nbytes)
        return func(*args, **(kwargs or {}))


def tick_from_host(x: Tensor) -> Tick:
    """A tick of a CPU that takes the way of an input on the host of a GPU."""
    tick = Tick(lambda x, active: 2 * x * active[:, None], x, graph=None)
    tick._prepare_host(pinned=False)
    return tick


@pytest.mark.parametrize("slots", [1, 3, 70])
def test_input_and_mask_go_to_the_device_in_one_copy_and_the_result_comes_in_one(
    slots: int,
) -> None:
    x = torch.randn(slots, 5)
    tick = tick_from_host(torch.zeros(slots, 5))
    assert tick._on_host
    active = torch.arange(slots) % 2 == 0
    tick._on_host.fill(x, active)
    with Copies() as copies:
        tick._run_from_host()
    assert copies.sizes == [tick._inputs.whole.nbytes, x.nbytes]
    assert torch.equal(tick._y_host, 2 * x * active[:, None])


def test_every_buffer_begins_where_kernels_are_compiled_for() -> None:
    inputs = tick_from_host(torch.zeros(3, 5))._inputs
    assert inputs.active.data_ptr() - inputs.x.data_ptr() == inputs.ALIGNMENT
    assert inputs.ALIGNMENT % 16 == 0
    assert inputs.x.is_contiguous()
    assert inputs.active.shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_no_mask_means_all_whatever_came_before(dtype: torch.dtype) -> None:
    tick = Tick(lambda x, active: x * active[:, None], torch.zeros(2, 3, dtype=dtype), graph=None)
    x = torch.ones(2, 3, dtype=dtype)
    assert torch.equal(tick(x, torch.tensor([False, True])).sum(1), torch.tensor([0, 3]).to(dtype))
    assert torch.equal(tick(x, None), x)
    tick.again()
    assert torch.equal(tick._y, x)
