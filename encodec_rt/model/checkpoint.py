"""Checkpoints: every format in, ours (which is Hugging Face's) out.

It reads folders with model.safetensors or pytorch_model.bin, whole or in shards, with the weight
norm under its new name, its old one, or folded away, and the original ``.th`` files of
``facebookresearch/encodec``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from encodec_rt.config import PRESETS, EncodecConfig
from encodec_rt.errors import ConfigError, WeightsError
from encodec_rt.model import tensor_files
from encodec_rt.model.identity import TRAINING_ONLY, file_sha256
from encodec_rt.model.numerics import DTYPES, as_dtype
from encodec_rt.model.tensor_files import Tensors
from encodec_rt.pretrained import (
    CONFIG_NAME,
    PretrainedSource,
    check_save_arguments,
    read_json,
    sort_arguments,
)

Model = TypeVar("Model", bound=nn.Module)

_MAGNITUDE = "parametrizations.weight.original0"
_DIRECTION = "parametrizations.weight.original1"

# Names of facebookresearch/encodec on the left; the order matters.
_ORIGINAL_NAMES = (
    (re.compile(r"^(encoder|decoder)\.model\."), r"\1.layers."),
    (re.compile(r"\.(conv|convtr)\.\1\."), ".conv."),
    (re.compile(r"\.(conv|convtr)\.norm\."), ".norm."),
    (re.compile(r"^quantizer\.vq\.layers\."), "quantizer.layers."),
    (re.compile(r"\._codebook\."), ".codebook."),
    (re.compile(r"\.weight_g$"), f".{_MAGNITUDE}"),
    (re.compile(r"\.weight_v$"), f".{_DIRECTION}"),
)
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.th$")


def load(
    build: Callable[[EncodecConfig], Model],
    name: str | Path,
    config: EncodecConfig | str | Path | None,
    arguments: Mapping[str, Any],
) -> Model:
    """The model that ``build`` makes from the configuration at ``name``, with weights, in eval
    mode.

    The arguments are those of ``PretrainedModel.from_pretrained``. A ``.th`` file stores no
    configuration, and is recognised as the 24 or the 48 kHz model. Raises WeightsError, and
    ConfigError for a bad config.json or argument.
    """
    fields_of_config = [field.name for field in fields(EncodecConfig)]
    places, own = sort_arguments(
        "EncodecModel.from_pretrained",
        arguments,
        ["dtype", "torch_dtype", "use_safetensors", "variant", *fields_of_config],
    )
    changes = {field: own[field] for field in fields_of_config if field in own}
    wanted = own.get("dtype") or own.get("torch_dtype")
    config = _given_config(config)
    chosen = config is not None or bool(changes)
    source, path = PretrainedSource(name, **places), Path(name)
    if path.suffix == ".th" and path.is_file():
        _check_hash(path)
        tensors = _rename(path, tensor_files.read_pickled(path))
        config = config or _recognise(path, tensors)
    else:
        config = config or EncodecConfig.from_dict(read_json(source.find(CONFIG_NAME)))
        path = source.find(*tensor_files.candidates(own.get("use_safetensors"), own.get("variant")))
        tensors = _rename(path, tensor_files.read(source, path))
    dtype = _saved_dtype(config, tensors) if wanted == "auto" else as_dtype(wanted)
    config = replace(config, **changes)
    config.name_or_path, config.dtype = str(name), dtype
    if chosen:
        _drop_further_codebooks(tensors, config.num_quantizers)
    # A model loaded in inference mode may be used and trained outside it.
    with torch.inference_mode(False):
        return _fill(build, config, tensors, path, dtype)


def save(
    model: nn.Module,
    config: EncodecConfig,
    folder: str | Path,
    max_shard_size: int | str | None = None,
    variant: str | None = None,
    arguments: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write config.json and model.safetensors; each appears whole or not at all.

    The arguments are those of ``PretrainedModel.save_pretrained``. Raises ConfigError.
    """
    check_save_arguments("EncodecModel.save_pretrained", arguments)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    tensor_files.write(target, tensors, max_shard_size, variant)
    saved = replace(config)
    saved.dtype = next(model.parameters()).dtype
    saved.save_pretrained(target)


def _given_config(config: object) -> EncodecConfig | None:
    if isinstance(config, (str, Path)):
        return EncodecConfig.from_pretrained(config)
    if config is None or isinstance(config, EncodecConfig):
        return config
    raise ConfigError(
        f"config of type {type(config).__name__}; pass an EncodecConfig, such as "
        "EncodecConfig.from_dict(config.to_dict()), or the path of one"
    )


def _saved_dtype(config: EncodecConfig, tensors: Tensors) -> torch.dtype:
    held = (value.dtype for value in tensors.values() if value.dtype in DTYPES)
    return config.dtype if config.dtype in DTYPES else next(held, torch.float32)


def _drop_further_codebooks(tensors: Tensors, count: int) -> None:
    """Leave out the codebooks after the first ``count``."""
    for name in list(tensors):
        found = re.match(r"quantizer\.layers\.(\d{1,9})\.", name)
        if found and int(found[1]) >= count:
            del tensors[name]


def _check_hash(path: Path) -> None:
    named = _HASH_IN_NAME.search(path.name)
    if named is None:
        return
    found = file_sha256(path)
    if not found.startswith(named[1]):
        raise WeightsError(
            f"{path} has SHA-256 {found[:16]}..., but its name says {named[1]}; it is damaged or "
            "not the file it is named after: fetch it again, or rename it if this is intended"
        )


