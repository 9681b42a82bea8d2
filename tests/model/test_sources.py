"""What is passed for a model, its configuration or its tensors is refused by name if it is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import ConfigError, InputError
from encodec_rt.features import AutoProcessor, EncodecFeatureExtractor
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.codec import Codec
from tests.support.models import random_model, tiny_config

LOADERS: dict[str, Callable[[Any], object]] = {
    "a codec": Codec.load,
    "a model": EncodecModel.from_pretrained,
    "a configuration": EncodecConfig.from_pretrained,
    "an extractor": EncodecFeatureExtractor.from_pretrained,
    "a processor": AutoProcessor.from_pretrained,
}


@pytest.mark.parametrize("loaded", LOADERS)
@pytest.mark.parametrize("source", [None, 3, b"default", [], {}, np.zeros(2), torch.zeros(2)])
def test_a_source_that_is_neither_text_nor_a_path_is_refused_with_what_is_accepted(
    loaded: str, source: Any
) -> None:
    kind = type(source).__name__
    with pytest.raises(ConfigError, match=f'type {kind}; accepted: "default", a folder'):
        LOADERS[loaded](source)


def test_a_source_may_be_any_path_like_object(tmp_path: Path) -> None:
    class Named:
        def __fspath__(self) -> str:
            return str(tmp_path)

    random_model(tiny_config()).save_pretrained(tmp_path)
    loaded: Callable[[Any], EncodecModel] = EncodecModel.from_pretrained
    assert loaded(Named()).config == tiny_config()


@pytest.mark.parametrize("argument", ["revision", "subfolder", "variant"])
def test_a_part_of_a_source_that_is_not_text_is_refused_by_name(argument: str) -> None:
    given: dict[str, Any] = {argument: 3}
    with pytest.raises(ConfigError, match=f"{argument}=3"):
        EncodecModel.from_pretrained("default", **given)


@pytest.mark.parametrize("config", [None, {}, "default"])
def test_a_model_of_anything_but_a_configuration_is_refused(config: Any) -> None:
    with pytest.raises(ConfigError, match=f"config of type {type(config).__name__}; pass an Enc"):
        EncodecModel(config)


@pytest.mark.parametrize("content", [None, [], "encodec"])
def test_a_configuration_of_anything_but_a_mapping_is_refused(content: Any) -> None:
    with pytest.raises(ConfigError, match=f"a {type(content).__name__} is not the content"):
        EncodecConfig.from_dict(content)


def test_several_bandwidths_at_once_are_refused() -> None:
    given: Any = np.array([3.0, 6.0])
    with pytest.raises(ConfigError, match=re.escape("bandwidth array([3., 6.]) kbps")):
        EncodecConfig().codebooks_for(given)


def test_what_is_not_a_tensor_is_refused_by_the_argument_it_was_passed_for() -> None:
    model: Any = random_model(tiny_config())
    codes = torch.zeros(1, 1, 1, 3, dtype=torch.int64)
    audio = torch.zeros(1, 1, 2_000)
    calls: dict[str, Callable[[], object]] = {
        "input_values of type ndarray": lambda: model.encode(audio.numpy()),
        "input_values of type list": lambda: model([[[0.0]]]),
        "padding_mask of type list": lambda: model.encode(audio, [1, 1]),
        "audio_codes of type NoneType": lambda: model.decode(None, [None]),
        "padding_mask of type int": lambda: model.decode(codes, [None], 3),
    }
    for message, call in calls.items():
        with pytest.raises(InputError, match=f"{message}; pass a torch tensor"):
            call()
