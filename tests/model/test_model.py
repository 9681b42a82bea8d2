"""EncodecModel gives what transformers.EncodecModel gives on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.encodec import modeling_encodec

from encodec_rt.config import PAD_MODES, PRESETS
from encodec_rt.errors import ConfigError, InputError
from encodec_rt.features import EncodecFeatureExtractor
from encodec_rt.model.conv import pad1d
from encodec_rt.model.encodec import EncodecModel, overlap_add
from tests.support.models import hf_decoded, hf_encoded, hf_twin, random_model, speech, tiny_config
from tests.support.narrow import present
from tests.support.tolerances import bound

CENTRED = {"use_causal_conv": False}
GROUPED = {"norm_type": "time_group_norm"}
CHUNKS = {"chunk_length_s": 0.125, "overlap": 0.1}
STEREO = {"audio_channels": 2}
LARGE_KIND = {**CENTRED, **GROUPED, **CHUNKS, **STEREO, "normalize": True}

UNUSUAL: dict[str, dict[str, Any]] = {
    "default": {},
    "all kernels of one tap": {
        "kernel_size": 1,
        "last_kernel_size": 1,
        "residual_kernel_size": 1,
    },
    "even kernels": {"kernel_size": 4, "last_kernel_size": 2, "residual_kernel_size": 6},
    "even kernels, centred": {
        **CENTRED,
        "kernel_size": 4,
        "last_kernel_size": 2,
        "residual_kernel_size": 6,
    },
    "long kernels": {"kernel_size": 31, "last_kernel_size": 19, "residual_kernel_size": 9},
    "no residual layers": {"num_residual_layers": 0},
    "two residual layers": {"num_residual_layers": 2},
    "three residual layers": {"num_residual_layers": 3, "dilation_growth_rate": 3},
    "three residual layers, centred": {**CENTRED, "num_residual_layers": 3},
    "no growth of dilation": {"num_residual_layers": 3, "dilation_growth_rate": 1},
    "one ratio": {"upsampling_ratios": [6]},
    "ratios of one": {"upsampling_ratios": [1, 2, 1]},
    "odd ratios": {"upsampling_ratios": [5, 3]},
    "odd ratios, centred": {**CENTRED, "upsampling_ratios": [5, 3]},
    "four ratios": {"upsampling_ratios": [2, 3, 2, 2], "num_filters": 2},
    "compress 1": {"compress": 1},
    "compress 4": {"compress": 4},
    "compress that does not divide": {"compress": 3},
    "trim all left": {"trim_right_ratio": 0.0},
    "trim some left": {"trim_right_ratio": 0.3, "upsampling_ratios": [5, 3]},
    "reflect": {"pad_mode": "reflect"},
    "constant": {"pad_mode": "constant"},
    "replicate": {"pad_mode": "replicate"},
    "constant, centred": {**CENTRED, "pad_mode": "constant"},
    "replicate, centred": {**CENTRED, "pad_mode": "replicate"},
    "no shortcut": {"use_conv_shortcut": False},
    "no shortcut, centred": {**CENTRED, "use_conv_shortcut": False, "num_residual_layers": 2},
    "stereo": STEREO,
    "centred": CENTRED,
    "group norm, causal": GROUPED,
    "group norm, centred": {**GROUPED, **CENTRED},
    "chunks, causal": CHUNKS,
    "chunks without overlap": {"chunk_length_s": 0.125, "overlap": 0.0},
    "chunks of half overlap": {"chunk_length_s": 0.125, "overlap": 0.5},
    "chunks of no whole frames": {"chunk_length_s": 0.13, "overlap": 0.07},
    "chunks shorter than a frame": {"chunk_length_s": 0.005, "overlap": 0.25},
    "normalised": {"normalize": True},
    "normalised stereo": {**STEREO, "normalize": True},
    "normalised chunks": {**CHUNKS, "normalize": True},
    "the 48 kHz kind": LARGE_KIND,
    "two codes": {"codebook_size": 2, "books": (1, 7)},
    "many codes": {"codebook_size": 256},
    "eleven codebooks": {"books": (1, 11)},
    "one lstm layer": {"num_lstm_layers": 1},
    "three lstm layers": {"num_lstm_layers": 3},
    "one latent channel": {"hidden_size": 1},
    "one filter": {"num_filters": 1, "compress": 1},
    "a frame rate that is rounded up": {"sampling_rate": 801},
    "a bandwidth below one codebook": {"target_bandwidths": [0.1, 1.0]},
}


@cache
def _pair(name: str) -> tuple[EncodecModel, transformers.EncodecModel]:
    config = PRESETS[name] if name in PRESETS else tiny_config(**UNUSUAL[name])
    model = random_model(config, seed=len(name))
    return model, hf_twin(model)


def _audio(model: EncodecModel, batch: int, length: int) -> Tensor:
    return speech(batch, model.config.audio_channels, length, seed=length)


def _assert_same(name: str, audio: Tensor, mask: Tensor | None, bandwidth: float | None) -> None:
    """Both encode alike or both cannot, and both decode alike."""
    model, twin = _pair(name)
    with torch.no_grad():
        try:
            codes, scales, padding = hf_encoded(twin, audio, mask, bandwidth)
        except RuntimeError:
            with pytest.raises(InputError, match="cannot be stacked"):
                model.encode(audio, mask, bandwidth)
            return
        ours = model.encode(audio, mask, bandwidth)
        assert ours.audio_codes.dtype == torch.int64
        assert torch.equal(ours.audio_codes, codes)
        assert ours.last_frame_pad_length == padding
        for scale, theirs in zip(ours.audio_scales, scales, strict=True):
            assert (scale is None) == (theirs is None)
            assert scale is None or torch.equal(scale, present(theirs))
        decoded = model.decode(
            ours.audio_codes, ours.audio_scales, mask, last_frame_pad_length=padding
        ).audio_values
        wanted = hf_decoded(twin, codes, scales, mask, padding)
    assert decoded.shape == wanted.shape
    assert float((decoded - wanted).abs().max()) <= bound("transformers audio", "float32")


@pytest.mark.parametrize("name", UNUSUAL)
def test_codes_and_audio_equal_transformers_at_every_length(name: str) -> None:
    model, _ = _pair(name)
    bandwidths = (None, *model.config.target_bandwidths)
    lengths = (1, 2, 7, 8, 9, 40, 101, 191, 333)
    most = 12 * (model.config.chunk_stride or 100)
    for index, length in enumerate(length for length in lengths if length <= most):
        bandwidth = bandwidths[index % len(bandwidths)]
        _assert_same(name, _audio(model, 1, length), None, bandwidth)


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_padded_batch_equals_transformers(name: str) -> None:
    config = _pair(name)[0].config
    extractor = EncodecFeatureExtractor(
        config.audio_channels,
        config.sampling_rate,
        chunk_length_s=config.chunk_length_s,
        overlap=config.overlap,
    )
    longest = min(300, 8 * (config.chunk_stride or 100))
    lengths = (longest, 5, longest // 2 + 3)
    clips = [speech(config.audio_channels, length).squeeze(0).numpy() for length in lengths]
    batch = extractor(clips, return_tensors="pt", sampling_rate=config.sampling_rate)
    audio, mask = batch.input_values, batch.padding_mask
    top = config.target_bandwidths[-1]
    _assert_same(name, audio, mask, top)
    _assert_same(name, audio, mask[:, None].expand(audio.shape).bool(), top)
    # A mask that hides sounding samples, in the middle as well.
    _assert_same(name, _audio(_pair(name)[0], 3, audio.shape[-1]), mask.flip(-1), top)


@pytest.mark.parametrize(
    ("name", "length"),
    [
        *[("encodec_24khz", length) for length in (1, 319, 320, 2240, 12_345)],
        *[("encodec_48khz", length) for length in (1, 321, 48_000, 50_000)],
    ],
)
def test_the_full_models_equal_transformers(name: str, length: int) -> None:
    model, _ = _pair(name)
    batch = 2 if length == 2240 else 1
    mask = torch.ones(batch, length, dtype=torch.int32)
    mask[-1, length // 2 :] = batch == 1
    _assert_same(name, _audio(model, batch, length), mask, model.config.target_bandwidths[-1])


def test_the_decisions_in_these_tests_are_no_trivial_ones() -> None:
    for name in ("default", "the 48 kHz kind", "encodec_24khz", "encodec_48khz"):
        model, _ = _pair(name)
        audio = _audio(model, 1, min(100 * model.config.hop_length, 40_000))
        with torch.no_grad():
            codes = model.encode(audio, bandwidth=model.config.target_bandwidths[-1]).audio_codes
        for book in codes[0, 0]:
            assert len(book.unique()) >= min(10, len(book) // 4)


@pytest.mark.parametrize("name", ["default", "chunks, causal", "the 48 kHz kind"])
def test_forward_equals_transformers(name: str) -> None:
    model, twin = _pair(name)
    audio = _audio(model, 2, 190)
    mask = torch.ones(2, 190)
    with torch.no_grad():
        for arguments in ({}, {"padding_mask": mask, "bandwidth": 0.808}, {"padding_mask": mask}):
            ours, theirs = model(audio, **arguments), twin(audio, **arguments)
            assert torch.equal(ours.audio_codes, theirs.audio_codes)
            torch.testing.assert_close(ours.audio_values, theirs.audio_values, rtol=0, atol=1e-5)
        encoded = model.encode(audio, mask)
        given = {
            "audio_codes": encoded.audio_codes,
            "audio_scales": encoded.audio_scales,
            "last_frame_pad_length": encoded.last_frame_pad_length,
        }
        again = model(audio, mask, **given)
        assert torch.equal(again.audio_codes, encoded.audio_codes)
        assert torch.equal(again.audio_values, twin(audio, mask, **given).audio_values)


def test_results_are_read_as_those_of_transformers() -> None:
    model, twin = _pair("default")
    audio = _audio(model, 1, 100)
    with torch.no_grad():
        for ours, theirs in (
            (model.encode(audio), twin.encode(audio)),
            (model(audio), twin(audio)),
        ):
            assert isinstance(theirs, transformers.utils.generic.ModelOutput)
            assert list(ours) == list(ours.keys()) == list(theirs.keys())
            assert len(ours) == len(theirs)
            for index, name in enumerate(ours):
                assert ours[name] is ours[index] is getattr(ours, name)
            assert [type(part) for part in ours.to_tuple()] == [
                type(part) for part in theirs.to_tuple()
            ]
            assert ours[:2] == ours.to_tuple()[:2]
            with pytest.raises(KeyError):
                ours["nothing"]
            with pytest.raises(IndexError):
                ours[3]
        plain, wanted = (
            model.encode(audio, return_dict=False),
            twin.encode(audio, return_dict=False),
        )
        assert isinstance(plain, tuple)
        assert torch.equal(plain[0], wanted[0])
        assert plain[1:] == wanted[1:] == ([None], 0)
        decoded = model.decode(plain[0], plain[1], return_dict=False)
        assert isinstance(decoded, tuple)
        assert torch.equal(decoded[0], model.decode(plain[0], plain[1])[0])
        both = model(audio, return_dict=False)
        assert isinstance(both, tuple)
        assert [part.shape for part in both] == [
            part.shape for part in twin(audio, return_dict=False)
        ]


def test_a_result_without_scales_skips_their_position() -> None:
    result = modeling_encodec.EncodecOutput(None, torch.ones(1))
    ours = type(_pair("default")[0](torch.zeros(1, 1, 8)))(None, torch.ones(1))
    assert list(ours) == list(result.keys()) == ["audio_values"]
    assert torch.equal(ours[0], result[0])


@pytest.mark.parametrize(
    ("audio", "mask", "reason"),
    [
        (torch.zeros(100), None, r"shape \(100,\); this model takes \[batch, 1, length\]"),
        (torch.zeros(1, 100), None, r"shape \(1, 100\)"),
        (torch.zeros(1, 2, 100), None, r"shape \(1, 2, 100\)"),
        (torch.zeros(1, 1, 0), None, r"shape \(1, 1, 0\)"),
        (torch.zeros(0, 1, 5), None, r"shape \(0, 1, 5\)"),
        (torch.zeros(1, 1, 100, dtype=torch.int16), None, "torch.int16"),
        (torch.full((1, 1, 100), torch.nan), None, "NaN"),
        (torch.full((1, 1, 100), torch.inf), None, "infinite"),
        (torch.zeros(1, 1, 100), torch.ones(100), r"padding_mask of shape \(100,\)"),
        (torch.zeros(1, 1, 100), torch.ones(1, 99), r"padding_mask of shape \(1, 99\)"),
        (torch.zeros(1, 1, 100), torch.ones(2, 100), r"padding_mask of shape \(2, 100\)"),
        (torch.zeros(1, 1, 100), torch.ones(1, 2, 100), r"padding_mask of shape \(1, 2, 100\)"),
    ],
)
def test_audio_that_cannot_be_encoded_is_refused(
    audio: Tensor, mask: Tensor | None, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        _pair("default")[0].encode(audio, mask)


@pytest.mark.parametrize(
    ("codes", "scales", "pad_length", "reason"),
    [
        (torch.zeros(2, 5), [None], 0, r"shape \(2, 5\)"),
        (torch.zeros(1, 1, 2, 5), [None], 0, "type torch.float32"),
        (torch.zeros(1, 1, 5, 5).long(), [None], 0, "1 to 4 codebooks"),
        (torch.zeros(1, 1, 0, 5).long(), [None], 0, "1 to 4 codebooks"),
        (torch.zeros(1, 1, 2, 0).long(), [None], 0, r"shape \(1, 1, 2, 0\)"),
        (torch.zeros(0, 1, 2, 5).long(), [], 0, r"shape \(0, 1, 2, 5\)"),
        (torch.full((1, 1, 2, 5), 16), [None], 0, "codes from 16 to 16; a codebook has 0 to 15"),
        (torch.full((1, 1, 2, 5), -1), [None], 0, "codes from -1 to -1"),
        (torch.zeros(1, 1, 2, 5).long(), [None, None], 0, "1 chunks of codes but 2 scales"),
        (torch.zeros(2, 1, 2, 5).long(), [None, None], 0, "a model without chunks has one"),
        (torch.zeros(1, 1, 2, 5).long(), [None], 5, "last_frame_pad_length=5 of 5 frames"),
        (torch.zeros(1, 1, 2, 5).long(), [None], -1, "last_frame_pad_length=-1"),
    ],
)
def test_codes_that_cannot_be_decoded_are_refused(
    codes: Tensor, scales: list[None], pad_length: int, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        _pair("default")[0].decode(codes, scales, last_frame_pad_length=pad_length)


def test_arguments_that_contradict_are_refused() -> None:
    model, _ = _pair("default")
    audio = torch.zeros(1, 1, 100)
    with pytest.raises(ConfigError, match=r"bandwidth 6\.5 kbps"):
        model.encode(audio, bandwidth=6.5)
    codes = model.encode(audio).audio_codes
    with pytest.raises(InputError, match="pass both or neither"):
        model(audio, audio_codes=codes)
    with pytest.raises(InputError, match="pass both or neither"):
        model(audio, audio_scales=[None])
    normalised, _ = _pair("normalised")
    with pytest.raises(InputError, match="pass the audio_scales"):
        normalised.decode(codes, None)
    config = tiny_config()
    config.kernel_size = 0
    with pytest.raises(ConfigError, match="kernel_size=0"):
        EncodecModel(config)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.uint16])
def test_codes_of_any_whole_type_decode_alike(dtype: torch.dtype) -> None:
    model, _ = _pair("default")
    with torch.no_grad():
        encoded = model.encode(_audio(model, 1, 100))
        wanted = model.decode(encoded.audio_codes, encoded.audio_scales)[0]
        assert torch.equal(model.decode(encoded.audio_codes.to(dtype), [None])[0], wanted)


@pytest.mark.parametrize("name", ["default", "no shortcut, centred", "the 48 kHz kind"])
def test_gradients_reach_every_weight_as_in_transformers(name: str) -> None:
    model, twin = _pair(name)
    audio = _audio(model, 2, 160)
    for half in (model, twin):
        half.zero_grad()
        # Past the quantiser, which has no gradient.
        half.decoder(half.encoder(audio)).pow(2).mean().backward()
    for (key, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None, key
        assert theirs.grad is not None, key
        assert bool(ours.grad.any()), key
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7, msg=key)


def test_a_model_can_be_trained_on_what_it_decodes() -> None:
    model = random_model(tiny_config()).train()
    audio = speech(2, 1, 160)
    optimizer = torch.optim.SGD(model.decoder.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(audio).audio_values, audio)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_the_model_is_where_and_what_its_weights_are() -> None:
    model = EncodecModel(tiny_config())
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert (model.to("meta").device.type, model.double().dtype) == ("meta", torch.float64)


def test_a_new_model_has_the_names_and_shapes_of_transformers() -> None:
    for config in (PRESETS["encodec_48khz"], tiny_config(num_residual_layers=2)):
        model = EncodecModel(config)
        ours, theirs = model.state_dict(), hf_twin(model).state_dict()
        assert {name: value.shape for name, value in ours.items()} == {
            name: value.shape for name, value in theirs.items()
        }


@given(
    length=st.integers(1, 40),
    left=st.integers(0, 50),
    right=st.integers(0, 50),
    mode=st.sampled_from(PAD_MODES),
)
@settings(max_examples=100, deadline=None)
def test_padding_equals_transformers(length: int, left: int, right: int, mode: str) -> None:
    x = torch.randn(2, 3, length)
    wanted = modeling_encodec.EncodecConv1d._pad1d(x, (left, right), mode)
    assert torch.equal(pad1d(x, left, right, mode=mode), wanted)


@given(
    count=st.integers(1, 6),
    length=st.integers(2, 50),
    last=st.integers(1, 50),
    stride=st.integers(1, 50),
)
@settings(max_examples=100, deadline=None)
def test_overlap_add_equals_transformers(count: int, length: int, last: int, stride: int) -> None:
    stride, last = min(stride, length), min(last, length)
    # Where the last chunk ends before the one before it, transformers fails.
    assume(count == 1 or stride + last >= length)
    chunks = [torch.randn(2, 1, length) for _ in range(count - 1)] + [torch.randn(2, 1, last)]
    wanted = transformers.EncodecModel._linear_overlap_add(chunks, stride)
    assert torch.equal(overlap_add(chunks, stride), wanted)


def test_overlap_add_takes_a_last_chunk_that_ends_before_the_others() -> None:
    chunks = [torch.ones(1, 1, 40), torch.ones(1, 1, 40), torch.ones(1, 1, 16)]
    torch.testing.assert_close(overlap_add(chunks, 20), torch.ones(1, 1, 60))
    model, _ = _pair("chunks of half overlap")
    stride = present(model.config.chunk_stride)
    length = 3 * stride + 47
    with torch.no_grad():
        audio = model(_audio(model, 1, length)).audio_values
    assert audio.shape[-1] == length
    assert bool(audio.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["default", "stereo", "normalised", "the 48 kHz kind"])
def test_another_type_gives_what_transformers_gives(name: str, dtype: torch.dtype) -> None:
    model, twin = copy.deepcopy(_pair(name))
    model.to(dtype)
    twin.to(dtype)  # type: ignore[arg-type]
    audio = _audio(model, 1, 300).to(dtype)
    with torch.no_grad():
        encoded, (codes, scales, _) = model.encode(audio), hf_encoded(twin, audio)
        assert torch.equal(encoded.audio_codes, codes)
        ours = model.decode(*encoded.to_tuple()[:2])[0]
        theirs = hf_decoded(twin, codes, scales)
    assert ours.dtype == theirs.dtype == dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_chunks_too_long_for_a_coarse_type_are_refused_as_transformers_does(
    dtype: torch.dtype,
) -> None:
    for length in (100, 100_000):
        chunk = torch.ones(1, 1, length, dtype=dtype)
        try:
            wanted = transformers.EncodecModel._linear_overlap_add([chunk], length)
        except ValueError:
            assert length == 100_000
            with pytest.raises(InputError, match=rf"in {dtype}, .*; use model\.float\(\)"):
                overlap_add([chunk], length)
        else:
            assert length == 100
            assert torch.equal(overlap_add([chunk], length), wanted)
    overlap_add([torch.ones(1, 1, 100_000)], 100_000)


def test_silence_is_refused_where_its_loudness_is_zero() -> None:
    model = copy.deepcopy(_pair("normalised")[0])
    silence = torch.zeros(1, 1, 100)
    assert model(silence).audio_values.isfinite().all()
    assert model.bfloat16()(silence.bfloat16()).audio_values.isfinite().all()
    with pytest.raises(InputError, match=r"loudness .* zero in torch\.float16"):
        model.half().encode(silence.half())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_audio_of_another_type_than_the_weights_is_refused(dtype: torch.dtype) -> None:
    model, _ = _pair("default")
    with pytest.raises(InputError, match=rf"type {dtype}; .* torch\.float32"):
        model.encode(_audio(model, 1, 100).to(dtype))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def _default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default float64": partial(_default_dtype, torch.float64),
    "default bfloat16": partial(_default_dtype, torch.bfloat16),
    "default device": partial(_default_device, "meta"),
    "autocast": partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", ["default", "the 48 kHz kind"])
def test_what_a_program_sets_for_itself_changes_nothing(
    around: str, name: str, tmp_path: Path
) -> None:
    model, _ = _pair(name)
    config = model.config
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    (tmp_path / "pickled").mkdir()
    config.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    needed = {
        key: value
        for key, value in model.state_dict().items()
        if not key.endswith(("inited", "cluster_size", "embed_avg"))
    }
    (tmp_path / "needed").mkdir()
    config.save_pretrained(tmp_path / "needed")
    save_file(needed, tmp_path / "needed" / "model.safetensors")
    audio = _audio(model, 2, 150)
    extractor = EncodecFeatureExtractor(config.audio_channels, config.sampling_rate)
    clips = [clip.squeeze(0).numpy() for clip in audio]
    with torch.no_grad():
        wanted = model(audio)
    with AROUND[around](), torch.no_grad():
        batch = extractor(clips, sampling_rate=config.sampling_rate, return_tensors="pt")
        given = model(batch.input_values, batch.padding_mask)
        encoded = model.encode(audio)
        codes, scales, padding = encoded.to_tuple()
        again = model.decode(codes, scales, last_frame_pad_length=padding).audio_values
        loaded = [EncodecModel.from_pretrained(path) for path in sorted(tmp_path.iterdir())]
        fresh = EncodecModel(config)
        given_loaded = loaded[0](audio)
    assert torch.equal(batch.input_values, audio)
    for values in (given, given_loaded):
        assert torch.equal(values.audio_codes, wanted.audio_codes)
        assert values.audio_values.dtype == torch.float32
        assert torch.equal(values.audio_values, wanted.audio_values)
    assert torch.equal(again[..., :150], wanted.audio_values)
    for made in (*loaded, fresh):
        for key, value in made.state_dict().items():
            assert (value.dtype, value.device.type) == (torch.float32, "cpu"), key
            assert made is fresh or not value.is_inference(), key
    for path, made in zip(sorted(tmp_path.iterdir()), loaded, strict=True):
        for key, value in needed.items():
            assert torch.equal(made.state_dict()[key], value), (path.name, key)


def test_a_model_is_trained_in_full_precision_under_autocast() -> None:
    model = random_model(tiny_config()).train()
    audio = _audio(model, 1, 160)
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            model(audio).audio_values.pow(2).mean().backward()
        gradients.append(
            [present(parameter.grad).clone() for parameter in model.decoder.parameters()]
        )
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


ATTRIBUTES = (
    "base_model_prefix", "bits_per_codebook", "can_generate", "config.chunk_length",
    "config.codebook_nbits", "config.codebook_size", "config.frame_rate", "config.hop_length",
    "config.is_encoder_decoder", "config.model_type", "config.num_quantizers",
    "config.output_hidden_states", "config.return_dict", "config.sampling_rate", "decoder.layers",
    "device", "dtype", "encoder.layers", "get_decoder", "get_encoder", "main_input_name",
    "num_parameters", "quantizer.codebook_size", "quantizer.frame_rate", "quantizer.layers",
    "quantizer.num_quantizers", "supports_gradient_checkpointing",
)  # fmt: skip


def test_attributes_that_programs_read_are_those_of_transformers() -> None:
    model, twin = _pair("default")
    for path in ATTRIBUTES:
        ours, theirs = attrgetter(path)(model), attrgetter(path)(twin)
        if callable(ours) and not isinstance(ours, nn.Module):
            ours, theirs = ours(), theirs()
        if isinstance(ours, nn.Module):
            assert len(list(ours.parameters())) == len(list(theirs.parameters())), path
        else:
            assert ours == theirs, path
    frozen, twin_of_it = copy.deepcopy(model), copy.deepcopy(twin)
    for half in (frozen, twin_of_it):
        half.get_encoder().requires_grad_(False)
    assert frozen.num_parameters(only_trainable=True) == twin_of_it.num_parameters(True)
    assert frozen.num_parameters(only_trainable=True) < frozen.num_parameters()
    assert frozen.config.use_return_dict


def test_a_model_knows_where_it_came_from(tmp_path: Path) -> None:
    model, _ = _pair("default")
    assert (model.name_or_path, model.config.dtype) == ("", None)
    model.save_pretrained(tmp_path)
    loaded = EncodecModel.from_pretrained(tmp_path)
    theirs = transformers.EncodecModel.from_pretrained(tmp_path)
    assert loaded.name_or_path == theirs.name_or_path == str(tmp_path)
    assert loaded.config.name_or_path == str(tmp_path)
    assert loaded.config == model.config
    assert EncodecModel.from_pretrained("default").name_or_path == "default"


def test_what_only_transformers_does_is_refused_in_one_sentence() -> None:
    model, _ = _pair("default")
    with pytest.raises(ConfigError, match="gradient checkpointing"):
        model.gradient_checkpointing_enable()
    with pytest.raises(ConfigError, match="hf upload me/model"):
        model.push_to_hub("me/model")
    for dtype in (None, torch.float16, "bfloat16"):
        built = EncodecModel._from_config(model.config, dtype=dtype)
        built.post_init()
        assert str(built.dtype) == f"torch.{str(dtype or 'float32').removeprefix('torch.')}"