def _rename(path: Path, tensors: Tensors) -> Tensors:
    renamed: Tensors = {}
    for old, value in tensors.items():
        name = old
        for pattern, replacement in _ORIGINAL_NAMES:
            name = pattern.sub(replacement, name)
        if name in renamed:
            raise WeightsError(f"{path} holds {name} twice, once as {old}")
        renamed[name] = value
    return renamed


def _recognise(path: Path, tensors: Tensors) -> EncodecConfig:
    """The preset whose first layer has the same normalisation and channels as the file's."""
    first = "encoder.layers.0"
    grouped = f"{first}.norm.weight" in tensors
    config = PRESETS["encodec_48khz" if grouped else "encodec_24khz"]
    weight = tensors.get(f"{first}.conv.weight" if grouped else f"{first}.conv.{_DIRECTION}")
    expected = (config.num_filters, config.audio_channels, config.kernel_size)
    if weight is None or tuple(weight.shape) != expected:
        raise WeightsError(
            f"{path} is neither the 24 nor the 48 kHz model of facebookresearch/encodec; pass the "
            "config it was made with"
        )
    return replace(config)


def _fill(
    build: Callable[[EncodecConfig], Model],
    config: EncodecConfig,
    tensors: Tensors,
    path: Path,
    dtype: torch.dtype,
) -> Model:
    config.validate()
    numbers = sum(value.numel() for value in tensors.values())
    layers = len(config.upsampling_ratios) * config.num_residual_layers + config.num_lstm_layers
    # Memory is allocated only if the file is large enough for the model; what exactly does not fit
    # is found, and named, below.
    if layers > len(tensors) or _count_numbers(config) > 4 * numbers + (1 << 24):
        raise WeightsError(
            f"{path} holds {len(tensors)} tensors of {numbers} numbers in all, too few for the "
            "model that its configuration describes"
        )
    model = build(config).to(dtype)
    expected = model.state_dict()
    for name, value in tensors.items():
        if value.is_sparse or value.is_quantized or not value.is_floating_point():
            raise WeightsError(f"{path}: {name} is of type {value.dtype}, which no weight has")
    _split_folded(tensors, expected)
    _fill_training_only(tensors, expected)
    _check_names_and_shapes(tensors, expected, path)
    model.load_state_dict(tensors)
    _check_finite(model, path)
    return model.eval()


def _count_numbers(config: EncodecConfig) -> int:
    """How many numbers the model has, without the small tensors."""
    ends = config.num_filters * config.audio_channels + config.hidden_size * (
        config.num_filters << len(config.upsampling_ratios)
    )
    count = ends * (config.kernel_size + config.last_kernel_size)
    count += config.num_quantizers * config.codebook_size * config.hidden_size
    dim = config.num_filters
    for ratio in reversed(config.upsampling_ratios):
        hidden = dim // config.compress
        count += 2 * config.num_residual_layers * dim * hidden * (config.residual_kernel_size + 1)
        count += 2 * dim * (2 * dim) * (2 * ratio)
        dim *= 2
    return count + 2 * config.num_lstm_layers * 8 * dim * dim


def _split_folded(tensors: Tensors, expected: Tensors) -> None:
    """Turn a plain weight into magnitude and direction where the model has weight norm."""
    for name in expected:
        if not name.endswith(_DIRECTION):
            continue
        prefix = name.removesuffix(_DIRECTION)
        folded = tensors.get(prefix + "weight")
        if folded is None or folded.shape != expected[name].shape:
            continue
        if name in tensors or prefix + _MAGNITUDE in tensors:
            continue
        weight = tensors.pop(prefix + "weight").float()
        magnitude = weight.norm(dim=(1, 2), keepdim=True)
        # A channel of zeros has no direction; any will do.
        tensors[name] = torch.where(magnitude > 0, weight, torch.ones_like(weight))
        tensors[prefix + _MAGNITUDE] = magnitude


def _fill_training_only(tensors: Tensors, expected: Tensors) -> None:
    """Give codebooks the moving averages whose quotient their vectors are."""
    for name, wanted in expected.items():
        prefix, _, last = name.rpartition(".")
        embed = tensors.get(f"{prefix}.embed")
        if last in TRAINING_ONLY and name not in tensors and embed is not None:
            tensors[name] = embed if last == "embed_avg" else torch.ones_like(wanted)


def _check_names_and_shapes(tensors: Tensors, expected: Tensors, path: Path) -> None:
    for name, wanted in expected.items():
        if name not in tensors:
            raise WeightsError(
                f"{path} has no {name}{_as_well(len(expected.keys() - tensors.keys()))}; the file "
                "is of another model than its configuration"
            )
        given, accepted = tuple(tensors[name].shape), tuple(wanted.shape)
        if given != accepted:
            raise WeightsError(
                f"{path}: {name} has shape {list(given)}, its configuration asks for "
                f"{list(accepted)}"
            )
    surplus = [name for name in tensors if name not in expected]
    if surplus:
        raise WeightsError(
            f"{path} holds {surplus[0]}{_as_well(len(surplus))}, which its configuration has no "
            "place for"
        )


def _as_well(count: int) -> str:
    return f" and {count - 1} more" if count > 1 else ""


def _check_finite(model: nn.Module, path: Path) -> None:
    """Refuse NaN and infinity, including those that a weight norm makes from finite numbers."""
    for name, value in model.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{path}: {name} holds NaN, infinite or too large numbers")
    for name, module in model.named_modules():
        if is_parametrized(module, "weight"):
            weight = module.weight
            if not bool(torch.isfinite(weight).all()):
                raise WeightsError(
                    f"{path}: {name}.{_DIRECTION} has a direction that is zero or empty"
                )
