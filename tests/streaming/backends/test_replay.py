"""A replay makes its calls again over the same tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from encodec_rt.streaming.backends.cpu.ops import CPU
from encodec_rt.streaming.backends.cpu.replay import Replay
from encodec_rt.streaming.backends.torch import TORCH
from encodec_rt.streaming.ops import Ops
from encodec_rt.streaming.runner import CachedStep


def test_a_tape_plays_what_it_was_given_in_order() -> None:
    x, replay = torch.ones(2), Replay()
    replay(x.add_, 1)
    replay(x.mul_, 3)
    assert x.tolist() == [6, 6]
    replay.play()
    assert x.tolist() == [21, 21]


def test_a_tape_that_keeps_nothing_plays_nothing() -> None:
    x, replay = torch.ones(2), Replay(keep=False)
    replay(x.add_, 1)
    replay.play()
    assert x.tolist() == [2, 2]
    assert replay.empty(2, 3).shape == (2, 3)


def test_memory_is_reused_once_nobody_reads_it() -> None:
    replay = Replay()
    inside, result = replay.empty(3, 4), replay.empty(2, 2)
    replay.begin_layer(result)
    assert replay.empty(6).data_ptr() == inside.data_ptr()
    assert replay.empty(4).data_ptr() != result.data_ptr()
    replay.begin_layer(torch.empty(1))
    assert replay.empty(2).data_ptr() in (result.data_ptr(), inside.data_ptr())


def search(ops: Ops, x: Tensor) -> Tensor:
    book = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    return ops.rvq_encode(x, CPU.pack_codebooks((book,)), codebooks=2)


def test_repeated_work_is_bitwise_the_same_replaying() -> None:
    work = CachedStep(CPU, search)
    for steps in (1, 1, 1, 3, 3, 3, 1, 1, 1):
        x = torch.randn(1, steps, 4)
        assert torch.equal(work(x), search(CPU, x))


def test_work_is_done_each_time_by_rows_without_a_tape() -> None:
    done: list[Ops] = []

    def work(ops: Ops, x: Tensor) -> Tensor:
        done.append(ops)
        return x + 1

    repeated = CachedStep(TORCH, work)
    for value in range(4):
        assert repeated(torch.tensor([value])).item() == value + 1
    assert done == [TORCH] * 4
