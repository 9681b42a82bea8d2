"""The contract with the Triton table: on a GPU, or in Triton's interpreter, which is slow.

The same claims as in test_contract.py, on the smallest model and the fewest frames that show them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.weights import Start
from tests.support.contract import assert_stream_is_offline, engine_of, stream, ticks
from tests.support.models import random_model, speech, tiny_config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(random_model(tiny_config()), device=DEVICE, backend="triton")


@pytest.mark.parametrize(("length", "start"), [(1, "exact"), (75, "exact"), (19, "primed")])
def test_stream_equals_offline(codec: Codec, length: int, start: Start) -> None:
    assert_stream_is_offline(codec, speech(1, length), [17], start)


@pytest.mark.parametrize(
    "changes",
    [
        {"trim_right_ratio": 0.4, "pad_mode": "replicate"},
        {"audio_channels": 2, "use_conv_shortcut": False, "compress": 1, "pad_mode": "constant"},
        {
            "kernel_size": 1,
            "residual_kernel_size": 5,
            "num_residual_layers": 2,
            "num_lstm_layers": 1,
        },
    ],
    ids=["trimmed", "stereo with identity shortcuts", "other kernels"],
)
def test_stream_equals_offline_for_unusual_configs(changes: dict[str, Any]) -> None:
    codec = Codec(random_model(tiny_config(**changes)), device=DEVICE, backend="triton")
    assert_stream_is_offline(codec, speech(codec.config.audio_channels, 67), [67])


def test_codes_are_bitwise_the_same_however_pushed(codec: Codec) -> None:
    whole = stream(codec, speech(1, 35), [35], "zero")
    pushed = stream(codec, speech(1, 35), [3, 11, 0], "zero")
    assert np.array_equal(pushed.codes, whole.codes)
    assert np.array_equal(pushed.audio, whole.audio)


def test_slot_is_bitwise_independent_and_idle_ones_are_untouched(codec: Codec) -> None:
    audio = speech(3, 3 * 8).to(DEVICE)
    reference = engine_of(codec, 3, "zero")
    codes, heard = ticks(reference, audio, [[True] * 3] * 3)
    audio[[0, 2]] = math.nan
    idle = engine_of(codec, 3, "zero")
    before = idle.state_of(0)
    codes_idle, heard_idle = ticks(idle, audio, [[False, True, False]] * 3)
    assert torch.equal(codes_idle[:, 1], codes[:, 1])
    assert torch.equal(heard_idle[:, 1], heard[:, 1])
    for kept, now in zip(before, idle.state_of(0), strict=True):
        assert torch.equal(kept, now)
    for one, other in zip(reference.state_of(1), idle.state_of(1), strict=True):
        assert torch.equal(one, other)
