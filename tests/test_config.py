"""EncodecConfig: the same file, fields and derived integers as transformers, and no nonsense."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from encodec_rt.config import NORM_TYPES, PAD_MODES, PRESETS, EncodecConfig
from encodec_rt.errors import ConfigError, WeightsError
from tests.support.models import tiny_config

NAMES = [field.name for field in fields(EncodecConfig)]
DERIVED = (
    "chunk_length",
    "chunk_stride",
    "hop_length",
    "frame_rate",
    "codebook_nbits",
    "num_quantizers",
)
HUB_STYLE = {
    "_name_or_path": "./encodec_24khz",
    "architectures": ["EncodecModel"],
    "model_type": "encodec",
    "torch_dtype": "float32",
    "transformers_version": "4.31.0.dev0",
    "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0],
    "trim_right_ratio": 1.0,
    "use_causal_conv": True,
}


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Values of all fields that go together."""
    causal = draw(st.booleans())
    ratios = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    filters = draw(st.integers(1, 64))
    chunked = draw(st.booleans())
    rate = draw(st.integers(1, 192_000))
    bits = draw(st.integers(1, 16))
    frame_rate = math.ceil(rate / math.prod(ratios))
    books = draw(st.lists(st.integers(1, 64), min_size=1, max_size=5, unique=True))
    overlap = st.floats(0.0, 0.99)
    return {
        "target_bandwidths": [book * bits * frame_rate * 1.01e-3 for book in sorted(books)],
        "sampling_rate": rate,
        "audio_channels": draw(st.integers(1, 2)),
        "normalize": draw(st.booleans()),
        "chunk_length_s": draw(st.floats(1.01 / rate, 1e4)) if chunked else None,
        "overlap": draw(overlap if chunked else st.none() | overlap),
        "hidden_size": (hidden := draw(st.integers(1, 512))),
        "num_filters": filters,
        "num_residual_layers": draw(st.integers(0, 4)),
        "upsampling_ratios": ratios,
        "norm_type": draw(st.sampled_from(NORM_TYPES)),
        "kernel_size": draw(st.integers(1, 15)),
        "last_kernel_size": draw(st.integers(1, 15)),
        "residual_kernel_size": draw(st.integers(1, 7)),
        "dilation_growth_rate": draw(st.integers(1, 5)),
        "use_causal_conv": causal,
        "pad_mode": draw(st.sampled_from(PAD_MODES)),
        "compress": draw(st.integers(1, filters)),
        "num_lstm_layers": draw(st.integers(1, 4)),
        "trim_right_ratio": draw(st.floats(0, 1)) if causal else 1.0,
        "codebook_size": 2**bits,
        "codebook_dim": draw(st.sampled_from([None, hidden])),
        "use_conv_shortcut": draw(st.booleans()),
    }


def test_the_defaults_are_those_of_transformers() -> None:
    theirs = transformers.EncodecConfig()
    for name in (*NAMES, *DERIVED):
        assert getattr(EncodecConfig(), name) == getattr(theirs, name), name
    assert PRESETS["encodec_24khz"] == EncodecConfig()


def test_the_presets_are_the_models_of_the_paper() -> None:
    small, large = PRESETS["encodec_24khz"], PRESETS["encodec_48khz"]
    assert (small.hop_length, small.frame_rate, small.num_quantizers) == (320, 75, 32)
    assert (large.hop_length, large.frame_rate, large.num_quantizers) == (320, 150, 16)
    assert (large.chunk_length, large.chunk_stride) == (48_000, 47_520)
    assert [small.codebooks_for(kbps) for kbps in small.target_bandwidths] == [2, 4, 8, 16, 32]
    assert [large.codebooks_for(kbps) for kbps in large.target_bandwidths] == [2, 4, 8, 16]


@given(configs())
@settings(max_examples=150, deadline=None)
def test_any_config_equals_the_one_of_transformers(values: dict[str, Any]) -> None:
    ours, theirs = EncodecConfig(**values), transformers.EncodecConfig(**values)
    for name in NAMES:
        mine, wanted = getattr(ours, name), getattr(theirs, name)
        assert mine == (tuple(wanted) if isinstance(wanted, list) else wanted), name
    for name in DERIVED:
        assert getattr(ours, name) == getattr(theirs, name), name


