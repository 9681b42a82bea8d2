"""What the tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.models import random_model, tiny_config


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with 1 and 2 kbps."""
    folder = tmp_path_factory.mktemp("model")
    random_model(tiny_config(target_bandwidths=(1.0, 2.0))).save_pretrained(folder)
    return folder
