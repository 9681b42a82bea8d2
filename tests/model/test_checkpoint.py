"""Checkpoints in every format load to the same weights; damaged ones are refused by name."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import errors as hub_errors
from safetensors.torch import load, save, save_file
from torch import Tensor
from torch.nn.utils.parametrize import remove_parametrizations

from encodec_rt import EncodecFeatureExtractor, pretrained
from encodec_rt.config import PRESETS, EncodecConfig
from encodec_rt.errors import CodecError, ConfigError, WeightsError
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.model.identity import file_sha256
from tests.support.models import hf_encoded, hf_twin, random_model, speech, tiny_config
from tests.support.tolerances import bound
from tests.support.upstream import upstream_model, upstream_twin

LARGE_KIND: dict[str, Any] = {
    "audio_channels": 2,
    "chunk_length_s": 0.125,
    "norm_type": "time_group_norm",
    "normalize": True,
    "overlap": 0.1,
    "use_causal_conv": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "small": {},
    "48 kHz kind": LARGE_KIND,
    "other": {"num_residual_layers": 3, "num_lstm_layers": 1, "use_conv_shortcut": False},
}
SMALLEST: dict[str, Any] = {
    "books": (1, 2),
    "codebook_size": 4,
    "hidden_size": 4,
    "num_filters": 2,
    "num_lstm_layers": 1,
    "upsampling_ratios": (2,),
}
FIRST = "encoder.layers.0.conv"
DIRECTION = f"{FIRST}.parametrizations.weight.original1"
EMBED = "quantizer.layers.1.codebook.embed"


def _assert_equal(model: EncodecModel, wanted: EncodecModel) -> None:
    assert not model.training
    assert model.config == wanted.config
    states = model.state_dict(), wanted.state_dict()
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        assert value.dtype == torch.float32
        assert torch.equal(value, states[1][name]), name


@pytest.fixture
def saved(tmp_path: Path) -> tuple[EncodecModel, Path]:
    model = random_model(tiny_config())
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_saved_here_loads_in_transformers_and_back(kind: str, tmp_path: Path) -> None:
    model = random_model(tiny_config(**KINDS[kind]))
    model.save_pretrained(tmp_path / "ours")
    loaded: tuple[transformers.EncodecModel, dict[str, object]]
    loaded = transformers.EncodecModel.from_pretrained(tmp_path / "ours", output_loading_info=True)  # type: ignore[assignment]
    theirs, info = loaded
    assert not any(info.values())
    audio = speech(1, model.config.audio_channels, 100)
    with torch.no_grad():
        codes = model.encode(audio).audio_codes
        assert torch.equal(hf_encoded(theirs, audio)[0], codes)
    theirs.save_pretrained(tmp_path / "theirs")
    for source in (tmp_path / "ours", tmp_path / "theirs", str(tmp_path / "theirs")):
        _assert_equal(EncodecModel.from_pretrained(source), model)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_full_models_travel_between_all_three_packages(preset: str, tmp_path: Path) -> None:
    config = PRESETS[preset]
    original = upstream_model(config)
    torch.save(original.state_dict(), tmp_path / "original.th")
    model = EncodecModel.from_pretrained(tmp_path / "original.th")
    assert model.config == config
    twin = upstream_twin(model)
    for name, value in original.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name
    hf_twin(model).save_pretrained(tmp_path / "theirs")
    _assert_equal(EncodecModel.from_pretrained(tmp_path / "theirs"), model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zipped", [True, False])
def test_an_original_file_loads_and_encodes_alike(kind: str, zipped: bool, tmp_path: Path) -> None:
    model = random_model(tiny_config(**KINDS[kind]))
    twin = upstream_twin(model)
    path = tmp_path / "model.th"
    torch.save(twin.state_dict(), path, _use_new_zipfile_serialization=zipped)
    loaded = EncodecModel.from_pretrained(path, model.config)
    _assert_equal(loaded, model)
    audio = speech(1, model.config.audio_channels, 90)
    bandwidth = model.config.target_bandwidths[-1]
    twin.set_target_bandwidth(bandwidth)
    with torch.no_grad():
        [(codes, _)] = twin.encode(audio)
        assert torch.equal(loaded.encode(audio, bandwidth=bandwidth).audio_codes[0], codes)


def test_an_original_file_of_another_shape_needs_its_config(tmp_path: Path) -> None:
    torch.save(upstream_model(tiny_config()).state_dict(), tmp_path / "model.th")
    with pytest.raises(WeightsError, match="neither the 24 nor the 48 kHz model"):
        EncodecModel.from_pretrained(tmp_path / "model.th")


def test_a_hash_in_the_name_is_checked(tmp_path: Path) -> None:
    model = random_model(tiny_config())
    plain = tmp_path / "model.th"
    torch.save(upstream_twin(model).state_dict(), plain)
    digest = file_sha256(plain)
    for length in (8, 64):
        right = shutil.copy(plain, tmp_path / f"encodec_24khz-{digest[:length]}.th")
        _assert_equal(EncodecModel.from_pretrained(right, model.config), model)
    wrong = shutil.copy(plain, tmp_path / "encodec_24khz-d7cc33bc.th")
    with pytest.raises(WeightsError, match=f"{digest[:16]}.*its name says d7cc33bc"):
        EncodecModel.from_pretrained(wrong, model.config)
    unhashed = shutil.copy(plain, tmp_path / "my-best-model.th")
    _assert_equal(EncodecModel.from_pretrained(unhashed, model.config), model)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_state_dict_loads(saved: tuple[EncodecModel, Path], zipped: bool) -> None:
    model, folder = saved
    (folder / "model.safetensors").unlink()
    torch.save(
        hf_twin(model).state_dict(),
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    _assert_equal(EncodecModel.from_pretrained(folder), model)


def test_the_old_names_of_weight_norm_load(saved: tuple[EncodecModel, Path]) -> None:
    model, folder = saved
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in model.state_dict().items()
    }
    assert f"{FIRST}.weight_g" in old
    save_file(old, folder / "model.safetensors")
    _assert_equal(EncodecModel.from_pretrained(folder), model)


def test_weights_without_weight_norm_load(saved: tuple[EncodecModel, Path]) -> None:
    model, folder = saved
    folded = copy.deepcopy(model)
    for module in folded.modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
            remove_parametrizations(module, "weight")
    folded.get_parameter("encoder.layers.0.conv.weight").data[1] = 0.0
    save_file(folded.state_dict(), folder / "model.safetensors")
    loaded = EncodecModel.from_pretrained(folder)
    first = loaded.encoder.layers[0].get_submodule("conv")
    assert isinstance(first, torch.nn.Conv1d)
    assert not first.weight[1].any()
    audio = speech(1, 1, 200)
    with torch.no_grad():
        given = loaded.decoder(loaded.encoder(audio))
        error = (given - folded.decoder(folded.encoder(audio))).abs().max()
    assert float(error) <= bound("transformers audio", "float32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_widened(
    saved: tuple[EncodecModel, Path], dtype: torch.dtype, tmp_path: Path
) -> None:
    model, _ = saved
    twin = hf_twin(model)
    twin.to(dtype)  # type: ignore[arg-type]
    twin.save_pretrained(tmp_path / "theirs")
    _assert_equal(EncodecModel.from_pretrained(tmp_path / "theirs"), model.to(dtype).float())


def test_buffers_that_only_training_needs_may_be_absent(saved: tuple[EncodecModel, Path]) -> None:
    model, folder = saved
    needed = {
        name: value
        for name, value in model.state_dict().items()
        if name.rpartition(".")[2] not in ("inited", "cluster_size", "embed_avg")
    }
    save_file(needed, folder / "model.safetensors")
    loaded = EncodecModel.from_pretrained(folder)
    for layer in loaded.quantizer.stages:
        book = layer.codebook
        assert bool(book.inited)
        torch.testing.assert_close(book.embed_avg / book.cluster_size[:, None], book.embed)
    assert torch.equal(loaded.quantizer.stages[1].codebook.embed, model.state_dict()[EMBED])


def test_a_given_config_replaces_the_stored_one(saved: tuple[EncodecModel, Path]) -> None:
    model, folder = saved
    (folder / "config.json").unlink()
    _assert_equal(EncodecModel.from_pretrained(folder, model.config), model)
    model.config.save_pretrained(folder / "elsewhere")
    _assert_equal(EncodecModel.from_pretrained(folder, folder / "elsewhere"), model)
    theirs = transformers.EncodecConfig()
    with pytest.raises(ConfigError, match=r"from_dict\(config\.to_dict\(\)\)"):
        EncodecModel.from_pretrained(folder, theirs)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=r"has no encoder\.layers\.2"):
        EncodecModel.from_pretrained(folder, tiny_config(num_residual_layers=2))


def _without(tensors: dict[str, Tensor]) -> None:
    del tensors[DIRECTION]


def _with_another(tensors: dict[str, Tensor]) -> None:
    tensors["encoder.layers.99.conv.bias"] = torch.zeros(4)


def _with_two_names(tensors: dict[str, Tensor]) -> None:
    tensors[f"{FIRST}.weight_v"] = tensors[DIRECTION].clone()


def _with_another_shape(tensors: dict[str, Tensor]) -> None:
    tensors[EMBED] = torch.zeros(16, 9)


def _with_another_folded_shape(tensors: dict[str, Tensor]) -> None:
    del tensors[DIRECTION], tensors[DIRECTION.replace("original1", "original0")]
    tensors[f"{FIRST}.weight"] = torch.zeros(4, 1, 9)


def _with(name: str, value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[3] = value

    return change


def _with_whole_numbers(tensors: dict[str, Tensor]) -> None:
    tensors[EMBED] = tensors[EMBED].long()


def _without_direction(tensors: dict[str, Tensor]) -> None:
    tensors[DIRECTION][2] = 0.0


def _with_doubles_past_float(tensors: dict[str, Tensor]) -> None:
    tensors[EMBED] = tensors[EMBED].double() * 1e300


def _with_exchanged_names(tensors: dict[str, Tensor]) -> None:
    one, other = f"{FIRST}.bias", "decoder.layers.1.lstm.bias_ih_l0"
    tensors[one], tensors[other] = tensors[other], tensors[one]


@pytest.mark.parametrize("kind_of_file", ["model.safetensors", "pytorch_model.bin", "model.th"])
@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        (_without, DIRECTION, "has no"),
        (_with_another, "encoder.layers.99.conv.bias", "no place"),
        (_with_two_names, DIRECTION, "holds .* twice, once as "),
        (_with_another_shape, EMBED, r"shape \[16, 9\].*asks for \[16, 8\]"),
        (_with_another_folded_shape, f"{FIRST}.parametrizations.weight.original0", "has no"),
        (_with(EMBED, float("nan")), EMBED, "NaN"),
        (_with(f"{FIRST}.bias", float("-inf")), f"{FIRST}.bias", "infinite"),
        (_with(DIRECTION, float("nan")), DIRECTION, "NaN"),
        (_with_whole_numbers, EMBED, "torch.int64"),
        (_without_direction, DIRECTION, "zero or empty"),
        (_with_doubles_past_float, EMBED, "too large"),
        (_with_exchanged_names, f"{FIRST}.bias", "shape"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    saved: tuple[EncodecModel, Path],
    kind_of_file: str,
    change: Callable[[dict[str, Tensor]], None],
    name: str,
    reason: str,
) -> None:
    model, folder = saved
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    change(tensors)
    (folder / "model.safetensors").unlink()
    path = folder / kind_of_file
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    source = path if path.suffix == ".th" else folder
    with pytest.raises(WeightsError, match=reason) as refused:
        EncodecModel.from_pretrained(source, model.config)
    message = str(refused.value)
    assert name in message
    assert str(path) in message
    assert "\n" not in message


def test_a_mislabelled_model_is_refused(tmp_path: Path) -> None:
    random_model(tiny_config(**LARGE_KIND)).save_pretrained(tmp_path)
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"has no encoder\.layers\.0.* of another model"):
        EncodecModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mimi"}))
    with pytest.raises(ConfigError, match="mimi"):
        EncodecModel.from_pretrained(tmp_path)
    EncodecConfig(num_filters=2**20).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="too few for the model"):
        EncodecModel.from_pretrained(tmp_path)
    EncodecConfig(num_lstm_layers=2**31 - 1).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="too few for the model"):
        EncodecModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind_of_file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("size", [0, 7, 100, 9_000, 40_000])
def test_a_truncated_file_is_refused(
    saved: tuple[EncodecModel, Path], kind_of_file: str, size: int
) -> None:
    model, folder = saved
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    content = (folder / kind_of_file).read_bytes()
    assert len(content) > size
    for path in (folder / "model.safetensors", folder / "pytorch_model.bin"):
        path.unlink()
    (folder / kind_of_file).write_bytes(content[:size])
    with pytest.raises(WeightsError, match=f"{kind_of_file} is not a readable"):
        EncodecModel.from_pretrained(folder)


class _Trap:
    """Something that runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.th"])
