"""Audio arrays to batches of tensors with padding masks, as Hugging Face's extractor does."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from encodec_rt.batch import (
    Array,
    BatchFeature,
    Padding,
    columns,
    converted,
    padding_strategy,
    stacked,
)
from encodec_rt.config import EncodecConfig
from encodec_rt.config_base import Chunked
from encodec_rt.errors import ConfigError, InputError
from encodec_rt.pretrained import (
    CONFIG_NAME,
    PREPROCESSOR_NAME,
    PretrainedSource,
    check_save_arguments,
    read_json,
    sort_arguments,
    write_json,
)

logger = logging.getLogger(__name__)

_TYPE = "EncodecFeatureExtractor"


class EncodecFeatureExtractor(Chunked):
    """Makes the input of ``EncodecModel.encode`` from one clip or several.

    Names, defaults, results and file format are those of the class of this name in
    ``transformers``.
    """

    model_input_names = ("input_values", "padding_mask")

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 24_000,
        padding_value: float = 0.0,
        chunk_length_s: float | None = None,
        overlap: float | None = None,
        *,
        padding_side: str = "right",
        return_attention_mask: bool = True,
    ) -> None:
        """``feature_size`` is 1 for mono and 2 for stereo; the rest as in EncodecConfig."""
        if feature_size not in (1, 2):
            raise ConfigError(f"feature_size={feature_size!r}; 1 is mono, 2 is stereo")
        if padding_side not in ("left", "right"):
            raise ConfigError(f"padding_side={padding_side!r}; accepted: left, right")
        numbers = {"sampling_rate": sampling_rate, "padding_value": padding_value}
        if chunk_length_s is not None:
            numbers["chunk_length_s"] = chunk_length_s
        if overlap is not None:
            numbers["overlap"] = overlap
        for name, value in numbers.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"{name}={value!r}; it must be a number")
        self.feature_size = feature_size
        self.sampling_rate = sampling_rate
        self.padding_value = padding_value
        self.chunk_length_s = chunk_length_s
        self.overlap = overlap
        self.padding_side = padding_side
        self.return_attention_mask = return_attention_mask

    def __call__(
        self,
        raw_audio: Array | Sequence[Any],
        padding: bool | str | None = None,
        truncation: bool | None = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
        *,
        return_attention_mask: bool = True,
        device: str | torch.device | None = None,
        **unknown: Any,
    ) -> BatchFeature:
        """``input_values`` [B, feature_size, L] and, if padded, ``padding_mask`` [B, L].

        ``raw_audio`` is a clip or a list of clips: [L] or a list of numbers for mono, [2, L] for
        stereo. ``padding`` is True or "longest" (the default: to the longest clip, for a model
        with chunks up to whole chunks), "max_length", or False or "do_not_pad". ``truncation`` cuts
        to ``max_length``, or to whole chunks of the shortest clip. ``return_tensors`` is "pt", "np"
        or None for lists of arrays; tensors go to ``device``. ``return_attention_mask`` False
        leaves the mask out. Raises InputError.
        """
        if unknown:
            raise InputError(f"the extractor has no argument {min(unknown)!r}; check its spelling")
        self._check_rate(sampling_rate)
        if padding and truncation:
            raise InputError("padding and truncation were both asked for; choose one")
        if return_tensors not in (None, "pt", "np"):
            raise InputError(f"return_tensors={return_tensors!r}; accepted: 'pt', 'np', None")
        if device is not None and return_tensors != "pt":
            raise InputError(f"device={device!r} is for tensors; pass return_tensors='pt'")
        if padding is None:
            padding = True
        strategy = padding_strategy(padding)
        clips = self._clips(raw_audio)
        if max_length is None and (padding or truncation):
            max_length = self._whole_chunks(clips, fewest=bool(truncation))
            if max_length is not None and not truncation:
                strategy = "max_length"
        to_length = Padding(strategy, max_length, bool(truncation), self.padding_side)

        batch = BatchFeature()
        if padding and return_attention_mask:
            masks = to_length.apply([np.ones(len(clip), np.int32) for clip in clips], 0)
            batch["padding_mask"] = converted(stacked(masks), return_tensors)
        padded = to_length.apply(clips, self.padding_value)
        values = [clip[None] if clip.ndim == 1 else clip.T for clip in padded]
        batch["input_values"] = converted(values, return_tensors)
        return batch if device is None else batch.to(device)

    def pad(
        self,
        processed_features: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Clips of one batch -> ``input_values`` [B, L] or [B, L, 2] and ``attention_mask`` [B, L].

        ``processed_features`` holds clips [L] or [L, 2] as ``input_values``, in a mapping of lists
        or a list of mappings. The result holds tensors if the clips do, or what ``return_tensors``
        says. Raises InputError.
        """
        found = columns(processed_features)
        if return_tensors is None:
            is_tensor = isinstance(found["input_values"][0], torch.Tensor)
            return_tensors = "pt" if is_tensor else "np"
        to_length = Padding(
            padding_strategy(padding),
            max_length,
            truncation,
            self.padding_side,
            pad_to_multiple_of or 1,
        )
        clips = [_as_float(clip) for clip in found["input_values"]]
        masks = found.get("attention_mask") or [np.ones(len(clip), np.int32) for clip in clips]
        batch = {"input_values": to_length.apply(clips, self.padding_value)}
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            batch["attention_mask"] = to_length.apply([np.asarray(mask) for mask in masks], 0)
        as_is = None if return_tensors == "np" else return_tensors
        return BatchFeature({name: converted(stacked(rows), as_is) for name, rows in batch.items()})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **arguments: Any
    ) -> EncodecFeatureExtractor:
        """The extractor of a pretrained model: "default", a folder or a hub id.

        It is read from preprocessor_config.json or, if the model was saved without one, derived
        from its config.json. ``arguments`` are as in ``EncodecConfig.from_pretrained``. Raises
        WeightsError if there is neither file, and ConfigError.
        """
        places, changes = sort_arguments(
            "EncodecFeatureExtractor.from_pretrained", arguments, _SAVED
        )
        path = PretrainedSource(pretrained_model_name_or_path, **places).find(
            PREPROCESSOR_NAME, CONFIG_NAME
        )
        values = read_json(path)
        if path.name == CONFIG_NAME:
            config = EncodecConfig.from_dict(values)
            values = {
                "feature_size": config.audio_channels,
                "sampling_rate": config.sampling_rate,
                "chunk_length_s": config.chunk_length_s,
                "overlap": config.overlap,
            }
        kind = values.get("feature_extractor_type", _TYPE)
        if kind != _TYPE:
            raise ConfigError(f"{path} configures a {kind}; this package has only {_TYPE}")
        values = {**values, **changes}
        return cls(**{name: values[name] for name in _SAVED if name in values})

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> None:
        """Write preprocessor_config.json, which ``transformers`` reads too.

        Of the other arguments of ``transformers``, ``push_to_hub`` is refused.
        """
        check_save_arguments("EncodecFeatureExtractor.save_pretrained", arguments)
        write_json(Path(save_directory) / PREPROCESSOR_NAME, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The content of preprocessor_config.json."""
        values = {name: getattr(self, name) for name in _SAVED}
        return {"feature_extractor_type": _TYPE, **values}

    def to_json_string(self) -> str:
        """``to_dict`` as JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def _check_rate(self, sampling_rate: int | None) -> None:
        if sampling_rate is None:
            logger.warning(
                "EncodecFeatureExtractor was called without sampling_rate; pass the audio's rate "
                "so that a wrong one is noticed"
            )
        elif sampling_rate != self.sampling_rate:
            raise InputError(
                f"audio sampled at {sampling_rate} Hz; this model takes {self.sampling_rate} Hz: "
                "resample it first"
            )

    def _whole_chunks(self, clips: list[Array], *, fewest: bool) -> int | None:
        """Samples of the chunks that the longest clip reaches, or that the shortest one fills."""
        if self.chunk_stride is None or self.chunk_length is None:
            return None
        lengths = [len(clip) for clip in clips]
        if fewest:
            count = math.floor(min(lengths) / self.chunk_stride)
        else:
            count = math.ceil(max(lengths) / self.chunk_stride)
        return (count - 1) * self.chunk_stride + self.chunk_length

    def _clips(self, raw_audio: Array | Sequence[Any]) -> list[Array]:
        """Each clip as [L], or [L, 2] for stereo."""
        try:
            if isinstance(raw_audio, (list, tuple)) and isinstance(
                raw_audio[0], (np.ndarray, list, tuple)
            ):
                clips = [np.asarray(clip, dtype=np.float32).T for clip in raw_audio]
            elif isinstance(raw_audio, np.ndarray) and raw_audio.dtype != np.float64:
                clips = [raw_audio.T]
            else:
                clips = [np.asarray(raw_audio, dtype=np.float32).T]
        except (ValueError, TypeError, IndexError):
            raise InputError(
                "the audio is neither an array nor a non-empty list of numbers or of clips"
            ) from None
        for clip in clips:
            if self.feature_size == 1 and clip.ndim != 1:
                raise InputError(f"audio of shape {clip.T.shape}; mono is [length]")
            if self.feature_size == 2 and (clip.ndim != 2 or clip.shape[1] != 2):
                raise InputError(f"audio of shape {clip.T.shape}; stereo is [2, length]")
        return clips


class AutoProcessor:
    """The name under which Hugging Face's example asks for a model's feature extractor."""

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | Path, **arguments: Any
    ) -> EncodecFeatureExtractor:
        """The feature extractor of a pretrained model."""
        return EncodecFeatureExtractor.from_pretrained(pretrained_model_name_or_path, **arguments)


_SAVED = (
    "feature_size", "sampling_rate", "padding_value", "chunk_length_s", "overlap",
    "padding_side", "return_attention_mask",
)  # fmt: skip


def _as_float(clip: Any) -> Array:
    array = np.asarray(clip)
    return array.astype(np.float32) if array.dtype == np.float64 else array
