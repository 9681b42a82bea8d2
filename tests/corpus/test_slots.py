"""A clip's codes are the offline model's, whatever other clips are in the queue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from encodec_rt.corpus.slots import Coded, SegmentQueue, SlotQueue, clip_encoder
from encodec_rt.corpus.statistics import SilenceMeter
from encodec_rt.errors import InputError
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio
from tests.support.contract import assert_codes_agree, offline_codes
from tests.support.models import random_model, speech, tiny_config

LENGTHS = (1, 5, 7, 8, 9, 83, 240, 241, 40, 512, 513, 2_500, 63, 333, 17)
CONFIGS: dict[str, dict[str, Any]] = {
    "constant": {"pad_mode": "constant"},
    "reflect": {"pad_mode": "reflect"},
    "replicate": {"pad_mode": "replicate"},
    "stereo": {"pad_mode": "reflect", "audio_channels": 2},
}


class Pieces:
    """A clip that is read in pieces of odd sizes, and may break off."""

    def __init__(self, audio: Audio, breaks_at: int | None = None) -> None:
        self.audio, self.breaks_at = audio, breaks_at

    def __iter__(self) -> Iterator[Audio]:
        rng = np.random.default_rng(self.audio.shape[1])
        at = 0
        while at < self.audio.shape[1]:
            if self.breaks_at is not None and at >= self.breaks_at:
                raise InputError("the file ends here")
            size = int(rng.integers(0, 300))
            yield self.audio[:, at : at + size]
            at += size


@pytest.fixture(scope="module", params=[*sorted(CONFIGS), "torch"])
def codec(request: pytest.FixtureRequest) -> Codec:
    if request.param == "torch":
        return Codec(random_model(tiny_config()), backend="torch")
    return Codec(random_model(tiny_config(**CONFIGS[request.param])), backend="cpu")


def clips(codec: Codec, lengths: tuple[int, ...], seed: int) -> list[Pieces]:
    order = np.random.default_rng(seed).permutation(lengths)
    channels = codec.config.audio_channels
    return [Pieces(speech(channels, int(n), seed=int(n)).numpy()) for n in order]


def highest(codec: Codec) -> float:
    return codec.config.target_bandwidths[-1]


@pytest.mark.parametrize(("slots", "frames", "seed"), [(8, 4, 0), (3, 16, 1)])
def test_codes_are_the_offline_model_s_for_any_mix_of_clips(
    codec: Codec, slots: int, frames: int, seed: int
) -> None:
    queue = SlotQueue(codec, highest(codec), slots=slots, block_frames=frames)
    given = clips(codec, LENGTHS, seed)
    coded = list(queue.encode(given))
    assert sorted(map(id, given)) == sorted(id(clip) for clip, _ in coded)
    for clip, outcome in coded:
        assert isinstance(outcome, Coded)
        audio = torch.from_numpy(clip.audio)
        assert outcome.samples == clip.audio.shape[1]
        assert_codes_agree(codec.model, audio, outcome.codes, offline_codes(codec.model, audio))


def test_a_queue_gives_the_same_codes_a_second_time(codec: Codec) -> None:
    queue = SlotQueue(codec, highest(codec), block_frames=4)
    runs = [
        [outcome.codes for _, outcome in queue.encode(clips(codec, LENGTHS, 0))]  # type: ignore[union-attr]
        for _ in range(2)
    ]
    assert all(np.array_equal(*pair) for pair in zip(*runs, strict=True))


def test_a_clip_that_breaks_off_leaves_its_neighbours_alone(codec: Codec) -> None:
    given = clips(codec, LENGTHS, 2)
    broken = sorted(given, key=lambda clip: clip.audio.shape[1])[-3:]
    for clip, place in zip(broken, (0, 1, 1_000), strict=True):
        clip.breaks_at = min(place, clip.audio.shape[1] - 1)
    given.insert(4, Pieces(np.zeros((codec.config.audio_channels, 0), np.float32)))
    queue = SlotQueue(codec, highest(codec), block_frames=4)
    failed = 0
    for clip, outcome in queue.encode(given):
        if isinstance(outcome, Coded):
            wanted = offline_codes(codec.model, torch.from_numpy(clip.audio))
            assert np.array_equal(outcome.codes, wanted)
        else:
            failed += 1
            assert clip in broken or clip is given[4], outcome
            assert str(outcome)
    assert failed == len(broken) + 1


def test_a_model_of_segments_gives_its_segments_and_scales() -> None:
    config = tiny_config(
        audio_channels=2, normalize=True, use_causal_conv=False, norm_type="time_group_norm",
        chunk_length_s=0.5, overlap=0.1,
    )  # fmt: skip
    codec = Codec(random_model(config))
    queue = clip_encoder(codec, highest(codec))
    assert isinstance(queue, SegmentQueue)
    for clip, outcome in queue.encode(clips(codec, (5, 400, 401, 1_000, 37), 0)):
        assert isinstance(outcome, Coded)
        with torch.inference_mode():
            audio = torch.from_numpy(clip.audio)[None]
            wanted = codec.model.encode(audio, bandwidth=highest(codec))
        codes = [each[0].t().numpy() for each in wanted.audio_codes]
        assert len(outcome.scales) == len(codes)
        frames = [each[: len(each)] for each in codes]
        assert sum(map(len, frames)) >= len(outcome.codes) > 0
        assert np.array_equal(outcome.codes[: len(frames[0])], frames[0][: len(outcome.codes)])


def test_silence_is_counted_in_frames_whatever_the_pieces() -> None:
    audio = np.zeros((1, 100), np.float32)
    audio[0, 20:30] = 0.1
    for size in (1, 7, 8, 100):
        meter = SilenceMeter(8)
        for at in range(0, 100, size):
            meter.add(audio[:, at : at + size])
        assert meter.frames == 11
