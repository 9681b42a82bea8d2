"""A model small enough for whole corpora, and folders of clips of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from encodec_rt.streaming.codec import Codec
from tests.support.models import random_model, speech, tiny_config

RATE_HZ = 800
SECONDS = (0.5, 0.01, 3.0, 0.64, 1.37, 0.08, 2.05, 0.2)


@pytest.fixture(scope="session")
def codec() -> Codec:
    return Codec(random_model(tiny_config(pad_mode="constant")), backend="cpu")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder with two folders of two speakers, FLAC and WAV, mono and stereo."""
    folder = tmp_path / "clips"
    for index, seconds in enumerate(SECONDS):
        name = f"speaker{index % 2}/clip{index // 2}.{'flac' if index % 3 else 'wav'}"
        write_clip(folder / name, seconds, channels=1 + (index == 4), seed=index)
    return folder


def write_clip(
    path: Path, seconds: float, *, channels: int = 1, seed: int = 0, rate_hz: int = 1_000
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = speech(channels, max(1, round(seconds * rate_hz)), seed=seed).numpy()
    soundfile.write(path, np.clip(audio.T, -1, 1), rate_hz, subtype="PCM_16")


@pytest.fixture(autouse=True)
def without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all of a small run's time goes into its picture; one test looks at one."""
    if "picture" not in request.node.name:
        monkeypatch.setattr("encodec_rt.corpus.job.draw", lambda *_: None)
