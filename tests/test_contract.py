"""Every backend, every start policy, every padding: a stream gives the offline model's codes."""

from __future__ import annotations

import math
import resource
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encodec_rt.config import PAD_MODES, EncodecConfig
from encodec_rt.errors import ConfigError, InputError, StateError
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.steps import run
from encodec_rt.streaming.weights import Start
from tests.support.contract import (
    AUDIO_DB,
    assert_codes_agree,
    assert_stream_is_offline,
    engine_of,
    offline_audio,
    offline_codes,
    stream,
    ticks,
)
from tests.support.models import hf_twin, random_model, snr_db, speech, tiny_config

BACKENDS = ("torch", "cpu")
"""Those that are fast here; test_contract_triton.py holds the kernels to the same."""
UNUSUAL = {
    "trim none on the right": {"trim_right_ratio": 0.0},
    "trim a part on the right": {"trim_right_ratio": 0.4},
    "stereo": {"audio_channels": 2},
    "three residual blocks": {"num_residual_layers": 3, "residual_kernel_size": 5},
    "no residual block": {"num_residual_layers": 0},
    "identity shortcut": {"use_conv_shortcut": False, "compress": 1},
    "kernels of one": {"kernel_size": 1, "last_kernel_size": 1, "residual_kernel_size": 1},
    "long kernels": {"kernel_size": 12, "last_kernel_size": 40, "num_lstm_layers": 1},
    "a ratio of one": {"upsampling_ratios": (3, 1, 2)},
}


def hop_320(**changes: Any) -> EncodecConfig:
    """The 24 kHz model's rates and ratios, with few channels."""
    return EncodecConfig(
        num_filters=4, hidden_size=16, codebook_size=64, target_bandwidths=(1.0, 2.0), **changes
    )


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=PAD_MODES)
def padded(request: pytest.FixtureRequest, backend: str) -> Codec:
    return Codec(random_model(tiny_config(pad_mode=request.param)), backend=backend)


@pytest.mark.parametrize("start", ["exact", "primed"])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 55, 56, 57, 203])
def test_stream_equals_offline_at_any_length(padded: Codec, length: int, start: Start) -> None:
    audio = speech(1, length, seed=length)
    for sizes in ([1], [length], [5, 0, 13]):
        assert_stream_is_offline(padded, audio, sizes, start)


@pytest.mark.parametrize("changes", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_stream_equals_offline_for_unusual_configs(backend: str, changes: dict[str, Any]) -> None:
    codec = Codec(random_model(tiny_config(**changes)), backend=backend)
    hop = codec.config.hop_length
    for frames, rest in ((2, 1), (13, 0), (60, hop - 1)):
        audio = speech(codec.config.audio_channels, frames * hop + rest, seed=frames)
        for start in ("exact", "primed"):
            assert_stream_is_offline(codec, audio, [17], start)


@pytest.mark.parametrize("pad_mode", PAD_MODES)
def test_stream_equals_offline_at_the_rates_of_the_24_khz_model(pad_mode: str) -> None:
    codec = Codec(random_model(hop_320(pad_mode=pad_mode)), backend="torch")
    for length, size in ((40_000, 441), (31_999, 320), (2240, 1), (2239, 480), (8000, 1024)):
        assert_stream_is_offline(codec, speech(1, length, seed=size), [size])


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 40_000),
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    pad_mode=st.sampled_from(PAD_MODES),
    start=st.sampled_from(["exact", "primed"]),
)
def test_stream_equals_offline_for_any_length_and_chunking(
    length: int, sizes: list[int], pad_mode: str, start: Start
) -> None:
    codec = _HOP_320.get(pad_mode) or Codec(random_model(hop_320(pad_mode=pad_mode)))
    _HOP_320[pad_mode] = codec
    assert_stream_is_offline(codec, speech(1, length, seed=length), sizes, start)


_HOP_320: dict[str, Codec] = {}


def test_full_size_stream_equals_transformers() -> None:
    codec = Codec(random_model(EncodecConfig()))
    audio = speech(1, 12_345)
    wanted = offline_codes(hf_twin(codec.model), audio)
    assert np.array_equal(wanted, offline_codes(codec.model, audio))
    assert_stream_is_offline(codec, audio, [480])


