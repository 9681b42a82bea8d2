"""Audio arrays to batches of tensors with padding masks, as Hugging Face's extractor makes them."""

from __future__ import annotations

import logging
import math
from collections import UserDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import ConfigError, InputError
from encodec_rt.pretrained import CONFIG_NAME, PREPROCESSOR_NAME, find_file, read_json, write_json

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

_TYPE = "EncodecFeatureExtractor"


class BatchFeature(UserDict[str, Any]):
    """``input_values`` and ``padding_mask``, by name and by attribute."""

    def __getattr__(self, name: str) -> Any:
        """An entry by attribute."""
        # "data" itself is looked up here while an instance is being unpickled.
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Move every tensor to a device, or to a type if it is floating; changes this object."""
        device = kwargs.get("device")
        if device is None and args and not isinstance(args[0], torch.dtype):
            device = args[0]
        for name, value in self.data.items():
            if not isinstance(value, torch.Tensor):
                continue
            if value.is_floating_point():
                self.data[name] = value.to(*args, **kwargs)
            elif device is not None:
                self.data[name] = value.to(device, non_blocking=kwargs.get("non_blocking", False))
        return self


class EncodecFeatureExtractor:
    """Makes the input of ``EncodecModel.encode`` from one clip or several.

    Names, defaults, results and file format are those of ``transformers``' class of this name.
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

    @property
    def chunk_length(self) -> int | None:
        """Samples per chunk, or None for a model that takes a clip as a whole."""
        if self.chunk_length_s is None:
            return None
        return int(self.chunk_length_s * self.sampling_rate)

    @property
    def chunk_stride(self) -> int | None:
        """Samples from one chunk's start to the next one's."""
        if self.chunk_length is None or self.overlap is None:
            return None
        return max(1, int((1.0 - self.overlap) * self.chunk_length))

    def __call__(
        self,
        raw_audio: Array | Sequence[Any],
        padding: bool | str | None = None,
        truncation: bool | None = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """``input_values`` [B, feature_size, L] and, if padded, ``padding_mask`` [B, L].

        ``raw_audio`` is a clip or a list of clips: [L] or a list of numbers for mono, [2, L] for
        stereo. ``padding`` is True or "longest" (the default: to the longest clip, for a model
        with chunks up to whole chunks), "max_length", or False or "do_not_pad". ``truncation`` cuts
        to ``max_length``, or to whole chunks of the shortest clip. ``return_tensors`` is "pt", "np"
        or None for lists of arrays. Raises InputError.
        """
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
        if padding and truncation:
            raise InputError("padding and truncation were both asked for; choose one")
        if return_tensors not in (None, "pt", "np"):
            raise InputError(f"return_tensors={return_tensors!r}; accepted: 'pt', 'np', None")
        if padding is None:
            padding = True
        strategy = self._strategy(padding)
        clips = self._clips(raw_audio)
        if self.chunk_stride is not None and self.chunk_length is not None and max_length is None:
            chunks = (min if truncation else max)(len(clip) for clip in clips) / self.chunk_stride
            whole = math.floor(chunks) if truncation else math.ceil(chunks)
            if truncation or padding:
                max_length = (whole - 1) * self.chunk_stride + self.chunk_length
            if padding and not truncation:
                strategy = "max_length"
        if max_length is None and (truncation or strategy == "max_length"):
            raise InputError("truncation=True and padding='max_length' need max_length")
        if truncation:
            clips = [clip[:max_length] for clip in clips]
        if strategy == "longest":
            max_length = max(len(clip) for clip in clips)
        wanted = 0 if strategy == "do_not_pad" or max_length is None else max_length

        batch = BatchFeature()
        if padding:
            ones = [np.ones(len(clip), np.int32) for clip in clips]
            masks = [self._pad(mask, wanted, 0) for mask in ones]
            batch["padding_mask"] = _converted(_stacked(masks), return_tensors)
        padded = [self._pad(clip, wanted, self.padding_value) for clip in clips]
        values = [clip[None] if clip.ndim == 1 else clip.T for clip in padded]
        batch["input_values"] = _converted(values, return_tensors)
        return batch

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None
    ) -> EncodecFeatureExtractor:
        """The extractor of a pretrained model: "default", a folder or a hub id.

        It is read from preprocessor_config.json or, where a model was saved without one, follows
        from its config.json. Raises WeightsError if there is neither, and ConfigError.
        """
        path = find_file(source, PREPROCESSOR_NAME, CONFIG_NAME, revision=revision)
        values = read_json(path)
        if path.name == CONFIG_NAME:
            config = EncodecConfig.from_dict(values)
            return cls(
                feature_size=config.audio_channels,
                sampling_rate=config.sampling_rate,
                chunk_length_s=config.chunk_length_s,
                overlap=config.overlap,
            )
        kind = values.get("feature_extractor_type", _TYPE)
        if kind != _TYPE:
            raise ConfigError(f"{path} is of a {kind}; this package has {_TYPE}")
        return cls(**{name: values[name] for name in _SAVED if name in values})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write preprocessor_config.json, which ``transformers`` reads too."""
        write_json(Path(folder) / PREPROCESSOR_NAME, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The content of preprocessor_config.json."""
        values = {name: getattr(self, name) for name in _SAVED}
        return {"feature_extractor_type": _TYPE, **values}

    def _strategy(self, padding: bool | str) -> str:
        if padding is False:
            return "do_not_pad"
        if padding is True:
            padding = "longest"
        # Compared one by one: an enumeration's member may equal a name without being one.
        for name in ("longest", "max_length", "do_not_pad"):
            if padding == name:
                return name
        raise InputError(
            f"padding={padding!r}; accepted: True, False, 'longest', 'max_length', 'do_not_pad'"
        )

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

    def _pad(self, clip: Array, length: int, value: float) -> Array:
        missing = max(0, length - len(clip))
        sides = (missing, 0) if self.padding_side == "left" else (0, missing)
        widths = (sides, *((0, 0),) * (clip.ndim - 1))
        return np.pad(clip, widths, constant_values=value)


class AutoProcessor:
    """The name under which Hugging Face's example asks for a model's feature extractor."""

    @staticmethod
    def from_pretrained(
        source: str | Path, *, revision: str | None = None
    ) -> EncodecFeatureExtractor:
        """The feature extractor of a pretrained model."""
        return EncodecFeatureExtractor.from_pretrained(source, revision=revision)


_SAVED = (
    "feature_size", "sampling_rate", "padding_value", "chunk_length_s", "overlap",
    "padding_side", "return_attention_mask",
)  # fmt: skip


def _stacked(rows: list[Array]) -> Array:
    """[B, L], or an array of arrays when they differ in length."""
    if len({len(row) for row in rows}) == 1:
        return np.stack(rows)
    ragged = np.empty(len(rows), dtype=object)
    ragged[:] = rows
    return ragged


def _converted(values: list[Array] | Array, return_tensors: str | None) -> Any:
    if return_tensors is None:
        return values
    if len({value.shape for value in values}) > 1:
        raise InputError(
            "clips of different lengths do not make one tensor; use padding=True, or "
            "return_tensors=None for a list"
        )
    array = np.asarray(values)
    return torch.from_numpy(array) if return_tensors == "pt" else array
