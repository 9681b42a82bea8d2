from __future__ import annotations

import math

import numpy as np
import pytest

from encodec_rt.errors import InputError
from encodec_rt.pcm import sample_at, to_int16


def test_a_time_is_the_nearest_sample() -> None:
    assert [sample_at(seconds, 24_000) for seconds in (0, 0.5, 1 / 3)] == [0, 12_000, 8_000]


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf, 1e305, 1e300])
def test_a_time_that_no_file_has_is_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="a time of"):
        sample_at(seconds, 24_000)


def test_samples_are_rounded_to_even_and_clipped_and_every_16_bit_value_returns() -> None:
    audio = np.array([0.5, 1.5, -0.5, 2.5, 40_000, -40_000], np.float32) / np.float32(32768)
    assert to_int16(audio).tolist() == [0, 2, 0, 2, 32_767, -32_768]
    every = np.arange(-32_768, 32_768, dtype=np.int16)
    assert np.array_equal(to_int16((every / 32768).astype(np.float32)), every)
