"""Models that need whole segments: their streams equal the offline model too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from encodec_rt.config import PRESETS, EncodecConfig
from encodec_rt.errors import ConfigError, InputError, StateError
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.segments import Segment, SegmentDecoder
from tests.support.models import hf_decoded, hf_encoded, hf_twin, random_model, speech, tiny_config
from tests.support.narrow import present

LIKE_48_KHZ = tiny_config(
    audio_channels=2,
    normalize=True,
    chunk_length_s=1.0,
    overlap=0.01,
    norm_type="time_group_norm",
    use_causal_conv=False,
)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(random_model(LIKE_48_KHZ))


def segments_of(codec: Codec, audio: torch.Tensor, size: int) -> list[Segment]:
    encoder = codec.segment_encoder(codec.config.target_bandwidths[-1])
    segments = [
        segment
        for start in range(0, audio.shape[1], size)
        for segment in encoder.push(audio[:, start : start + size])
    ]
    return segments + encoder.flush()


def decoded(decoder: SegmentDecoder, segments: list[Segment]) -> np.ndarray:
    parts = [decoder.push(segment) for segment in segments]
    parts = [*parts, decoder.flush()]
    return np.concatenate([part[None] if part.ndim == 1 else part for part in parts], axis=1)


@pytest.mark.parametrize("length", [1, 7, 791, 792, 793, 800, 801, 1584, 2500])
@pytest.mark.parametrize("size", [13, 800, 5000])
def test_segments_equal_transformers(codec: Codec, length: int, size: int) -> None:
    audio = speech(2, length, seed=length)
    segments = segments_of(codec, audio, size)
    twin = hf_twin(codec.model)
    with torch.inference_mode():
        wanted, scales, padding = hf_encoded(
            twin, audio[None], bandwidth=codec.config.target_bandwidths[-1]
        )
        heard = hf_decoded(twin, wanted, scales, padding=padding)
    assert len(segments) == len(wanted)
    for segment, codes, scale in zip(segments, wanted, scales, strict=True):
        assert np.array_equal(segment.codes.T, codes[0, :, : len(segment.codes)].numpy())
        assert segment.scale == pytest.approx(float(present(scale)), rel=1e-6)
    assert sum(segment.samples for segment in segments) >= length
    np.testing.assert_allclose(
        decoded(codec.segment_decoder(), segments), heard[0].numpy(), atol=1e-5
    )


def test_a_length_that_ends_in_an_overlap_gives_a_segment_that_transformers_cannot_stack(
    codec: Codec,
) -> None:
    audio = speech(2, 1586)
    segments = segments_of(codec, audio, 100)
    assert [segment.samples for segment in segments] == [800, 794, 2]
    assert decoded(codec.segment_decoder(), segments).shape == (2, 1592)


def test_first_segment_comes_with_its_last_sample(codec: Codec) -> None:
    encoder = codec.segment_encoder(codec.config.target_bandwidths[-1])
    assert encoder.push(speech(2, 799)) == []
    assert len(encoder.push(speech(2, 1))) == 1


def test_full_size_48_khz_stream_equals_offline() -> None:
    codec = Codec(random_model(PRESETS["encodec_48khz"]))
    audio = speech(2, 60_000)
    segments = segments_of(codec, audio, 4410)
    with torch.inference_mode():
        wanted = codec.model.encode(audio[None], bandwidth=24.0)
        heard = codec.model.decode(
            wanted.audio_codes,
            wanted.audio_scales,
            last_frame_pad_length=wanted.last_frame_pad_length,
        )
    for segment, codes in zip(segments, wanted.audio_codes, strict=True):
        assert np.array_equal(segment.codes.T, codes[0, :, : len(segment.codes)].numpy())
    np.testing.assert_allclose(
        decoded(codec.segment_decoder(), segments), heard.audio_values[0].numpy(), atol=1e-5
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"use_causal_conv": False},
        {"norm_type": "time_group_norm"},
        {"normalize": True},
        {"chunk_length_s": 0.5, "overlap": 0.3},
        {"chunk_length_s": 0.5, "overlap": 0.0},
    ],
    ids=["centred", "norm over time", "normalised clip", "much overlap", "no overlap"],
)
def test_other_models_that_cannot_be_stepped_stream_in_segments(changes: dict[str, Any]) -> None:
    codec = Codec(random_model(tiny_config(**changes)))
    audio = speech(1, 990)
    segments = segments_of(codec, audio, 99)
    with torch.inference_mode():
        heard = codec.model(audio[None], bandwidth=codec.config.target_bandwidths[-1]).audio_values
    given = decoded(codec.segment_decoder(), segments)[:, :990]
    np.testing.assert_allclose(given, heard[0].numpy(), atol=1e-5)


def test_stepping_such_a_model_is_refused_with_the_way_out(codec: Codec) -> None:
    for call in (codec.stream_encoder, codec.stream_decoder):
        with pytest.raises(ConfigError, match="use segment_encoder"):
            call(codec.config.target_bandwidths[0])


def test_wrong_segments_are_refused(codec: Codec) -> None:
    decoder = codec.segment_decoder()
    good = segments_of(codec, speech(2, 900), 900)[0]
    for wrong in (
        Segment(good.codes, None, good.samples),
        Segment(good.codes[:0], 1.0, good.samples),
        Segment(good.codes + np.uint16(16), 1.0, good.samples),
    ):
        with pytest.raises(InputError):
            decoder.push(wrong)
    decoder.push(good)
    decoder.flush()
    with pytest.raises(StateError, match="flushed"):
        decoder.push(good)


def test_framewise_models_name_no_preset_but_their_own() -> None:
    assert Codec(random_model(LIKE_48_KHZ)).name.startswith("encodec_rt-")
    assert not Codec(random_model(tiny_config())).segmented
    assert EncodecConfig() == PRESETS["encodec_24khz"]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copied_stream_of_segments_is_independent_and_shares_the_model(
    codec: Codec, duplicate: Callable[[Any], Any]
) -> None:
    audio = speech(2, 2500)
    segments = segments_of(codec, audio, 500)
    encoder = codec.segment_encoder(codec.config.target_bandwidths[-1])
    decoder = codec.segment_decoder()
    heard = [decoder.push(segment) for segment in encoder.push(audio[:, :1700])]
    other_encoder, other_decoder = duplicate(encoder), duplicate(decoder)
    assert other_encoder._model is other_decoder._model is codec.model
    other_encoder.push(-audio)
    other_decoder.push(segments[-1])
    other_decoder.flush()
    rest = [*encoder.push(audio[:, 1700:]), *encoder.flush()]
    heard += [*(decoder.push(segment) for segment in rest), decoder.flush()]
    wanted = decoded(codec.segment_decoder(), segments)
    assert np.array_equal(np.concatenate(heard, axis=1), wanted)


def test_an_interrupted_segment_leaves_the_stream_as_before(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = speech(2, 1000)
    segments = segments_of(codec, audio, 1000)
    wanted = decoded(codec.segment_decoder(), segments)
    encoder = codec.segment_encoder(codec.config.target_bandwidths[-1])
    decoder = codec.segment_decoder()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def interrupted(owner: object, name: str, call: Callable[[], object]) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                call()

    interrupted(codec.model.quantizer, "encode", lambda: encoder.push(audio))
    begun = encoder.push(audio)
    interrupted(codec.model.quantizer, "encode", encoder.flush)
    again = [*begun, *encoder.flush()]
    assert all(np.array_equal(a.codes, b.codes) for a, b in zip(again, segments, strict=True))
    interrupted(SegmentDecoder, "_emit", lambda: decoder.push(again[0]))
    heard = [decoder.push(segment) for segment in again]
    interrupted(SegmentDecoder, "_emit", decoder.flush)
    assert np.array_equal(np.concatenate([*heard, decoder.flush()], axis=1), wanted)


def test_autocast_of_the_host_program_changes_no_segment(codec: Codec) -> None:
    audio = speech(2, 1600)
    segments = segments_of(codec, audio, 400)
    wanted = decoded(codec.segment_decoder(), segments)
    with torch.autocast("cpu", torch.bfloat16):
        same = segments_of(codec, audio, 400)
        heard = decoded(codec.segment_decoder(), same)
    assert all(np.array_equal(a.codes, b.codes) for a, b in zip(same, segments, strict=True))
    assert np.array_equal(heard, wanted)


def test_a_stream_of_segments_closes_with_its_context_and_says_what_it_is(codec: Codec) -> None:
    with codec.segment_encoder(codec.config.target_bandwidths[-1]) as encoder:
        segments = encoder.push(speech(2, 900))
        assert repr(encoder) == "<SegmentEncoder, 900 samples in, open>"
    with codec.segment_decoder() as decoder:
        decoder.push(segments[0])
        assert "1 segments in" in repr(decoder)
    assert "closed" in repr(decoder)
    with pytest.raises(StateError, match="flushed"):
        encoder.push(speech(2, 1))
