"""A clip's audio is the codec's, whatever other clips are in the queue."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from encodec_rt.corpus.decoding_queue import DecodingQueue, decodes_in_slots
from encodec_rt.errors import InputError
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio, Codes
from tests.support.models import random_model, tiny_config
from tests.support.tolerances import bound

CONFIGS: dict[str, dict[str, Any]] = {
    "constant": {"pad_mode": "constant"},
    "reflect": {"pad_mode": "reflect"},
    "stereo": {"pad_mode": "reflect", "audio_channels": 2},
}


class Clip:
    """Codes whose audio is kept; writing may fail from the nth time on."""

    def __init__(self, codes: Codes, samples: int, fails_at: int | None = None) -> None:
        self.codes, self.samples, self.fails_at = codes, samples, fails_at
        self.audio: list[Audio] = []

    def write(self, pcm: Audio) -> None:
        if self.fails_at is not None and len(self.audio) >= self.fails_at:
            raise OSError("no more")
        self.audio.append(pcm)


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def codec(request: pytest.FixtureRequest) -> Codec:
    return Codec(random_model(tiny_config(**CONFIGS[request.param])), backend="cpu")


def clips(codec: Codec) -> list[Clip]:
    rng = np.random.default_rng(0)
    size, hop = codec.config.codebook_size, codec.config.hop_length
    lengths = (9, 10, 63, 64, 65, 130, 17, 33, 200, 12, 40)
    return [
        Clip(
            rng.integers(size, size=(frames, 1 + index % 4), dtype=np.uint16),
            frames * hop - index % hop,
        )
        for index, frames in enumerate(lengths)
    ]


def test_audio_is_the_codec_s_for_clips_of_any_length_and_bandwidth(codec: Codec) -> None:
    queue = DecodingQueue[Clip](codec, slots=4, block_frames=16)
    given = clips(codec)
    assert all(queue.takes(clip.codes) for clip in given)
    made = dict(queue.decode(given))
    assert set(made) == set(given)
    for clip in given:
        assert made[clip] == clip.samples
        wanted = np.atleast_2d(codec.decode(clip.codes, clip.samples))
        audio = np.concatenate(clip.audio, axis=1)
        assert audio.shape == wanted.shape
        error = np.linalg.norm(audio - wanted) / np.linalg.norm(wanted)
        assert error <= bound("stream audio", "float32")


def test_a_clip_that_cannot_be_written_or_has_other_codes_leaves_its_neighbours_alone(
    codec: Codec,
) -> None:
    queue = DecodingQueue[Clip](codec, slots=3, block_frames=16)
    given = clips(codec)
    given[3].fails_at = 1
    given[5].codes[:] = 9_999
    made = dict(queue.decode(given))
    failed = {index for index, clip in enumerate(given) if isinstance(made[clip], Exception)}
    assert failed == {3, 5}
    assert isinstance(made[given[3]], OSError)
    assert isinstance(made[given[5]], InputError)


def test_a_model_that_trims_on_the_left_is_decoded_clip_by_clip(codec: Codec) -> None:
    trimmed = tiny_config(**{**CONFIGS["constant"], "trim_right_ratio": 0.5})
    assert not decodes_in_slots(Codec(random_model(trimmed), backend="cpu"))
    assert decodes_in_slots(codec)