def test_no_code_in_a_file_is_run(
    saved: tuple[EncodecModel, Path], name: str, tmp_path: Path
) -> None:
    model, folder = saved
    (folder / "model.safetensors").unlink()
    sprung = tmp_path / "sprung"
    torch.save({**model.state_dict(), "trap": _Trap(sprung)}, folder / name)
    with pytest.raises(WeightsError, match="not a readable PyTorch checkpoint"):
        EncodecModel.from_pretrained(
            folder if name.endswith(".bin") else folder / name, model.config
        )
    (folder / name).write_bytes(pickle.dumps(_Trap(sprung)))
    with pytest.raises(WeightsError):
        EncodecModel.from_pretrained(
            folder if name.endswith(".bin") else folder / name, model.config
        )
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.zeros(3)], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ({3: torch.zeros(3)}, "holds a dict, not tensors by name"),
        ({"epoch": 3}, "epoch is a int"),
        ({}, "0 tensors of 0 numbers"),
    ],
)
def test_a_pickle_of_something_else_is_refused(
    saved: tuple[EncodecModel, Path], content: object, reason: str
) -> None:
    model, folder = saved
    torch.save(content, folder / "model.th")
    with pytest.raises(WeightsError, match=reason):
        EncodecModel.from_pretrained(folder / "model.th", model.config)


