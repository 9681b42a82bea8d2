from __future__ import annotations

import math

import pytest

from encodec_rt.errors import InputError
from encodec_rt.pcm import sample_at


def test_a_time_is_the_nearest_sample() -> None:
    assert [sample_at(seconds, 24_000) for seconds in (0, 0.5, 1 / 3)] == [0, 12_000, 8_000]


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf, 1e305, 1e300])
def test_a_time_that_no_file_has_is_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="a time of"):
        sample_at(seconds, 24_000)