def test_primed_stream_gives_a_frame_at_the_first_push() -> None:
    codec = Codec(random_model(hop_320()))
    assert len(codec.stream_encoder(2.0).push(speech(320))) == 1
    exact = codec.stream_encoder(2.0, start="exact")
    assert [len(exact.push(speech(320))) for _ in range(8)] == [0] * 6 + [7, 1]


def test_codes_are_bitwise_the_same_however_pushed(padded: Codec) -> None:
    audio = speech(1, 333)
    for start in ("exact", "primed", "zero"):
        whole = stream(padded, audio, [333], start)
        for sizes in ([1], [8], [3, 50, 0, 9]):
            pushed = stream(padded, audio, sizes, start)
            assert np.array_equal(pushed.codes, whole.codes)
            assert np.array_equal(pushed.audio, whole.audio)


def test_restored_snapshot_continues_bitwise(padded: Codec) -> None:
    audio = speech(300)
    bandwidth = padded.config.target_bandwidths[-1]
    encoder = padded.stream_encoder(bandwidth, start="exact")
    decoder = padded.stream_decoder(bandwidth, start="exact")
    for cut in (3, 101):
        decoder.push(encoder.push(audio[encoder.samples_in : cut]))
        at_cut = encoder.snapshot(), decoder.snapshot()
        first = encoder.push(audio[cut:200]), encoder.flush()
        heard = decoder.push(first[0]), decoder.flush()
        encoder.restore(at_cut[0])
        decoder.restore(at_cut[1])
        again = encoder.push(audio[cut:200]), encoder.flush()
        heard_again = decoder.push(again[0]), decoder.flush()
        both: tuple[tuple[NDArray[Any], ...], ...] = ((*first, *heard), (*again, *heard_again))
        for one, other in zip(*both, strict=True):
            assert np.array_equal(one, other)
        encoder.restore(at_cut[0])
        decoder.restore(at_cut[1])


def test_snapshot_of_another_model_is_refused(padded: Codec) -> None:
    other = Codec(random_model(tiny_config(num_filters=5)))
    bandwidth = padded.config.target_bandwidths[0]
    snapshot = other.stream_encoder(bandwidth).snapshot()
    with pytest.raises(StateError, match="another model"):
        padded.stream_encoder(bandwidth).restore(snapshot)


def test_a_lost_frame_takes_one_hop_and_moves_the_state_on(padded: Codec) -> None:
    bandwidth = padded.config.target_bandwidths[-1]
    codes = padded.stream_encoder(bandwidth).push(speech(800))
    decoder, whole = padded.stream_decoder(bandwidth), padded.stream_decoder(bandwidth)
    reference = whole.push(codes)
    heard = [decoder.push(codes[:20])]
    heard += [decoder.push(None) for _ in range(6)]
    heard.append(decoder.push(codes[26:]))
    assert [len(part) for part in heard] == [160, *[8] * 6, len(reference) - 208]
    together = np.concatenate(heard)
    assert np.array_equal(together[:160], reference[:160])
    assert not np.array_equal(together[160:208], reference[160:208])
    assert np.isfinite(together).all()


def test_slot_is_bitwise_independent_of_its_neighbours(padded: Codec) -> None:
    hop = padded.config.hop_length
    audio = speech(3, 6 * hop)
    always = [[True] * 3] * 6
    reference = ticks(engine_of(padded, 3), audio, always)
    loud = audio.clone()
    loud[[0, 2]] = 100 * torch.randn(2, 6 * hop, generator=torch.Generator().manual_seed(1))
    garbage = ticks(engine_of(padded, 3), loud, always)
    loud[[0, 2]] = math.nan
    idle = ticks(engine_of(padded, 3), loud, [[False, True, False]] * 6)
    for other in (garbage, idle):
        assert torch.equal(other[0][:, 1], reference[0][:, 1])
        assert torch.equal(other[1][:, 1], reference[1][:, 1])


def test_idle_slot_is_untouched_and_goes_on_where_it_was(padded: Codec) -> None:
    hop = padded.config.hop_length
    audio = speech(2, 4 * hop)
    engine = engine_of(padded, 2)
    ticks(engine, audio, [[True, True]] * 4)
    before = engine.state_of(1)
    ticks(engine, audio, [[True, False]] * 4)
    for kept, now in zip(before, engine.state_of(1), strict=True):
        assert torch.equal(kept, now)