def _hub_must_not_be_asked(*_: object, **__: object) -> str:
    raise AssertionError("the hub was asked")


@pytest.mark.parametrize(
    "source",
    ["missing", "/missing/model", "a/b/c", "..", "a b/c", "a/model.th", "a/config.json"],
)
def test_what_is_no_hub_id_never_reaches_the_network(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", _hub_must_not_be_asked)
    with pytest.raises(WeightsError):
        EncodecModel.from_pretrained(source)


def test_a_single_file_of_another_kind_is_refused(saved: tuple[EncodecModel, Path]) -> None:
    with pytest.raises(WeightsError, match=r"is a single file; accepted: .* original \.th"):
        EncodecModel.from_pretrained(saved[1] / "model.safetensors", tiny_config())


def test_a_hub_id_without_a_network_is_one_clear_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "_hub_answers", lambda: False)
    for kind in (EncodecModel, EncodecConfig, EncodecFeatureExtractor):
        with pytest.raises(WeightsError) as refused:
            kind.from_pretrained("facebook/encodec_24khz")
        message = str(refused.value)
        assert "cannot be reached and nothing is cached" in message
        assert "run 'hf download facebook/encodec_24khz --local-dir FOLDER'" in message
        assert "\n" not in message
        assert refused.value.__cause__ is None
        assert refused.value.__context__ is None


