"""The small codec that the tests of the voice path share."""

from __future__ import annotations

import pytest

from encodec_rt.streaming.codec import Codec
from tests.support.models import random_model, tiny_config


@pytest.fixture(scope="session")
def codec() -> Codec:
    return Codec(random_model(tiny_config()))


@pytest.fixture(scope="session")
def kbps(codec: Codec) -> float:
    return codec.config.target_bandwidths[-1]
