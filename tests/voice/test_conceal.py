from __future__ import annotations

import numpy as np
import pytest

from encodec_rt.errors import InputError
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio, Codes
from encodec_rt.voice.conceal import FADE_AFTER, FADE_S, REPAIR_FRAMES, Concealer
from tests.support.models import speech
from tests.support.tolerances import bound

FRAMES = 120


@pytest.fixture(scope="module")
def codes(codec: Codec, kbps: float) -> Codes:
    return codec.stream_encoder(kbps).push(speech(FRAMES * codec.config.hop_length).numpy())


def run(concealer: Concealer, codes: Codes, lost: set[int]) -> Audio:
    hops = [
        concealer.play(None if index in lost else codes[index : index + 1], index)
        for index in range(len(codes))
    ]
    return np.stack(hops)


def test_without_loss_the_output_is_that_of_a_stream_decoder(
    codec: Codec, kbps: float, codes: Codes
) -> None:
    heard = run(Concealer(codec.stream_decoder(kbps)), codes, set())
    np.testing.assert_array_equal(heard.reshape(-1), codec.stream_decoder(kbps).push(codes))


def test_every_lost_frame_gives_one_hop_of_finite_audio(
    codec: Codec, kbps: float, codes: Codes
) -> None:
    heard = run(Concealer(codec.stream_decoder(kbps)), codes, set(range(20, 90)))
    assert heard.shape == (FRAMES, codec.config.hop_length)
    assert np.isfinite(heard).all()


def test_the_state_converges_back_after_a_loss(codec: Codec, kbps: float, codes: Codes) -> None:
    whole = run(Concealer(codec.stream_decoder(kbps)), codes, set())
    torn = run(Concealer(codec.stream_decoder(kbps)), codes, {20, 21, 22, 23, 24})
    errors = np.sqrt(np.square(whole - torn).mean(axis=1) / np.square(whole).mean())
    assert errors[20:25].max() > 0.1
    assert errors[25 + 40 :].max() < bound("concealment", "converged")


