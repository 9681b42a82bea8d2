"""EncodecFeatureExtractor gives what transformers' class of the same name gives."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import sys
import types
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import encodec_rt
from encodec_rt import AutoProcessor, EncodecFeatureExtractor
from encodec_rt.errors import ConfigError, InputError, WeightsError
from tests.support.models import hf_encoded, hf_twin, random_model, speech, tiny_config

WHOLE: dict[str, Any] = {"feature_size": 1, "sampling_rate": 800}
CHUNKED: dict[str, Any] = {
    "feature_size": 2,
    "sampling_rate": 800,
    "chunk_length_s": 0.5,
    "overlap": 0.1,
}
KINDS: dict[str, dict[str, Any]] = {
    "mono": WHOLE,
    "stereo": {**WHOLE, "feature_size": 2},
    "mono chunks": {**CHUNKED, "feature_size": 1},
    "stereo chunks": CHUNKED,
    "left": {**WHOLE, "padding_side": "left", "padding_value": 0.25},
    "stereo left": {**CHUNKED, "padding_side": "left", "padding_value": -1.0},
}


def _clips(channels: int, lengths: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (2,) if channels == 2 else ()
    return [rng.standard_normal((*shape, length)) for length in lengths]


def _call(extractor: Any, *args: Any, **kwargs: Any) -> tuple[str, Any]:
    try:
        return "result", extractor(*args, **kwargs)
    except (ValueError, TypeError) as error:
        return "refused", error


def _assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for mine, wanted in zip(ours, theirs, strict=True):
            _assert_same(mine, wanted)
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    elif ours.dtype == object:
        _assert_same(list(ours), list(theirs))
    else:
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "lengths", [(1,), (799,), (360,), (400,), (401,), (1200, 500, 801), (90, 100)]
)
def test_every_way_of_padding_equals_transformers(kind: str, lengths: tuple[int, ...]) -> None:
    ours = EncodecFeatureExtractor(**KINDS[kind])
    theirs = transformers.EncodecFeatureExtractor(**KINDS[kind])
    clips = _clips(ours.feature_size, lengths)
    paddings = (None, True, False, "longest", "max_length", "do_not_pad")
    seen = set()
    for padding, truncation, max_length, kind_of_tensor in product(
        paddings, (False, True), (None, 1, 600), (None, "np", "pt")
    ):
        arguments: dict[str, Any] = {
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "return_tensors": kind_of_tensor,
            "sampling_rate": 800,
        }
        verdict, mine = _call(ours, clips, **arguments)
        wanted_verdict, wanted = _call(theirs, clips, **arguments)
        assert verdict == wanted_verdict, (arguments, mine, wanted)
        seen.add(verdict)
        if verdict == "refused":
            assert isinstance(mine, InputError)
            continue
        assert list(mine) == list(wanted), arguments
        for name in wanted:
            _assert_same(mine[name], wanted[name])
    assert seen == {"result", "refused"}


@pytest.mark.parametrize(
    "audio",
    [
        [0.5, -0.25, 1.0],
        (0.5, -0.25, 1.0),
        np.array([0.5, -0.25], np.float32),
        np.array([0.5, -0.25], np.float64),
        np.array([5, -25, 3], np.int16),
        [[0.5, 1.0], [0.25]],
        [np.array([5, -25, 3], np.int16), np.array([1.0])],
        torch.tensor([0.5, -0.25]),
        np.zeros((1, 5)),
        np.zeros((5, 1)),
        np.zeros((1, 1, 5)),
        [[[0.5], [1.0]]],
        "noise",
        [],
        np.float32(1.0),
        [[1.0, 2.0], "noise"],
    ],
    ids=repr,
)
def test_every_kind_of_mono_audio_is_taken_or_refused_as_transformers_does(audio: Any) -> None:
    ours, theirs = EncodecFeatureExtractor(**WHOLE), transformers.EncodecFeatureExtractor(**WHOLE)
    try:
        wanted = theirs(audio, sampling_rate=800, return_tensors="pt")
    except (ValueError, IndexError):
        with pytest.raises(InputError):
            ours(audio, sampling_rate=800, return_tensors="pt")
        return
    mine = ours(audio, sampling_rate=800, return_tensors="pt")
    for name in wanted:
        _assert_same(mine[name], wanted[name])


@pytest.mark.parametrize("audio", [np.zeros(5), np.zeros((5, 2)), np.zeros((1, 5)), np.zeros(2)])
def test_what_is_not_stereo_is_refused(audio: np.ndarray) -> None:
    with pytest.raises(InputError, match="stereo"):
        EncodecFeatureExtractor(feature_size=2)(audio, sampling_rate=24_000)


def test_a_wrong_rate_is_refused_and_a_missing_one_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    extractor = EncodecFeatureExtractor()
    with pytest.raises(InputError, match="16000 Hz; this model takes 24000 Hz"):
        extractor(np.zeros(10), sampling_rate=16_000)
    with caplog.at_level(logging.WARNING, logger="encodec_rt.features"):
        extractor(np.zeros(10), sampling_rate=24_000)
        assert not caplog.records
        extractor(np.zeros(10))
    assert "sampling_rate" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_way_of_padding_is_refused(kind: str) -> None:
    extractor = EncodecFeatureExtractor(**KINDS[kind])
    with pytest.raises(InputError, match="'nonsense'; accepted: True, False, 'longest'"):
        extractor(_clips(extractor.feature_size, (3,)), padding="nonsense", sampling_rate=800)


def test_unknown_tensors_are_refused() -> None:
    with pytest.raises(InputError, match="'tf'; accepted"):
        EncodecFeatureExtractor()(np.zeros(10), sampling_rate=24_000, return_tensors="tf")


def test_a_result_is_read_by_name_and_by_attribute_and_is_moved() -> None:
    batch = EncodecFeatureExtractor()(np.zeros(10), sampling_rate=24_000, return_tensors="pt")
    assert set(batch) == {"input_values", "padding_mask"}
    assert batch.input_values is batch["input_values"]
    with pytest.raises(AttributeError, match="nothing"):
        _ = batch.nothing
    assert dict(**batch).keys() == batch.keys()
    assert pickle.loads(pickle.dumps(batch)).input_values.shape == (1, 1, 10)
    assert copy.copy(batch).padding_mask.shape == (1, 10)
    moved = batch.to("meta")
    assert moved is batch
    assert moved.input_values.device.type == moved.padding_mask.device.type == "meta"
    typed = EncodecFeatureExtractor()(np.zeros(10), sampling_rate=24_000, return_tensors="pt")
    typed.to(torch.float16)
    assert typed.input_values.dtype == torch.float16
    assert typed.padding_mask.dtype == torch.int32
    lists = EncodecFeatureExtractor()(np.zeros(10), sampling_rate=24_000)
    assert isinstance(lists.to(device="cpu").input_values, list)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_extractor_loads_in_transformers_and_back(kind: str, tmp_path: Path) -> None:
    ours = EncodecFeatureExtractor(**KINDS[kind])
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.EncodecFeatureExtractor.from_pretrained(tmp_path / "ours")
    assert theirs.to_dict() == ours.to_dict()
    theirs.save_pretrained(tmp_path / "theirs")
    for source in (tmp_path / "theirs", str(tmp_path / "theirs")):
        assert AutoProcessor.from_pretrained(source).to_dict() == ours.to_dict()
    assert ours.chunk_length == theirs.chunk_length
    assert ours.chunk_stride == theirs.chunk_stride


def test_an_extractor_follows_from_the_model_where_none_was_saved(tmp_path: Path) -> None:
    config = tiny_config(audio_channels=2, chunk_length_s=0.5, overlap=0.1, normalize=True)
    config.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).to_dict() == (
        EncodecFeatureExtractor(**CHUNKED).to_dict()
    )


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, "WhisperFeatureExtractor"),
        ({"feature_size": 3}, "feature_size=3"),
        ({"sampling_rate": "fast"}, "sampling_rate='fast'"),
        ({"padding_value": None}, "padding_value=None"),
        ({"chunk_length_s": [1]}, r"chunk_length_s=\[1\]"),
        ({"overlap": float("nan")}, "overlap=nan"),
        ({"padding_side": "top"}, "padding_side='top'"),
    ],
)
def test_an_impossible_saved_extractor_is_refused(
    values: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=reason):
        EncodecFeatureExtractor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"chunk_length_s": 1.0, "overlap": 0.1},
        {"padding_side": "left", "use_fast": True},
        {"local_files_only": True, "token": None, "cache_dir": "x", "revision": "main"},
        {"feature_size": 2, "trust_remote_code": False},
    ],
)
def test_arguments_replace_what_is_stored_as_in_transformers(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    EncodecFeatureExtractor(**WHOLE).save_pretrained(tmp_path, push_to_hub=False)
    theirs = transformers.EncodecFeatureExtractor.from_pretrained(tmp_path, **arguments)
    ours = AutoProcessor.from_pretrained(tmp_path, **arguments)
    assert {name: theirs.to_dict()[name] for name in ours.to_dict()} == ours.to_dict()
    assert ours.chunk_stride == theirs.chunk_stride
    assert json.loads(ours.to_json_string()) == ours.to_dict()
    tiny_config().save_pretrained(tmp_path / "model")
    followed = AutoProcessor.from_pretrained(tmp_path, subfolder="model", **arguments)
    assert followed.to_dict() == ours.to_dict()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"return_unused_kwargs": True}, "return_unused_kwargs=True"),
        ({"padding_sid": "left"}, "no argument 'padding_sid'"),
        ({"feature_size": 5}, "feature_size=5"),
    ],
)
def test_other_arguments_are_refused_by_name(
    arguments: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    EncodecFeatureExtractor(**WHOLE).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=reason):
        AutoProcessor.from_pretrained(tmp_path, **arguments)
    with pytest.raises(ConfigError, match="push_to_hub=True"):
        EncodecFeatureExtractor().save_pretrained(tmp_path, push_to_hub=True)
    with pytest.raises(InputError, match="no argument 'colour'"):
        EncodecFeatureExtractor()(np.zeros(3), sampling_rate=24_000, colour="red")


def test_tensors_go_to_a_device_and_a_mask_can_be_left_out() -> None:
    extractor = EncodecFeatureExtractor()
    given: dict[str, Any] = {"sampling_rate": 24_000, "return_tensors": "pt"}
    batch = extractor(np.zeros(10), device="meta", **given)
    assert batch.input_values.device.type == batch.padding_mask.device.type == "meta"
    assert list(extractor(np.zeros(10), return_attention_mask=False, **given)) == ["input_values"]
    with pytest.raises(InputError, match="device='cpu' is for tensors"):
        extractor(np.zeros(10), sampling_rate=24_000, device="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_padded_as_transformers_pads_them(kind: str) -> None:
    ours = EncodecFeatureExtractor(**KINDS[kind])
    theirs = transformers.EncodecFeatureExtractor(**KINDS[kind])
    seen = set()
    for padding, truncation, max_length, multiple, mask, kind_of_tensor in product(
        (True, False, "longest", "max_length"),
        (False, True),
        (None, 50),
        (None, 32),
        (None, False),
        (None, "np", "pt"),
    ):
        arguments: dict[str, Any] = {
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "pad_to_multiple_of": multiple,
            "return_attention_mask": mask,
            "return_tensors": kind_of_tensor,
        }
        for lengths in ((70,), (70, 31), (40, 40)):
            clips = [clip.T for clip in _clips(ours.feature_size, lengths)]
            examples = [{"input_values": clip} for clip in clips]
            verdict, mine = _call(ours.pad, {"input_values": list(clips)}, **arguments)
            wanted_verdict, wanted = _call(theirs.pad, {"input_values": clips}, **arguments)
            assert verdict == wanted_verdict, (arguments, lengths, mine, wanted)
            seen.add(verdict)
            if verdict == "refused":
                assert isinstance(mine, InputError)
                continue
            for found in (mine, ours.pad(examples, **arguments)):
                assert set(found) == set(wanted), arguments
                for name in wanted:
                    _assert_same(found[name], wanted[name])
    assert seen == {"result", "refused"}


def test_a_batch_of_tensors_and_masks_is_padded_to_tensors() -> None:
    ours, theirs = EncodecFeatureExtractor(**WHOLE), transformers.EncodecFeatureExtractor(**WHOLE)
    batch = {
        "input_values": [torch.arange(3.0), torch.arange(5.0)],
        "attention_mask": [torch.ones(3).int(), torch.tensor([1, 1, 0, 1, 1]).int()],
    }
    mine, wanted = ours.pad(batch), theirs.pad(transformers.BatchFeature(dict(batch)))
    assert set(mine) == set(wanted)
    for name in wanted:
        _assert_same(mine[name], wanted[name])


@pytest.mark.parametrize(
    "batch",
    [
        {},
        [],
        {"input_values": []},
        {"audio": [np.zeros(3)]},
        {"input_values": [np.zeros(3)], "labels": [np.zeros(3)]},
        {"input_values": [np.zeros(3)], "attention_mask": []},
    ],
    ids=str,
)
def test_what_is_not_a_batch_is_refused(batch: Any) -> None:
    with pytest.raises(InputError):
        EncodecFeatureExtractor().pad(batch)


def test_a_folder_without_any_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no preprocessor_config.json and no config.json"):
        EncodecFeatureExtractor.from_pretrained(tmp_path)


DOCUMENTED = """
from datasets import load_dataset, Audio
from transformers import EncodecModel, AutoProcessor
librispeech_dummy = load_dataset("hf-internal-testing/librispeech_asr_dummy", "clean", split="validation")