def test_a_hub_model_is_fetched_with_its_revision(
    saved: tuple[EncodecModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = saved
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    asked = []

    def download(hub_id: str, name: str, *, revision: str | None, **_: object) -> str:
        asked.append((hub_id, name, revision))
        if not (folder / name).is_file():
            raise hub_errors.EntryNotFoundError(name)
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(pretrained, "_hub_answers", lambda: True)
    _assert_equal(EncodecModel.from_pretrained("me/my_encodec", revision="v2"), model)
    assert asked == [
        ("me/my_encodec", name, "v2")
        for name in (
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
        )
    ]
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsError, match=r"no model\.safetensors and no pytorch_model\.bin"):
        EncodecModel.from_pretrained("me/my_encodec")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (hub_errors.RevisionNotFoundError, "has no revision 'v2'"),
        (hub_errors.RepositoryNotFoundError, "no such public model"),
        (hub_errors.GatedRepoError, "no such public model"),
        (hub_errors.HFValidationError, "no such public model"),
        (hub_errors.LocalEntryNotFoundError, "cannot be reached"),
        (ConnectionResetError, "cannot be reached"),
        (ConnectionError, "cannot be reached"),
        (PermissionError, "the download failed"),
        (type("ReadTimeout", (Exception,), {}), r"the download failed \(ReadTimeout\)"),
    ],
)
def test_every_trouble_with_the_hub_is_told(
    error: type[Exception], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> str:
        # Past the constructors, which ask for a response of the hub.
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(pretrained, "_hub_answers", lambda: True)
    with pytest.raises(WeightsError, match=reason):
        EncodecModel.from_pretrained("me/my_encodec", revision="v2")


def test_the_hub_is_asked_as_the_caller_says(
    saved: tuple[EncodecModel, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, folder = saved
    asked: list[dict[str, object]] = []

    def download(hub_id: str, name: str, **arguments: object) -> str:
        asked.append(arguments)
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(pretrained, "_hub_answers", lambda: True)
    given: dict[str, Any] = {
        "subfolder": "small",
        "cache_dir": tmp_path,
        "token": "hf_x",
        "force_download": True,
    }
    _assert_equal(EncodecModel.from_pretrained("me/my_encodec", **given), model)
    assert asked == [{**given, "revision": None}] * 2
    asked.clear()
    EncodecConfig.from_pretrained("me/my_encodec", use_auth_token="hf_y")
    assert asked[0]["token"] == "hf_y"


@pytest.mark.parametrize("subfolder", [None, "small"])
def test_the_cache_is_enough_without_a_network_and_is_all_that_is_read_on_demand(
    saved: tuple[EncodecModel, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    subfolder: str | None,
) -> None:
    model, folder = saved
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    cache = tmp_path / "models--me--my_encodec"
    for place, text in (("main", "0" * 40), ("v2", "1" * 40)):
        (cache / "refs").mkdir(parents=True, exist_ok=True)
        (cache / "refs" / place).write_text(text)
    shutil.copytree(folder, cache / "snapshots" / ("0" * 40) / (subfolder or ""))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", _hub_must_not_be_asked)
    given: dict[str, Any] = {"cache_dir": tmp_path, "subfolder": subfolder}
    only: dict[str, Any] = {**given, "local_files_only": True}
    with monkeypatch.context() as patched:
        patched.setattr(pretrained, "_hub_answers", lambda: False)
        _assert_equal(EncodecModel.from_pretrained("me/my_encodec", **given), model)
        with pytest.raises(WeightsError, match="cannot be reached and nothing is cached"):
            EncodecModel.from_pretrained("me/my_encodec", revision="v2", **given)
    monkeypatch.setattr(pretrained, "_hub_answers", _hub_must_not_be_asked)
    _assert_equal(EncodecModel.from_pretrained("me/my_encodec", **only), model)
    with pytest.raises(WeightsError, match="local_files_only forbids asking the hub"):
        EncodecModel.from_pretrained("me/my_encodec", revision="v2", **only)


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "refused"])
def test_a_hub_that_does_not_answer_is_found_out_by_one_request(
    silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[float] = []
    release = threading.Event()

    class Session:
        def head(self, url: str, *, timeout: float) -> None:
            requests.append(timeout)
            if silent:
                release.wait(60)
            raise ConnectionError(url)

    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    monkeypatch.setattr(pretrained, "HUB_TIMEOUT_S", 0.1)
    assert not pretrained._hub_answers()
    release.set()
    assert requests == [0.1]


def test_a_hub_that_answers_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def head(self, url: str, *, timeout: float) -> str:
            assert url == huggingface_hub.constants.ENDPOINT
            return "403"

    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    assert pretrained._hub_answers()


def test_without_the_hub_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"pip install 'encodec-rt\[hub\]'"):
        EncodecModel.from_pretrained("facebook/encodec_24khz")


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickles"])
def test_shards_of_transformers_load_as_the_whole(
    saved: tuple[EncodecModel, Path], tmp_path: Path, pickled: bool
) -> None:
    model, _ = saved
    folder = tmp_path / "shards"
    hf_twin(model).save_pretrained(folder, max_shard_size="10KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    if pickled:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        for path in shards:
            torch.save(load(path.read_bytes()), path.with_suffix(".bin"))
            path.unlink()
        places = {key: f"{name[:-12]}.bin" for key, name in index["weight_map"].items()}
        (folder / "model.safetensors.index.json").unlink()
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    _assert_equal(EncodecModel.from_pretrained(folder), model)


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        ({}, "no weight_map"),
        ([1], "no weight_map"),
        ({"a": "../model.safetensors"}, r"names '\.\./model\.safetensors'"),
        ({"a": 3}, "names 3"),
        ({"a": "run.py"}, "names 'run.py'"),
        ({"a": "absent.safetensors"}, r"has no absent\.safetensors"),
        ({"a": "one.safetensors", "b": "two.safetensors"}, "another shard holds too"),
        ({"a": "half.safetensors"}, r"index\.json has no "),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(
    saved: tuple[EncodecModel, Path], places: object, reason: str
) -> None:
    _, folder = saved
    tensors = load((folder / "model.safetensors").read_bytes())
    save_file(tensors, folder / "one.safetensors")
    save_file(dict(list(tensors.items())[:5]), folder / "half.safetensors")
    (folder / "model.safetensors").rename(folder / "two.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(WeightsError, match=reason):
        EncodecModel.from_pretrained(folder)
    index.write_text("{")
    with pytest.raises(WeightsError, match="not a readable JSON"):
        EncodecModel.from_pretrained(folder)


@pytest.mark.parametrize("size", ["10KB", 10_000])
def test_a_model_saved_in_shards_loads_in_transformers_and_here(
    saved: tuple[EncodecModel, Path], size: int | str
) -> None:
    model, folder = saved
    other = random_model(tiny_config(), seed=5)
    other.save_pretrained(folder, max_shard_size=size)
    shards = sorted(path.name for path in folder.glob("model-*"))
    assert len(shards) > 2
    assert all(path.stat().st_size < 15_000 for path in folder.glob("model-*"))
    # The whole file of the first save would have been read instead.
    assert not (folder / "model.safetensors").exists()
    _assert_equal(EncodecModel.from_pretrained(folder), other)
    twin = transformers.EncodecModel.from_pretrained(folder)
    for name, value in other.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name
    model.save_pretrained(folder, max_shard_size="5GB")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    _assert_equal(EncodecModel.from_pretrained(folder), model)


def test_a_variant_and_a_subfolder_are_read_and_written(
    saved: tuple[EncodecModel, Path],
) -> None:
    model, folder = saved
    other = random_model(tiny_config(), seed=5)
    other.save_pretrained(folder / "sub", variant="fp16", is_main_process=False)
    assert not (folder / "sub").exists()
    for size in ("5GB", "10KB"):
        other.save_pretrained(folder / "sub", variant="fp16", max_shard_size=size)
        given: dict[str, Any] = {"variant": "fp16", "subfolder": "sub"}
        _assert_equal(EncodecModel.from_pretrained(folder, **given), other)
        theirs = transformers.EncodecModel.from_pretrained(folder, **given)
        assert torch.equal(theirs.state_dict()[EMBED], other.state_dict()[EMBED])
        with pytest.raises(WeightsError, match=r"sub has no model\.safetensors"):
            EncodecModel.from_pretrained(folder, subfolder="sub")
    _assert_equal(EncodecModel.from_pretrained(folder, subfolder=""), model)


def test_either_kind_of_file_can_be_asked_for(saved: tuple[EncodecModel, Path]) -> None:
    model, folder = saved
    other = random_model(tiny_config(), seed=5)
    torch.save(other.state_dict(), folder / "pytorch_model.bin")
    _assert_equal(EncodecModel.from_pretrained(folder), model)
    _assert_equal(EncodecModel.from_pretrained(folder, use_safetensors=False), other)
    (folder / "model.safetensors").unlink()
    _assert_equal(EncodecModel.from_pretrained(folder, use_safetensors=None), other)
    with pytest.raises(WeightsError, match=r"has no model\.safetensors$"):
        EncodecModel.from_pretrained(folder, use_safetensors=True)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_a_model_loads_in_the_type_that_is_asked_for(
    saved: tuple[EncodecModel, Path], name: str, dtype: torch.dtype
) -> None:
    model, folder = saved
    wanted = copy.deepcopy(model).to(dtype).state_dict()
    for value in (dtype, str(dtype).removeprefix("torch.")):
        asked: dict[str, Any] = {name: value}
        loaded = EncodecModel.from_pretrained(folder, **asked)
        assert loaded.dtype == loaded.config.dtype == loaded.config.torch_dtype == dtype
        assert all(torch.equal(held, wanted[key]) for key, held in loaded.state_dict().items())
    # Here as in transformers "auto" is the type of the save, and a model keeps it.
    loaded.save_pretrained(folder)
    assert EncodecModel.from_pretrained(folder, dtype="auto").dtype == dtype
    assert transformers.EncodecModel.from_pretrained(folder, dtype="auto").dtype == dtype
    assert EncodecModel.from_pretrained(folder).dtype == torch.float32
    assert EncodecConfig.from_pretrained(folder).dtype == dtype
    loaded.config.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    assert EncodecModel.from_pretrained(folder, dtype="auto").dtype == dtype


def test_weights_too_large_for_their_type_are_refused(saved: tuple[EncodecModel, Path]) -> None:
    model, folder = saved
    model.state_dict()[EMBED].mul_(1e6)
    model.save_pretrained(folder)
    with pytest.raises(WeightsError, match=rf"{EMBED} holds NaN, infinite or too large"):
        EncodecModel.from_pretrained(folder, dtype=torch.float16)


def test_a_field_of_the_configuration_replaces_the_stored_one(
    saved: tuple[EncodecModel, Path],
) -> None:
    model, folder = saved
    fewer = model.config.target_bandwidths[:2]
    loaded = EncodecModel.from_pretrained(folder, target_bandwidths=list(fewer))
    theirs = transformers.EncodecModel.from_pretrained(folder, target_bandwidths=list(fewer))
    assert len(loaded.quantizer.layers) == len(theirs.quantizer.layers) == 2
    audio = speech(1, 1, 200)
    with torch.no_grad():
        for bandwidth in fewer:
            codes = loaded.encode(audio, bandwidth=bandwidth).audio_codes
            assert torch.equal(codes, model.encode(audio, bandwidth=bandwidth).audio_codes)
    with pytest.raises(WeightsError, match=r"has no quantizer\.layers\.4"):
        EncodecModel.from_pretrained(folder, target_bandwidths=[*fewer, 9.0])
    with pytest.raises(WeightsError, match="its configuration asks for"):
        EncodecModel.from_pretrained(folder, num_filters=8)
    # What is stored must fit itself: a file with more codebooks than it says is of another model.
    (folder / "config.json").write_text(loaded.config.to_json_string())
    with pytest.raises(WeightsError, match=r"holds quantizer\.layers\.2"):
        EncodecModel.from_pretrained(folder)
    _assert_equal(EncodecModel.from_pretrained(folder, model.config), model)


@pytest.mark.parametrize(
    "arguments",
    [
        {"low_cpu_mem_usage": True},
        {"trust_remote_code": False, "attn_implementation": "eager"},
        {"ignore_mismatched_sizes": True},
        {"device_map": "cpu"},
        {"device_map": torch.device("cpu")},
        {"device_map": None, "output_loading_info": False, "quantization_config": None},
        {"weights_only": True, "state_dict": None, "proxies": None, "return_dict": True},
        {"_fast_init": True, "resume_download": None, "max_memory": None},
    ],
    ids=str,
)
def test_arguments_of_transformers_without_a_meaning_here_are_accepted(
    saved: tuple[EncodecModel, Path], arguments: dict[str, Any]
) -> None:
    model, folder = saved
    _assert_equal(EncodecModel.from_pretrained(folder, **arguments), model)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"device_map": "auto"}, r"device_map='auto': .*\.to\(device\)"),
        ({"device_map": {"": 0}}, "device_map="),
        ({"output_loading_info": True}, "output_loading_info=True"),
        ({"quantization_config": {}}, "quantization_config"),
        ({"state_dict": {"a": torch.zeros(1)}}, "state_dict=.*load_state_dict"),
        ({"weights_only": False}, "weights_only=False"),
        ({"return_dict": False}, "return_dict=False"),
        ({"proxies": {"https": "x"}}, "HTTPS_PROXY"),
        ({"dtype": "int8"}, "dtype='int8'; accepted: float32, float16"),
        ({"torch_dtype": torch.int64}, "dtype=torch.int64"),
        ({"variant": "../x"}, "variant='../x'"),
        ({"revison": "v2"}, "no argument 'revison'"),
        ({"hidden_size": 0}, "hidden_size=0"),
    ],
)
def test_arguments_that_would_change_the_result_are_refused_by_name(
    saved: tuple[EncodecModel, Path], arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        EncodecModel.from_pretrained(saved[1], **arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"safe_serialization": False}, "safe_serialization=False: only safetensors"),
        ({"push_to_hub": True}, "push_to_hub=True: .*hf upload"),
        ({"save_function": torch.save}, "save_function"),
        ({"max_shard_size": "many"}, "max_shard_size='many'"),
        ({"max_shard_size": 0}, "max_shard_size=0"),
        ({"variant": "a/b"}, "variant='a/b'"),
        ({"colour": "red"}, "no argument 'colour'"),
    ],
)
def test_saving_otherwise_is_refused_by_name(
    saved: tuple[EncodecModel, Path], arguments: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model, _ = saved
    with pytest.raises(ConfigError, match=reason):
        model.save_pretrained(tmp_path / "new", **arguments)
    assert not list(tmp_path.glob("new/*"))
    model.save_pretrained(
        tmp_path / "new", safe_serialization=True, push_to_hub=False, token=None, repo_id="a/b"
    )
    _assert_equal(EncodecModel.from_pretrained(tmp_path / "new"), model)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_advises_about_unpickling_is_not_passed_on(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.th"
    for content, reason in (
        ({"a": _Trap(path)}, r"refers to [\w.]*(getattr|Path\.touch)"),
        (torch.nn.Linear(2, 2), r"refers to torch\.nn\.modules\.linear\.Linear"),
        ({"config": tiny_config()}, r"refers to encodec_rt\.config\.EncodecConfig"),
    ):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(WeightsError, match=reason) as refused:
            EncodecModel.from_pretrained(path)
        message = str(refused.value)
        assert "only tensors are unpickled; save its state_dict()" in message
        for advice in ("weights_only", "Weights only", "add_safe_globals", "trust"):
            assert advice not in message


def test_the_default_model_is_the_embedded_folder(
    saved: tuple[EncodecModel, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, folder = saved
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    with pytest.raises(WeightsError, match="embeds no default model; accepted: "):
        EncodecModel.from_pretrained("default")
    folder.rename(tmp_path / "weights")
    _assert_equal(EncodecModel.from_pretrained("default"), model)
    assert EncodecConfig.from_pretrained("default") == model.config


def test_an_interrupted_save_leaves_the_old_model(
    saved: tuple[EncodecModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(tensors: dict[str, Tensor], path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        random_model(tiny_config(), seed=9).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    _assert_equal(EncodecModel.from_pretrained(folder), model)


def _mutated(rng: random.Random, content: bytes, reach: float = 1.0) -> bytes:
    """One kind of damage, mostly within the first ``reach`` of the content."""
    damaged = bytearray(content)
    span = int(len(damaged) * (reach if rng.random() < 0.7 else 1.0))
    start, count = rng.randrange(span), rng.randrange(1, 9)
    match rng.randrange(6):
        case 0:
            damaged[start] ^= 1 << rng.randrange(8)
        case 1:
            for _ in range(count):
                damaged[rng.randrange(span)] ^= 1 << rng.randrange(8)
        case 2:
            damaged[start] = rng.randrange(256)
        case 3:
            del damaged[start : start + count]
        case 4:
            damaged[start:start] = rng.randbytes(count)
        case 5:
            del damaged[start:]
    return bytes(damaged)


def _mutated_inside(rng: random.Random, archive: bytes) -> bytes:
    """The zip archive with damage to its pickle that its checksums do not show."""
    rebuilt = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(rebuilt, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, _mutated(rng, content) if name.endswith(".pkl") else content)
    return rebuilt.getvalue()


def _mutated_tensors(rng: random.Random, content: bytes) -> bytes:
    """Well-formed safetensors with names exchanged, a tensor gone, or one impossible number."""
    tensors = load(content)
    one, other = rng.sample(sorted(tensors), 2)
    match rng.randrange(4):
        case 0:
            tensors[one], tensors[other] = tensors[other], tensors[one]
        case 1:
            del tensors[one]
        case 2:
            value = rng.choice([float("nan"), float("inf"), -float("inf"), 3e38])
            tensors[one].view(-1)[rng.randrange(tensors[one].numel())] = value
        case 3:
            tensors[one] = tensors[one].flatten().to(rng.choice([torch.int32, torch.float16]))
    return save(tensors)


def _model_or_error(source: Path, config: EncodecConfig | None) -> EncodecModel | CodecError:
    try:
        return EncodecModel.from_pretrained(source, config)
    except CodecError as error:
        return error


def test_hundreds_of_damaged_checkpoints_load_whole_or_are_refused(tmp_path: Path) -> None:
    model = random_model(tiny_config(**SMALLEST))
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    safe, pickled = tmp_path / "safe", tmp_path / "pickled"
    described, original = tmp_path / "described", tmp_path / "model.th"
    for folder in (safe, described):
        model.save_pretrained(folder)
    model.config.save_pretrained(pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    torch.save(upstream_twin(model).state_dict(), original, _use_new_zipfile_serialization=False)
    ways: list[tuple[Path, Path, Callable[[random.Random, bytes], bytes]]] = [
        (safe, safe / "model.safetensors", partial(_mutated, reach=0.3)),
        (safe, safe / "model.safetensors", _mutated_tensors),
        (pickled, pickled / "pytorch_model.bin", _mutated),
        (pickled, pickled / "pytorch_model.bin", _mutated_inside),
        (described, described / "config.json", _mutated),
        (original, original, partial(_mutated, reach=0.5)),
    ]
    contents = {path: path.read_bytes() for _, path, _ in ways}
    outcomes = {"loaded": 0, "refused": 0}
    for seed in range(420):
        source, path, damage = ways[seed % len(ways)]
        path.write_bytes(damage(random.Random(seed), contents[path]))
        loaded = _model_or_error(source, model.config if source == original else None)
        if isinstance(loaded, CodecError):
            assert isinstance(loaded, (WeightsError, ConfigError)), seed
            assert "\n" not in str(loaded), seed
            outcomes["refused"] += 1
            continue
        outcomes["loaded"] += 1
        state = loaded.state_dict()
        assert {name: value.shape for name, value in state.items()} == shapes, seed
        assert all(bool(value.isfinite().all()) for value in state.values()), seed
    assert outcomes["refused"] > 250
    assert outcomes["loaded"] > 20
