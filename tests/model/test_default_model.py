from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from encodec_rt.model.encodec import EncodecModel
from encodec_rt.quality import Scores, score

ASSETS = Path(__file__).parents[2] / "encodec_rt" / "assets"
WEIGHTS = Path(__file__).parents[2] / "encodec_rt" / "weights"
RATE = 24_000

# Below what the shipped weights score on this clip, whose speaker training never heard.
FLOORS = {"si_sdr_db": 7.7, "zimtohrli": 2.65, "estoi": 0.75}


@pytest.fixture(scope="module")
def model() -> EncodecModel:
    return EncodecModel.from_pretrained("default")


@pytest.fixture(scope="module")
def scores(model: EncodecModel) -> dict[float, Scores]:
    audio: NDArray[np.float32] = soundfile.read(ASSETS / "speech_it.flac", dtype="float32")[0]
    found = {}
    for kbps in (1.5, 6.0, 12.0):
        with torch.no_grad():
            decoded = model(torch.from_numpy(audio)[None, None], bandwidth=kbps).audio_values
        found[kbps] = score(audio, decoded[0, 0].numpy(), RATE)
    return found


def test_unheard_speech_keeps_its_waveform_and_its_sound(scores: dict[float, Scores]) -> None:
    for name, floor in FLOORS.items():
        assert getattr(scores[6.0], name) > floor, name


def test_more_bits_sound_better(scores: dict[float, Scores]) -> None:
    assert scores[12.0].si_sdr_db > scores[1.5].si_sdr_db
    assert scores[12.0].estoi > scores[1.5].estoi  # type: ignore[operator]
    assert scores[6.0].zimtohrli > scores[1.5].zimtohrli


def test_codes_of_speech_are_spread_over_the_codebooks(model: EncodecModel) -> None:
    audio = np.concatenate(
        [
            soundfile.read(ASSETS / f"speech_{name}.flac", dtype="float32")[0]
            for name in ("en", "it")
        ]
    )
    with torch.no_grad():
        codes = model.encode(torch.from_numpy(audio)[None, None], bandwidth=12.0).audio_codes
    assert codes is not None
    frames = codes.shape[-1]
    for level in codes[0, 0]:
        # Even 1155 draws from 1024 entries would leave a third of them out.
        assert len(level.unique()) > 0.2 * frames


def test_the_card_names_every_package_that_was_trained_on() -> None:
    from encodec_rt.training.sources import PACKAGES

    card = (WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8")
    for source in PACKAGES:
        assert f"`{source.name}` {source.version}" in card
        assert source.authors in card
