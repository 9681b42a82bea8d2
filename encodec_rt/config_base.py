"""Parts of a configuration: chunks, transformers' attributes, and numbers from outside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from encodec_rt.errors import ConfigError

if TYPE_CHECKING:
    import torch

LOWEST: Mapping[str, int] = MappingProxyType(
    {
        "sampling_rate": 1,
        "audio_channels": 1,
        "hidden_size": 1,
        "num_filters": 1,
        "num_residual_layers": 0,
        "kernel_size": 1,
        "last_kernel_size": 1,
        "residual_kernel_size": 1,
        "dilation_growth_rate": 1,
        "compress": 1,
        "num_lstm_layers": 1,
        "codebook_size": 2,
        "codebook_dim": 1,
    }
)
HIGHEST = 2**31 - 1
"""The lowest value of each of a configuration's whole numbers, by name, and the highest of all."""


class Chunked:
    """Chunks in samples, for configurations that give their length and overlap in seconds."""

    sampling_rate: int
    chunk_length_s: float | None
    overlap: float | None

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


class PretrainedConfig:
    """What every Hugging Face configuration has besides the fields of its architecture."""

    model_type: ClassVar[str] = "encodec"
    is_encoder_decoder: ClassVar[bool] = False
    output_hidden_states: ClassVar[bool] = False
    return_dict: ClassVar[bool] = True
    use_return_dict: ClassVar[bool] = True

    name_or_path: str = ""
    """Where it was loaded from."""
    _dtype: str | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of the weights that were loaded or saved with it, if any were."""
        import torch

        found = getattr(torch, self._dtype or "", None)
        return found if isinstance(found, torch.dtype) else None

    @dtype.setter
    def dtype(self, dtype: torch.dtype | str | None) -> None:
        self._dtype = None if dtype is None else str(dtype).removeprefix("torch.")

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The old name of ``dtype``."""
        return self.dtype

    def to_dict(self) -> dict[str, Any]:
        """The fields of the architecture."""
        raise NotImplementedError

    def file_content(self) -> dict[str, Any]:
        """What config.json says: ``to_dict``, and the type of the weights if it is known."""
        return self.to_dict() if self._dtype is None else {**self.to_dict(), "dtype": self._dtype}

    def to_json_string(self, use_diff: bool = True) -> str:
        """``file_content`` as JSON, with the defaults too whatever ``use_diff`` says."""
        return json.dumps(self.file_content(), indent=2, sort_keys=True) + "\n"


def as_float(name: str, value: object) -> float:
    """A number from outside as a float; raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name}={value!r}; it must be a number")
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"{name} is too large a number") from None


def as_tuple(name: str, values: object, kind: type[float] | type[int]) -> tuple[Any, ...]:
    """A list of numbers from outside as a tuple of ``kind``; raises ConfigError."""
    if not isinstance(values, (list, tuple)):
        raise ConfigError(f"{name}={values!r}; it must be a list of numbers")
    if kind is float:
        return tuple(as_float(name, value) for value in values)
    if not all(type(value) is int for value in values):
        raise ConfigError(f"{name}={values!r}; it must be a list of whole numbers")
    return tuple(values)