model = EncodecModel.from_pretrained("facebook/encodec_24khz")
processor = AutoProcessor.from_pretrained("facebook/encodec_24khz")
librispeech_dummy = librispeech_dummy.cast_column("audio", Audio(sampling_rate=processor.sampling_rate))
audio_sample = librispeech_dummy[-1]["audio"]["array"]
inputs = processor(raw_audio=audio_sample, sampling_rate=processor.sampling_rate, return_tensors="pt")

encoder_outputs = model.encode(inputs["input_values"], inputs["padding_mask"])
audio_values = model.decode(encoder_outputs.audio_codes, encoder_outputs.audio_scales, inputs["padding_mask"])[0]
# or the equivalent with a forward pass
audio_values_again = model(inputs["input_values"], inputs["padding_mask"]).audio_values
"""  # noqa: E501


class _Dataset:
    """As much of a ``datasets`` data set as the example touches."""

    def cast_column(self, column: str, feature: int) -> _Dataset:
        assert column == "audio"
        self.sampling_rate = feature
        return self

    def __getitem__(self, index: int) -> dict[str, dict[str, np.ndarray]]:
        assert index == -1
        return {"audio": {"array": speech(3000).double().numpy()}}


def test_the_documented_example_runs_with_only_the_import_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(tiny_config())
    folder = tmp_path / "facebook" / "encodec_24khz"
    model.save_pretrained(folder)
    EncodecFeatureExtractor(**WHOLE).save_pretrained(folder)
    fake = types.ModuleType("datasets")
    vars(fake).update(
        load_dataset=lambda *_, **__: _Dataset(), Audio=lambda sampling_rate: sampling_rate
    )
    monkeypatch.setitem(sys.modules, "datasets", fake)
    # A folder of that name is preferred to the hub, in both libraries.
    monkeypatch.chdir(tmp_path)

    ours: dict[str, Any] = {}
    exec(DOCUMENTED.replace("from transformers", "from encodec_rt"), ours)
    theirs: dict[str, Any] = {}
    exec(DOCUMENTED.replace("AutoProcessor", "EncodecFeatureExtractor as AutoProcessor", 1), theirs)
    assert ours["EncodecModel"] is encodec_rt.EncodecModel
    assert theirs["EncodecModel"] is transformers.EncodecModel
    for name in ("audio_values", "audio_values_again"):
        assert ours[name].shape == (1, 1, 3000)
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5)
    codes = ours["encoder_outputs"].audio_codes
    assert torch.equal(codes, theirs["encoder_outputs"].audio_codes)
    assert torch.equal(hf_encoded(hf_twin(model), ours["inputs"]["input_values"])[0], codes)


@pytest.mark.parametrize(("batch", "words"), [(None, "NoneType"), ("ab", "str"), ([1, 2], "list")])
def test_pad_refuses_what_is_not_a_batch(batch: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"(batch of type|a) {words}"):
        EncodecFeatureExtractor().pad(batch)


def test_a_length_that_is_not_a_number_is_refused() -> None:
    length: Any = "long"
    with pytest.raises(InputError, match="max_length='long'"):
        EncodecFeatureExtractor()([0.0], max_length=length, sampling_rate=24_000)