def test_reset_slot_equals_a_new_one_and_no_other_changes(padded: Codec) -> None:
    hop = padded.config.hop_length
    engine = engine_of(padded, 3)
    ticks(engine, speech(3, 4 * hop), [[True] * 3] * 4)
    others = [engine.state_of(slot) for slot in (0, 2)]
    engine.reset([1])
    new = engine_of(padded, 3)
    for slot, states in ((0, others[0]), (1, new.state_of(1)), (2, others[1])):
        for kept, now in zip(states, engine.state_of(slot), strict=True):
            assert torch.equal(kept, now)


def test_slots_open_under_any_start_policy_in_one_engine(padded: Codec) -> None:
    hop, bandwidth = padded.config.hop_length, padded.config.target_bandwidths[-1]
    frames = max(padded.packed.encoder_start_frames, padded.packed.decoder_start_frames) + 5
    audio = speech(1, frames * hop)
    engine = engine_of(padded, 3)
    zero = engine_of(padded, 1, "zero")
    engine.load_state(2, zero.state_of(0))
    head = padded.packed.encoder_start_frames
    codes = [[row] for row in engine.begin_encoder(1, audio[0, : head * hop])]
    alone = stream(padded, audio, [hop], "exact").codes
    for index in range(head, frames):
        frame = audio[:, index * hop : (index + 1) * hop].expand(3, hop).contiguous()
        codes.append([engine.encode(frame)[1].clone()])
    exact = torch.cat([row[0][None] for row in codes]).numpy()
    assert_codes_agree(padded.model, audio, exact.astype(np.uint16), alone)
    starts: tuple[tuple[int, Start], ...] = ((0, "primed"), (2, "zero"))
    for slot, start in starts:
        single = padded.stream_encoder(bandwidth, start=start)
        wanted = single.push(audio[0, head * hop :])
        engine.load_state(slot, engine_of(padded, 1, start).state_of(0))
        given = [
            engine.encode(audio[:, at * hop : (at + 1) * hop].expand(3, hop).contiguous())[
                slot
            ].clone()
            for at in range(head, frames)
        ]
        share = (torch.stack(given).numpy() == wanted).mean()
        assert share > 0.99


def test_exact_decoder_slot_equals_offline(padded: Codec) -> None:
    hop = padded.config.hop_length
    codes = offline_codes(padded.model, speech(1, 20 * hop))
    engine = engine_of(padded, 2)
    head = padded.packed.decoder_start_frames
    tensor = torch.from_numpy(codes.astype(np.int64))
    audio = [engine.begin_decoder(1, tensor[:head])]
    audio += [engine.decode(row.expand(2, -1).contiguous())[1].clone() for row in tensor[head:]]
    assert snr_db(offline_audio(padded.model, codes)[0], torch.cat(audio)) >= AUDIO_DB


def test_step_writes_all_of_proposed_and_nothing_of_now(padded: Codec) -> None:
    bandwidth = padded.config.target_bandwidths[-1]
    encoder = padded.stream_encoder(bandwidth)
    decoder = padded.stream_decoder(bandwidth)
    codes = encoder.push(speech(160))
    decoder.push(codes)
    latents = torch.randn(1, 1, padded.config.hidden_size)
    for runner, x in ((encoder.runner, speech(1, 8)[..., None]), (decoder.runner, latents)):
        before = runner.now.arena.clone()
        address = runner.now.arena.data_ptr(), runner.proposed.arena.data_ptr()
        runner.proposed.arena.fill_(math.nan)
        with torch.inference_mode():
            y = run(runner.net, runner.now, runner.proposed, x)
            assert bool(torch.isfinite(y).all())
            assert torch.equal(runner.now.arena, before)
            for name, view in runner.proposed.views.items():
                assert bool(torch.isfinite(view).all()), name
            runner.step(x, torch.ones(1, dtype=torch.bool))
        assert address == (runner.now.arena.data_ptr(), runner.proposed.arena.data_ptr())