@given(configs())
@settings(max_examples=50, deadline=None)
def test_a_config_survives_its_file(values: dict[str, Any]) -> None:
    config = EncodecConfig(**values)
    text = json.dumps(config.to_dict())
    assert EncodecConfig.from_dict(json.loads(text)) == config
    theirs = transformers.EncodecConfig.from_dict(json.loads(text))
    assert EncodecConfig.from_dict(json.loads(theirs.to_json_string(use_diff=False))) == config


@pytest.mark.parametrize("name", PRESETS)
def test_a_saved_config_loads_in_transformers_and_back(name: str, tmp_path: Path) -> None:
    PRESETS[name].save_pretrained(tmp_path / "ours")
    theirs = transformers.EncodecConfig.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for source in (
        tmp_path / "theirs",
        str(tmp_path / "theirs"),
        tmp_path / "theirs" / "config.json",
    ):
        assert EncodecConfig.from_pretrained(source) == PRESETS[name]
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {"config.json"}


def test_a_file_as_the_hub_has_it_is_read() -> None:
    assert EncodecConfig.from_dict(HUB_STYLE) == EncodecConfig()


def test_whole_numbers_stand_for_floats() -> None:
    config = tiny_config(chunk_length_s=1, overlap=0, trim_right_ratio=1, target_bandwidths=[2])
    assert (config.chunk_length_s, config.overlap, config.trim_right_ratio) == (1.0, 0.0, 1.0)
    assert config.target_bandwidths == (2.0,)
    transformers.EncodecConfig.from_dict(config.to_dict())


def test_a_bandwidth_below_one_codebook_takes_one() -> None:
    config = EncodecConfig(target_bandwidths=(0.3, 1.5))
    assert (config.codebooks_for(0.3), config.codebooks_for(1.5)) == (1, 2)


@pytest.mark.parametrize("bandwidth", [0.0, 5.0, -1.5, math.nan, 48.0])
def test_a_bandwidth_that_the_model_lacks_is_refused(bandwidth: float) -> None:
    with pytest.raises(ConfigError, match=r"this model has 1.5, 3, 6, 12, 24"):
        EncodecConfig().codebooks_for(bandwidth)


NO_WHOLE_NUMBERS = (-1, 1.5, "7", None, True, [3], 2**31, 10**400, math.nan)
IMPOSSIBLE: dict[str, tuple[Any, ...]] = {
    "target_bandwidths": (
        (), [0.0], [-1.5], [math.nan], [math.inf], [1e308], [10**400], ["6"], [True], 6.0, None,
        [6.0, 3.0], [3.0, 3.0], [0.7], [1e7],
    ),
    "sampling_rate": (0, *NO_WHOLE_NUMBERS),
    "audio_channels": (0, 3, *NO_WHOLE_NUMBERS),
    "normalize": (1, "yes", None),
    "chunk_length_s": (0.0, -1.0, 1e-9, math.nan, math.inf, 1e30, 10**400, "1", [1.0], True),
    "overlap": (-0.1, 1.0, 1.5, math.nan, math.inf, "0.1", True, None),
    "hidden_size": (0, *NO_WHOLE_NUMBERS),
    "num_filters": (0, 2**30, *NO_WHOLE_NUMBERS),
    "num_residual_layers": NO_WHOLE_NUMBERS,
    "upsampling_ratios": (
        (), [0, 2], [-2], [2.0], ["2"], [True], [None], 8, None, "84", [2**31], [2**20, 2**20],
        [1] * 31, [1] * 29, [10**400],
    ),
    "norm_type": ("batch_norm", "", None, 1),
    "kernel_size": (0, *NO_WHOLE_NUMBERS),
    "last_kernel_size": (0, *NO_WHOLE_NUMBERS),
    "residual_kernel_size": (0, *NO_WHOLE_NUMBERS),
    "dilation_growth_rate": (0, *NO_WHOLE_NUMBERS),
    "use_causal_conv": (1, "yes", None),
    "pad_mode": ("circular", "zero", "", None, 0),
    "compress": (0, 33, *NO_WHOLE_NUMBERS),
    "num_lstm_layers": (0, *NO_WHOLE_NUMBERS),
    "trim_right_ratio": (-0.1, 1.1, math.nan, math.inf, "1", None, True),
    "codebook_size": (0, 1, 1000, *NO_WHOLE_NUMBERS),
    "codebook_dim": (0, 64, -1, 1.5, "7", True),
    "use_conv_shortcut": (1, "yes", None),
}  # fmt: skip