def test_a_long_loss_fades_to_the_background_heard_before(
    codec: Codec, kbps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    hop = codec.config.hop_length
    background = 3e-4 * np.random.default_rng(0).standard_normal(40 * hop).astype(np.float32)
    talk = speech(20 * hop, seed=3).numpy()
    encoder = codec.stream_encoder(kbps)
    quiet_codes, talk_codes = encoder.push(background), encoder.push(talk)
    concealer = Concealer(codec.stream_decoder(kbps))
    # Random weights need not decode the background as quietly as it was, so the test says which.
    verdicts = [False] * 3 + [True] * len(talk_codes)
    monkeypatch.setattr(concealer._detector, "is_active", lambda pcm: verdicts.pop(0))
    run(concealer, quiet_codes[:3], set())
    run(concealer, talk_codes, set())
    assert not concealer.is_noise
    for _ in range(40):
        heard = concealer.play(None)
    assert concealer.is_noise
    assert concealer.quiet
    assert len(concealer._noise) == 1 + 3
    assert np.isfinite(heard).all()


def test_a_frame_that_comes_late_makes_what_follows_exact_again(
    codec: Codec, kbps: float, codes: Codes
) -> None:
    whole = run(Concealer(codec.stream_decoder(kbps)), codes, set())
    concealer = Concealer(codec.stream_decoder(kbps))
    heard = list(run(concealer, codes[:22], {20}))
    assert concealer.repair([(20, codes[20:21])]) == 1
    heard += [concealer.play(codes[i : i + 1], i) for i in range(22, FRAMES)]
    fade = round(FADE_S * codec.config.sampling_rate)
    assert np.abs(heard[20] - whole[20]).max() > 0
    np.testing.assert_array_equal(heard[22][fade:], whole[22][fade:])
    np.testing.assert_array_equal(np.stack(heard[23:]), whole[23:])


def test_late_frames_of_one_gap_are_repaired_together_or_in_turn(
    codec: Codec, kbps: float, codes: Codes
) -> None:
    whole = run(Concealer(codec.stream_decoder(kbps)), codes, set())
    for calls in ([[20, 21]], [[20], [21]], [[21], [20]]):
        concealer = Concealer(codec.stream_decoder(kbps))
        run(concealer, codes[:22], {20, 21})
        for late in calls:
            assert concealer.repair([(i, codes[i : i + 1]) for i in late]) == len(late)
        concealer.play(codes[22:23], 22)
        np.testing.assert_array_equal(concealer.play(codes[23:24], 23), whole[23])


def test_a_frame_that_comes_too_late_or_was_played_changes_nothing(
    codec: Codec, kbps: float, codes: Codes
) -> None:
    plain, asked = Concealer(codec.stream_decoder(kbps)), Concealer(codec.stream_decoder(kbps))
    lost = {20}
    end = 21 + REPAIR_FRAMES
    run(plain, codes[:end], lost)
    run(asked, codes[:end], lost)
    assert asked.repair([(20, codes[20:21]), (22, codes[22:23])]) == 0
    np.testing.assert_array_equal(
        asked.play(codes[end : end + 1], end), plain.play(codes[end : end + 1], end)
    )


def test_the_return_from_a_repair_is_faded_in(codec: Codec, kbps: float, codes: Codes) -> None:
    concealer, other = Concealer(codec.stream_decoder(kbps)), Concealer(codec.stream_decoder(kbps))
    run(concealer, codes[:22], {20, 21})
    run(other, codes[:22], {20, 21})
    concealer.repair([(20, codes[20:21])])
    first = concealer.play(codes[22:23], 22)
    assert first[0] == pytest.approx(other.play(None)[0], abs=1e-6)


@pytest.mark.parametrize("lost", [FADE_AFTER, 12])
def test_the_return_from_a_loss_is_faded_in_without_a_step(
    codec: Codec, kbps: float, codes: Codes, lost: int
) -> None:
    end = 20 + lost
    concealer, gone_on = (
        Concealer(codec.stream_decoder(kbps)),
        Concealer(codec.stream_decoder(kbps)),
    )
    for each in (concealer, gone_on):
        run(each, codes[:end], set(range(20, end)))
    before = concealer._decoder.snapshot()
    back, continued = concealer.play(codes[end : end + 1], end), gone_on.play(None)
    bare = codec.stream_decoder(kbps)
    bare.restore(before)
    plain = bare.push(codes[end : end + 1])
    ramp = np.linspace(0, 1, round(FADE_S * codec.config.sampling_rate), dtype=np.float32)
    # The first sample goes on from the concealment, and the fade ends in what came.
    assert np.abs(plain[0] - continued[0]) > 0
    assert back[0] == pytest.approx(continued[0], abs=1e-6)
    expected = ramp * plain[: len(ramp)] + (1 - ramp) * continued[: len(ramp)]
    np.testing.assert_allclose(back[: len(ramp)], expected, atol=1e-6)
    np.testing.assert_array_equal(back[len(ramp) :], plain[len(ramp) :])
    # So no two neighbouring samples of the seam differ by more than either side's do.
    seam = np.abs(np.diff(back[: len(ramp) + 1])).max()
    sides = [np.abs(np.diff(each[: len(ramp) + 1])).max() for each in (plain, continued)]
    apart = np.abs(plain - continued)[: len(ramp)].max()
    assert seam <= max(sides) + apart / (len(ramp) - 1) + 1e-6


def test_one_lost_frame_is_bridged_by_the_decoder_alone(
    codec: Codec, kbps: float, codes: Codes
) -> None:
    concealer = Concealer(codec.stream_decoder(kbps))
    run(concealer, codes[:21], {20})
    bare = codec.stream_decoder(kbps)
    bare.restore(concealer._decoder.snapshot())
    np.testing.assert_array_equal(concealer.play(codes[21:22], 21), bare.push(codes[21:22]))


def test_fewer_codebooks_are_decoded_like_any_frame(
    codec: Codec, kbps: float, codes: Codes
) -> None:
    concealer = Concealer(codec.stream_decoder(kbps))
    coarse = concealer.play(codes[:1, :2], 0)
    np.testing.assert_array_equal(coarse, codec.stream_decoder(kbps).push(codes[:1, :2]))


def test_codes_that_the_model_does_not_have_are_refused(codec: Codec, kbps: float) -> None:
    with pytest.raises(InputError, match="codes"):
        Concealer(codec.stream_decoder(kbps)).play(np.full((1, 2), 999, np.uint16))
