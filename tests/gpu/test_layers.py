"""Every layer of the 24 kHz model on a GPU: precision, and bits that depend on nothing else."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from benches.workload import OneLayer, layers, op_of, random_24khz
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.backends.triton import triton_ops
from encodec_rt.streaming.ops import Precision
from tests.support.kernel_harness import error
from tests.support.tolerances import bound

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda")
COUNT = 22
ARITHMETIC = {"exact": "float32", "fast": "tf32"}
EVERY_RULE = pytest.mark.parametrize("few", [False, True], ids=["many slots", "few slots"])
"""Tiles for few slots come with chained launches, as the benches have them."""


@cache
def model() -> EncodecModel:
    return random_24khz()


def layer(index: int, slots: int, precision: Precision = "exact", *, few: bool = False) -> OneLayer:
    ops = triton_ops(GPU, precision, few=few, chained=few)
    return OneLayer(model(), layers(model())[index], ops, slots, GPU)


def outputs(one: OneLayer) -> tuple[Tensor, Tensor]:
    one.proposed.arena.fill_(torch.nan)
    return one.step().clone(), one.proposed.arena.clone()


def test_every_layer_is_covered() -> None:
    assert len(layers(model())) == COUNT


@EVERY_RULE
@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("index", range(COUNT))
def test_layer_equals_float64(index: int, precision: Precision, few: bool) -> None:
    one = layer(index, 3, precision, few=few)
    given, wanted = one.step(), one.reference()
    assert error(given, wanted) <= bound(op_of(one.spec), ARITHMETIC[precision])


@EVERY_RULE
@pytest.mark.parametrize("index", range(COUNT))
def test_layer_gives_the_same_bits_a_hundred_times(index: int, few: bool) -> None:
    one = layer(index, 5, few=few)
    y, state = outputs(one)
    for _ in range(100):
        again, state_again = outputs(one)
        assert torch.equal(again, y)
        assert torch.equal(state_again.nan_to_num(), state.nan_to_num())


@EVERY_RULE
@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("index", range(COUNT))
def test_slot_zero_has_the_same_bits_among_any_number(
    index: int, precision: Precision, few: bool
) -> None:
    alone = layer(index, 1, precision, few=few)
    y, state = outputs(alone)
    for slots in (3, 64) if few else (64, 1024):
        many = layer(index, slots, precision, few=few)
        many.x[:1] = alone.x
        many.now.arena[:1] = alone.now.arena
        y_many, state_many = outputs(many)
        assert torch.equal(y_many[:1], y)
        assert torch.equal(state_many[:1].nan_to_num(), state.nan_to_num())
