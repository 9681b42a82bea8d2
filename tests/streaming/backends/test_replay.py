"""A tape makes its calls again over the same tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from encodec_rt.streaming.backends.cpu.ops import CPU
from encodec_rt.streaming.backends.cpu.replay import Tape
from encodec_rt.streaming.ops import TORCH, Ops
from encodec_rt.streaming.runner import Repeated


def test_a_tape_plays_what_it_was_given_in_order() -> None:
    x, tape = torch.ones(2), Tape()
    tape(x.add_, 1)
    tape(x.mul_, 3)
    assert x.tolist() == [6, 6]
    tape.play()
    assert x.tolist() == [21, 21]


def test_a_tape_that_keeps_nothing_plays_nothing() -> None:
    x, tape = torch.ones(2), Tape(keep=False)
    tape(x.add_, 1)
    tape.play()
    assert x.tolist() == [2, 2]
    assert tape.empty(2, 3).shape == (2, 3)


def test_memory_is_reused_once_nobody_reads_it() -> None:
    tape = Tape()
    inside, result = tape.empty(3, 4), tape.empty(2, 2)
    tape.begin_layer(result)
    assert tape.empty(6).data_ptr() == inside.data_ptr()
    assert tape.empty(4).data_ptr() != result.data_ptr()
    tape.begin_layer(torch.empty(1))
    assert tape.empty(2).data_ptr() in (result.data_ptr(), inside.data_ptr())


def search(ops: Ops, x: Tensor) -> Tensor:
    book = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    return ops.rvq_encode(x, CPU.pack_codebooks((book,)), codebooks=2)


def test_repeated_work_is_bitwise_the_same_on_tape() -> None:
    work = Repeated(CPU, search)
    for steps in (1, 1, 1, 3, 3, 3, 1, 1, 1):
        x = torch.randn(1, steps, 4)
        assert torch.equal(work(x), search(CPU, x))


def test_work_is_done_each_time_by_rows_without_a_tape() -> None:
    done: list[Ops] = []

    def work(ops: Ops, x: Tensor) -> Tensor:
        done.append(ops)
        return x + 1

    repeated = Repeated(TORCH, work)
    for value in range(4):
        assert repeated(torch.tensor([value])).item() == value + 1
    assert done == [TORCH] * 4