def test_refused_input_leaves_the_stream_as_it_was(padded: Codec) -> None:
    bandwidth = padded.config.target_bandwidths[-1]
    audio = speech(100)
    encoder, untouched = padded.stream_encoder(bandwidth), padded.stream_encoder(bandwidth)
    first = encoder.push(audio[:50])
    bad = audio[:30].clone()
    bad[7] = math.inf
    for wrong in (bad, audio.view(4, 25), audio.to(torch.int32)):
        with pytest.raises(InputError):
            encoder.push(wrong)
    rest = encoder.push(audio[50:])
    assert np.array_equal(np.concatenate([first, rest]), untouched.push(audio))


def test_audio_comes_in_any_memory_layout_and_is_left_alone(padded: Codec) -> None:
    pcm = speech(300).numpy()
    frozen = np.frombuffer(pcm.tobytes(), np.float32)
    bandwidth = padded.config.target_bandwidths[-1]
    wanted = padded.stream_encoder(bandwidth).push(pcm)
    for same in (
        torch.from_numpy(pcm.copy()),
        pcm.astype(np.float64),
        pcm.astype(">f4"),
        pcm[::-1].copy()[::-1],
        frozen,
        np.repeat(pcm, 2)[::2],
        torch.from_numpy(pcm.copy()).requires_grad_(),
    ):
        assert np.array_equal(padded.stream_encoder(bandwidth).push(same), wanted)
    assert np.array_equal(frozen, pcm)


def test_codes_outside_the_codebook_are_refused(padded: Codec) -> None:
    decoder = padded.stream_decoder(padded.config.target_bandwidths[-1])
    for wrong in ([[16]], [[-1]], [[0.5]], [0], [[0] * 5], np.zeros((1, 0), np.uint16)):
        with pytest.raises(InputError):
            decoder.push(wrong)


def test_closed_stream_refuses_everything(padded: Codec) -> None:
    bandwidth = padded.config.target_bandwidths[-1]
    encoder, decoder = padded.stream_encoder(bandwidth), padded.stream_decoder(bandwidth)
    assert encoder.flush().shape == (0, encoder.codebooks)
    assert decoder.flush().shape == (0,)
    for call in (lambda: encoder.push([]), encoder.flush, lambda: decoder.push(None)):
        with pytest.raises(StateError, match="flushed"):
            call()


def test_unknown_start_bandwidth_and_slots_are_refused_in_a_sentence(padded: Codec) -> None:
    bandwidth = padded.config.target_bandwidths[0]
    with pytest.raises(ConfigError, match="primed, exact, zero"):
        padded.stream_encoder(bandwidth, start="now")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="this model has"):
        padded.stream_decoder(5.0)
    with pytest.raises(ConfigError, match="at least one"):
        padded.engine(0, bandwidth)
    with pytest.raises(InputError, match="this engine has 2"):
        padded.engine(2, bandwidth).reset([2])


def test_decoder_flush_trims_what_is_held_to_the_true_length() -> None:
    codec = Codec(random_model(hop_320()))
    audio = speech(1, 1000)
    codes = stream(codec, audio, [1000], "exact").codes
    decoder = codec.stream_decoder(2.0, start="exact")
    assert len(decoder.push(codes)) == 0
    assert len(decoder.flush(samples=1000)) == 1000


def test_memory_is_constant_over_ten_minutes() -> None:
    codec = Codec(random_model(tiny_config(upsampling_ratios=(10, 8))))
    bandwidth = codec.config.target_bandwidths[-1]
    encoder, decoder = codec.stream_encoder(bandwidth), codec.stream_decoder(bandwidth)
    minute = speech(60 * codec.config.sampling_rate)

    def run_minutes(count: int) -> int:
        for _ in range(count):
            for piece in minute.split(441):
                decoder.push(encoder.push(piece))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    after_one = run_minutes(1)
    assert run_minutes(9) - after_one <= 1024, "more than 1 MiB was added in nine minutes"
    assert decoder.samples_out == 10 * len(minute) // 80 * 80


def test_codebooks_too_large_for_16_bit_codes_are_refused() -> None:
    model = random_model(tiny_config())
    model.config.codebook_size = 1 << 17
    with pytest.raises(ConfigError, match="65536"):
        Codec(model)
