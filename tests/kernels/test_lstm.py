"""The LSTM kernel against the plain-torch row in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from encodec_rt.streaming.backends.torch import TORCH
from encodec_rt_kernels import Rules, configs, lstm, pack_lstm
from tests.support.kernel_harness import (
    error,
    gaps_are_untouched,
    in_any_order,
    poison_empty,
    poisoned,
    randn,
    state,
)
from tests.support.tolerances import bound


@pytest.mark.parametrize(
    ("slots", "steps", "units", "layers", "few", "vector"),
    [
        pytest.param(3, 1, 8, 2, False, False, id="one step"),
        pytest.param(2, 3, 16, 2, False, False, id="several steps"),
        pytest.param(1, 2, 20, 1, False, False, id="one layer, units no multiple of a tile"),
        pytest.param(65, 1, 40, 3, False, False, id="more slots and units than a tile"),
        pytest.param(2, 2, 20, 2, True, False, id="few slots, too many units for a vector"),
        pytest.param(3, 2, 18, 2, True, True, id="a matrix times a vector"),
        pytest.param(1, 1, 512, 1, False, False, id="full size"),
        pytest.param(1, 1, 512, 1, True, True, id="full size, a matrix times a vector"),
    ],
)
def test_lstm_equals_float64(
    slots: int,
    steps: int,
    units: int,
    layers: int,
    few: bool,
    vector: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    if few and not vector:
        monkeypatch.setattr(configs, "VECTOR_DEPTH", units - 1)
    assert bool(configs.lstm_vector(80, Rules(few=few), units)) == vector
    poison_empty(monkeypatch)
    x = randn(slots, steps, units)
    hidden, cell = state(slots, layers, units), state(slots, layers, units)
    weights: list[Tensor] = []
    for _ in range(layers):
        weights += [randn(4 * units, units, scale=units**-0.5) for _ in range(2)]
        weights += [randn(4 * units) for _ in range(2)]
    packed = pack_lstm(tuple(weights))

    def run() -> tuple[Tensor, Tensor, Tensor]:
        hidden_next, cell_next = poisoned(hidden), poisoned(cell)
        y = lstm(x, hidden, cell, hidden_next, cell_next, packed, rules=Rules(few=few))
        return y, hidden_next, cell_next

    y, hidden_next, cell_next = run() if units == 512 else in_any_order(run)
    wanted_hidden, wanted_cell = hidden.double(), cell.double()
    wanted = TORCH.lstm(
        x.double(),
        hidden.double(),
        cell.double(),
        wanted_hidden,
        wanted_cell,
        tuple(weight.double() for weight in weights),
    )
    assert error(y, wanted) <= bound("lstm", "float32")
    assert error(hidden_next, wanted_hidden) <= bound("lstm", "float32")
    assert error(cell_next, wanted_cell) <= bound("lstm", "float32")
    assert gaps_are_untouched(hidden_next)
    assert gaps_are_untouched(cell_next)
