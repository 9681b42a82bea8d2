"""The convolution kernels against the plain-torch rows in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from encodec_rt.streaming.backends.torch import TORCH
from encodec_rt_kernels import (
    Rules,
    configs,
    conv1d,
    conv_transpose1d,
    pack_conv1d,
    pack_conv_transpose1d,
    pack_resblock,
    resblock,
)
from tests.support.kernel_harness import (
    DEVICE,
    error,
    gaps_are_untouched,
    in_any_order,
    place_free_products,
    poison_empty,
    poisoned,
    randn,
    state,
)
from tests.support.tolerances import bound


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    poison_empty(monkeypatch)


FEW = Rules(few=True)


def double(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.double() for tensor in tensors)


CONVS = [
    pytest.param(3, 8, 4, 8, 4, 2, 1, True, id="strided"),
    pytest.param(2, 5, 2, 3, 7, 1, 1, False, id="first layer, stereo"),
    pytest.param(1, 1, 8, 8, 7, 1, 1, True, id="context longer than the frame"),
    pytest.param(2, 3, 4, 4, 3, 1, 3, True, id="dilated"),
    pytest.param(3, 4, 5, 6, 1, 1, 1, True, id="one tap, no context"),
    pytest.param(2, 4, 20, 70, 3, 1, 1, True, id="more channels than a tile"),
    pytest.param(23, 3, 3, 1, 7, 1, 1, True, id="last layer, odd number of slots"),
    pytest.param(2, 9, 70, 1, 7, 1, 2, True, id="one output of more channels than its kernel has"),
    pytest.param(2, 90, 32, 1, 7, 1, 2, False, id="one output, more steps than a tile"),
    pytest.param(3, 130, 33, 1, 5, 1, 1, True, id="one output, a program without a context"),
    pytest.param(3, 4, 8, 1, 4, 2, 1, True, id="one output, strided"),
    pytest.param(2, 1, 8, 1, 1, 1, 1, True, id="one output of one tap"),
    pytest.param(1, 5, 128, 256, 10, 5, 1, True, id="full size"),
]


@pytest.mark.parametrize(
    ("slots", "steps", "inputs", "outputs", "kernel", "stride", "dilation", "elu"), CONVS
)
def test_conv1d_equals_float64(
    slots: int,
    steps: int,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    dilation: int,
    elu: bool,
) -> None:
    past = (kernel - 1) * dilation + 1 - stride
    x, context = randn(slots, steps, inputs), state(slots, past, inputs)
    weight = randn(outputs, inputs, kernel, scale=(inputs * kernel) ** -0.5)
    bias = randn(outputs)
    packed = pack_conv1d(weight, bias, stride=stride, dilation=dilation)

    def run() -> tuple[Tensor, Tensor]:
        following = poisoned(context)
        y = conv1d(
            x,
            context,
            following,
            packed,
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            elu=elu,
        )
        return y, following

    full_size = inputs * outputs > 10_000
    y, following = run() if full_size else in_any_order(run)
    wanted_next = context.double()
    wanted = TORCH.conv1d(
        x.double(),
        context.double(),
        wanted_next,
        double(weight, bias),
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        elu=elu,
    )
    assert error(y, wanted) <= bound("conv1d", "float32")
    assert error(following, wanted_next) <= bound("elu", "float32")
    assert gaps_are_untouched(following)


@pytest.mark.parametrize(
    ("slots", "steps", "inputs", "outputs", "kernel", "stride"),
    [
        pytest.param(1, 8, 70, 20, 16, 8, id="channels no multiple of a tile"),
        pytest.param(1, 2, 256, 5, 9, 1, id="parts without terms"),
        pytest.param(3, 2, 512, 5, 3, 1, id="few outputs"),
        pytest.param(1, 5, 128, 256, 10, 5, id="full size"),
    ],
)
def test_a_split_product_equals_float64(
    slots: int, steps: int, inputs: int, outputs: int, kernel: int, stride: int
) -> None:
    assert configs.conv1d(80, FEW, inputs, outputs, kernel).splits > 1
    x, context = randn(slots, steps, inputs), state(slots, kernel - stride, inputs)
    weight = randn(outputs, inputs, kernel, scale=(inputs * kernel) ** -0.5)
    bias = randn(outputs)
    packed = pack_conv1d(weight, bias, stride=stride, dilation=1)
    layer: dict[str, Any] = {"kernel": kernel, "stride": stride, "dilation": 1, "elu": True}

    def run() -> tuple[Tensor, Tensor]:
        following = poisoned(context)
        return conv1d(x, context, following, packed, **layer, rules=FEW), following

    y, following = run() if inputs * outputs > 10_000 else in_any_order(run)
    wanted_next = context.double()
    wanted = TORCH.conv1d(x.double(), context.double(), wanted_next, double(weight, bias), **layer)
    assert error(y, wanted) <= bound("conv1d", "float32")
    assert error(following, wanted_next) <= bound("elu", "float32")
    assert gaps_are_untouched(following)


@pytest.mark.parametrize(
    ("slots", "steps", "inputs", "outputs", "kernel", "stride", "dilation"),
    [
        pytest.param(2, 2, 8, 20, 4, 2, 1, id="one part"),
        pytest.param(3, 1, 40, 5, 7, 1, 1, id="parts, context longer than the frame"),
        pytest.param(1, 3, 9, 17, 3, 1, 2, id="dilated, odd channels"),
        pytest.param(2, 2, 8, 4, 1, 1, 1, id="one tap, no context"),
    ],
)
def test_a_matrix_times_a_vector_equals_float64(
    slots: int,
    steps: int,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    dilation: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(configs, "VECTOR_CHANNELS", 8)
    monkeypatch.setattr(configs, "VECTOR_DEPTH", 128)
    assert configs.conv1d_vector(80, FEW, inputs, outputs, kernel)
    past = (kernel - 1) * dilation + 1 - stride
    x, context = randn(slots, steps, inputs), state(slots, past, inputs)
    weight = randn(outputs, inputs, kernel, scale=(inputs * kernel) ** -0.5)
    bias = randn(outputs)
    packed = pack_conv1d(weight, bias, stride=stride, dilation=dilation)
    layer: dict[str, Any] = {"kernel": kernel, "stride": stride, "dilation": dilation, "elu": True}

    def run() -> tuple[Tensor, Tensor]:
        following = poisoned(context)
        return conv1d(x, context, following, packed, **layer, rules=FEW), following

    y, following = in_any_order(run)
    wanted_next = context.double()
    wanted = TORCH.conv1d(x.double(), context.double(), wanted_next, double(weight, bias), **layer)
    assert error(y, wanted) <= bound("conv1d", "float32")
    assert error(following, wanted_next) <= bound("elu", "float32")
    assert gaps_are_untouched(following)


def to_tf32(values: Tensor) -> Tensor:
    """The nearest of the numbers that TF32 has, halves away from zero, as float64."""
    fraction, exponent = torch.frexp(values.double())
    steps = fraction * 2048
    return torch.ldexp(torch.trunc(steps + 0.5 * steps.sign()) / 2048, exponent)


def test_fast_products_round_their_factors_to_nearest() -> None:
    fast = Rules("fast")
    x, context, tail = randn(2, 6, 9), state(2, 2, 9), state(2, 2, 5)
    weight, bias = randn(7, 9, 3), torch.zeros(7, device=DEVICE)
    packed = pack_conv1d(weight, bias, stride=1, dilation=1, rules=fast)
    layer: dict[str, Any] = {"kernel": 3, "stride": 1, "dilation": 1, "elu": False}
    y = conv1d(x, context, poisoned(context), packed, **layer, rules=fast)
    factors = to_tf32(x), to_tf32(context), context.double()
    wanted = TORCH.conv1d(
        factors[0], factors[1], factors[2], (to_tf32(weight), bias.double()), **layer
    )
    # On a device the sums, too, are those of a tensor core.
    assert error(y, wanted) <= (bound("conv1d", "float32") if DEVICE.type == "cpu" else 2e-5)
    exact = TORCH.conv1d(
        x.double(), context.double(), context.double(), double(weight, bias), **layer
    )
    assert error(y, exact) > 1e-5
    up = randn(9, 5, 4)
    packed = pack_conv_transpose1d(up, bias[:5], stride=2, dilation=1, rules=fast)
    y = conv_transpose1d(x.abs(), tail, poisoned(tail), packed, kernel=4, stride=2, rules=fast)
    # The ELU of a positive number is that number.
    given = to_tf32(x.abs()), tail.double(), tail.double()
    rounded = to_tf32(up), bias[:5].double()
    wanted = TORCH.conv_transpose1d(*given, rounded, kernel=4, stride=2)
    assert error(y, wanted) <= (bound("conv1d", "float32") if DEVICE.type == "cpu" else 2e-5)


TRANSPOSED = [
    pytest.param(3, 4, 8, 4, 4, 2, id="overlap of one step"),
    pytest.param(2, 1, 8, 4, 16, 8, id="one step"),
    pytest.param(2, 2, 5, 3, 5, 2, id="kernel no multiple of the stride"),
    pytest.param(1, 1, 4, 4, 7, 2, id="overlap longer than the frame"),
    pytest.param(2, 3, 4, 3, 3, 3, id="no overlap"),
    pytest.param(17, 1, 12, 30, 4, 2, id="more outputs than a tile, odd number of slots"),
    pytest.param(1, 1, 256, 128, 10, 5, id="full size"),
]


@pytest.mark.parametrize("few", [False, True], ids=["many slots", "few slots"])
@pytest.mark.parametrize(("slots", "steps", "inputs", "outputs", "kernel", "stride"), TRANSPOSED)
def test_conv_transpose1d_equals_float64(
    slots: int,
    steps: int,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    few: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # By the rules for few slots those of two taps are a matrix times a vector.
    monkeypatch.setattr(configs, "VECTOR_CHANNELS", 4)
    rules = Rules(few=few)
    x, tail = randn(slots, steps, inputs), state(slots, kernel - stride, outputs)
    weight = randn(inputs, outputs, kernel, scale=(inputs * kernel / stride) ** -0.5)
    bias = randn(outputs)
    packed = pack_conv_transpose1d(weight, bias, stride=stride, dilation=1)

    def run() -> tuple[Tensor, Tensor]:
        following = poisoned(tail)
        y = conv_transpose1d(x, tail, following, packed, kernel=kernel, stride=stride, rules=rules)
        return y, following

    y, following = run() if inputs * outputs > 10_000 else in_any_order(run)
    wanted_next = tail.double()
    wanted = TORCH.conv_transpose1d(
        x.double(),
        tail.double(),
        wanted_next,
        double(weight, bias),
        kernel=kernel,
        stride=stride,
    )
    assert error(y, wanted) <= bound("conv_transpose1d", "float32")
    assert error(following, wanted_next) <= bound("conv_transpose1d", "float32")
    assert gaps_are_untouched(following)


BLOCKS = [
    pytest.param(3, 8, 8, 4, 3, 1, True, id="one launch"),
    pytest.param(2, 5, 4, 2, 3, 2, False, id="dilated, identity shortcut"),
    pytest.param(1, 1, 8, 5, 3, 4, True, id="context longer than the frame"),
    pytest.param(2, 3, 8, 4, 1, 1, True, id="one tap, no context"),
    pytest.param(2, 4, 60, 40, 3, 1, True, id="more hidden channels than a tile"),
    pytest.param(3, 3, 72, 36, 3, 1, True, id="two launches"),
    pytest.param(5, 2, 80, 7, 3, 1, False, id="two launches, identity shortcut"),
    pytest.param(1, 320, 32, 16, 3, 1, True, id="full size, one launch"),
    pytest.param(1, 8, 256, 128, 3, 1, True, id="full size, two launches"),
]


@pytest.mark.parametrize(
    ("slots", "steps", "channels", "hidden", "kernel", "dilation", "conv_shortcut"), BLOCKS
)
def test_resblock_equals_float64(
    slots: int,
    steps: int,
    channels: int,
    hidden: int,
    kernel: int,
    dilation: int,
    conv_shortcut: bool,
) -> None:
    x, context = randn(slots, steps, channels), state(slots, (kernel - 1) * dilation, channels)
    weights = [
        randn(hidden, channels, kernel, scale=(channels * kernel) ** -0.5),
        randn(hidden),
        randn(channels, hidden, 1, scale=hidden**-0.5),
        randn(channels),
    ]
    if conv_shortcut:
        weights += [randn(channels, channels, 1, scale=channels**-0.5), randn(channels)]
    packed = pack_resblock(tuple(weights))

    def run() -> tuple[Tensor, Tensor]:
        following = poisoned(context)
        return resblock(x, context, following, packed, kernel=kernel, dilation=dilation), following

    y, following = run() if steps * channels > 2000 else in_any_order(run)
    wanted_next = context.double()
    wanted = TORCH.resblock(
        x.double(),
        context.double(),
        wanted_next,
        double(*weights),
        kernel=kernel,
        dilation=dilation,
    )
    assert error(y, wanted) <= bound("resblock", "float32")
    assert error(following, wanted_next) <= bound("elu", "float32")
    assert gaps_are_untouched(following)


def test_a_small_activation_keeps_its_digits() -> None:
    x = -torch.logspace(-8, 1, 64, device=DEVICE).reshape(1, 64, 1)
    one, none = torch.ones(1, 1, 1, device=DEVICE), torch.zeros(1, 0, 1, device=DEVICE)
    packed = pack_conv1d(one, torch.zeros(1, device=DEVICE), stride=1, dilation=1)
    y = conv1d(x, none, none, packed, kernel=1, stride=1, dilation=1, elu=True)
    wanted = torch.expm1(x.double())
    assert float(((y - wanted) / wanted).abs().max()) <= bound("elu", "float32")


def test_a_slot_does_not_see_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    place_free_products(monkeypatch)
    x, context = randn(5, 4, 6), state(5, 2, 6)
    packed = pack_conv1d(randn(7, 6, 4), randn(7), stride=2, dilation=1)
    options: dict[str, Any] = {"kernel": 4, "stride": 2, "dilation": 1, "elu": True}
    together = conv1d(x, context, poisoned(context), packed, **options)
    for slot in range(5):
        own = slice(slot, slot + 1)
        alone = conv1d(x[own], context[own], poisoned(context[own]), packed, **options)
        assert torch.equal(alone, together[own])