def test_every_field_has_impossible_values_to_refuse() -> None:
    assert set(IMPOSSIBLE) == set(NAMES)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in IMPOSSIBLE.items() for value in values]
)
def test_an_impossible_value_is_refused_in_one_sentence(name: str, value: Any) -> None:
    with_chunks = {"chunk_length_s": 1.0, "overlap": 0.01}
    with pytest.raises(ConfigError) as refused:
        EncodecConfig(**{**with_chunks, name: value})
    message = str(refused.value)
    assert name in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"use_causal_conv": False, "trim_right_ratio": 0.5}, "use_causal_conv=false"),
        ({"codebook_dim": 64, "hidden_size": 128}, "codebook_dim=64 differs from hidden_size=128"),
        ({"chunk_length_s": 1.0}, "without overlap"),
        ({"compress": 9, "num_filters": 8}, "leaves no channel of num_filters=8"),
        ({"dilation_growth_rate": 2, "num_residual_layers": 32}, "num_residual_layers=32"),
        ({"dilation_growth_rate": 10**9, "num_residual_layers": 10**9}, "num_residual_layers=10"),
        ({"target_bandwidths": [0.5]}, "take 0 codebooks at 0.75 kbps each"),
    ],
)
def test_impossible_combinations_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        EncodecConfig(**values)


def test_without_residual_layers_their_fields_are_free() -> None:
    tiny_config(num_residual_layers=0, compress=99, dilation_growth_rate=2**31 - 1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a readable JSON"),
        (b'{"hidden_size": 12', "not a readable JSON"),
        (b"\xff\xfe{}", "not a readable JSON"),
        (b"[" * 100_000, "not a readable JSON"),
        (b'{"hidden_size": ' + b"1" * 5000 + b"}", "not a readable JSON"),
        (b"[1, 2]", "not hold a JSON object"),
        (b'{"model_type": "mimi"}', "'mimi'; this package runs 'encodec'"),
        (b'{"hidden_size": "wide"}', "hidden_size='wide'"),
    ],
)
def test_a_bad_file_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        EncodecConfig.from_pretrained(tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        EncodecConfig.from_pretrained(tmp_path)


def test_fields_given_at_loading_replace_the_stored_ones(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path / "sub")
    given: dict[str, Any] = {"pad_mode": "constant", "num_filters": 2, "subfolder": "sub"}
    ours = EncodecConfig.from_pretrained(tmp_path, **given, cache_dir=None, trust_remote_code=True)
    assert ours == tiny_config(pad_mode="constant", num_filters=2)
    theirs = transformers.EncodecConfig.from_pretrained(tmp_path, **given)
    assert (theirs.pad_mode, theirs.num_filters) == (ours.pad_mode, ours.num_filters)
    assert EncodecConfig.from_pretrained(tmp_path / "sub" / "config.json") == tiny_config()
    for arguments, reason in (
        ({"pad_mod": "constant"}, "no argument 'pad_mod'"),
        ({"pad_mode": "mirror"}, "pad_mode='mirror'"),
        ({"return_unused_kwargs": True}, "return_unused_kwargs=True"),
    ):
        with pytest.raises(ConfigError, match=reason):
            EncodecConfig.from_pretrained(tmp_path / "sub", **arguments)
    with pytest.raises(ConfigError, match="push_to_hub=True"):
        tiny_config().save_pretrained(tmp_path, push_to_hub=True)


def test_the_type_of_the_weights_is_kept_and_is_no_part_of_the_architecture() -> None:
    for written in ({"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}):
        config = EncodecConfig.from_dict({**HUB_STYLE, **written, "torch_dtype": "bfloat16"})
        assert config.dtype == config.torch_dtype == torch.bfloat16
        assert config == EncodecConfig()
        again = EncodecConfig.from_dict(json.loads(config.to_json_string()))
        assert again.dtype == torch.bfloat16
        theirs = transformers.EncodecConfig.from_dict(json.loads(config.to_json_string()))
        assert str(theirs.dtype).removeprefix("torch.") == "bfloat16"
    for nonsense in ("load", "", 3, None, ["float32"]):
        assert EncodecConfig.from_dict({"dtype": nonsense}).dtype is None
    assert "dtype" not in EncodecConfig().to_json_string()


def test_attributes_of_every_configuration_are_those_of_transformers() -> None:
    ours, theirs = EncodecConfig(), transformers.EncodecConfig()
    for name in ("model_type", "is_encoder_decoder", "output_hidden_states", "return_dict"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.name_or_path, theirs.name_or_path) == ("", "")
