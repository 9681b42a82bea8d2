"""A replay makes its calls again over the same tensors."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import torch
from torch import Tensor

from encodec_rt.streaming.backends.cpu.ops import CPU
from encodec_rt.streaming.backends.cpu.replay import Replay, ReplayedStep
from encodec_rt.streaming.backends.torch import TORCH
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.ops import Ops
from tests.support.models import random_model, speech, tiny_config


def test_a_replay_makes_its_calls_in_order() -> None:
    x, replay = torch.ones(2), Replay()
    replay(x.add_, 1)
    replay(x.mul_, 3)
    assert x.tolist() == [6, 6]
    replay.play()
    assert x.tolist() == [21, 21]


def test_a_replay_that_keeps_nothing_replays_nothing() -> None:
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


def search(ops: Ops, x: Tensor, active: Tensor) -> Tensor:
    book = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    return ops.rvq_encode(x, CPU.pack_codebooks((book,)), codebooks=2)


def test_a_replayed_step_is_bitwise_the_work_done_anew() -> None:
    example = torch.zeros(1, 3, 4)
    step = CPU.capture(CPU, search, example, graph=None, live=True)
    assert isinstance(step, ReplayedStep)
    everyone = torch.ones(1, dtype=torch.bool)
    for _ in range(4):
        x = torch.randn(1, 3, 4)
        assert torch.equal(step(x, None), search(CPU, x, everyone))


def test_a_step_moves_the_active_slots_alone_when_it_is_replayed() -> None:
    state = torch.zeros(3, 2)

    def work(ops: Ops, x: Tensor, active: Tensor) -> Tensor:
        ops.commit(state, x, active)
        return x

    step = CPU.capture(CPU, work, torch.zeros(3, 2), graph=None, live=True)
    for value, active in ((1.0, [1, 0, 0]), (2.0, [0, 1, 0]), (3.0, [0, 1, 1])):
        step(torch.full((3, 2), value), torch.tensor(active, dtype=torch.bool))
    assert state[:, 0].tolist() == [1.0, 3.0, 3.0]
    step(torch.full((3, 2), 4.0), None)
    assert state.unique().item() == 4.0


def test_an_interrupted_recording_is_not_replayed() -> None:
    interrupts = [KeyboardInterrupt, None]

    def work(ops: Ops, x: Tensor, active: Tensor) -> Tensor:
        if (interrupt := interrupts.pop(0)) is not None:
            raise interrupt
        return search(ops, x, active)

    step = CPU.capture(CPU, work, torch.zeros(1, 2, 4), graph=None, live=True)
    x = torch.randn(1, 2, 4)
    with pytest.raises(KeyboardInterrupt):
        step(x, None)
    assert torch.equal(step(x, None), search(CPU, x, torch.ones(1, dtype=torch.bool)))


@pytest.mark.parametrize("ops", [TORCH, CPU], ids=["torch", "cpu"])
def test_work_that_is_not_repeated_is_done_each_time_by_the_ops_themselves(ops: Ops) -> None:
    done: list[Ops] = []

    def work(ops: Ops, x: Tensor, active: Tensor) -> Tensor:
        done.append(ops)
        return x + 1

    step = ops.capture(ops, work, torch.zeros(1), graph=None, live=False)
    for value in range(4):
        assert step(torch.tensor([value]), None).item() == value + 1
    assert done == [ops] * 4


def test_a_live_frame_is_five_calls_at_most_away_from_its_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stacks: list[list[str]] = []
    addmm = torch.addmm

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        stacks.append([frame.name for frame in traceback.extract_stack()[:-1]])
        return addmm(*args, **kwargs)

    monkeypatch.setattr(torch, "addmm", watched)
    codec = Codec(random_model(tiny_config()), backend="cpu")
    kbps = codec.config.target_bandwidths[-1]
    encoder, decoder = codec.stream_encoder(kbps), codec.stream_decoder(kbps)
    here = len(traceback.extract_stack())
    for _ in range(2):  # The first frame is recorded.
        stacks.clear()
        decoder.push(encoder.push(speech(1, codec.config.hop_length)[0]))
    assert stacks
    assert max(len(stack) - here for stack in stacks) <= 5, stacks[0][here:]
    assert not any("<lambda>" in stack[here:] for stack in stacks)
