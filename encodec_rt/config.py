"""The configuration of an EnCodec model, and the integers that follow from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from encodec_rt.errors import ConfigError

CONFIG_NAME = "config.json"
NORM_TYPES = ("weight_norm", "time_group_norm")
PAD_MODES = ("constant", "reflect", "replicate")


@dataclass
class EncodecConfig:
    """Architecture of an EnCodec model; names, defaults and file format are Hugging Face's.

    The defaults are the 24 kHz model of the paper (arXiv 2210.13438). Bandwidths are in kbps,
    ``chunk_length_s`` in seconds, ``overlap`` is a share of a chunk. Raises ConfigError for a
    combination that no model can have.
    """

    target_bandwidths: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0)
    sampling_rate: int = 24_000
    audio_channels: int = 1
    normalize: bool = False
    chunk_length_s: float | None = None
    overlap: float | None = None
    hidden_size: int = 128
    num_filters: int = 32
    num_residual_layers: int = 1
    upsampling_ratios: tuple[int, ...] = (8, 5, 4, 2)
    norm_type: str = "weight_norm"
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    use_causal_conv: bool = True
    pad_mode: str = "reflect"
    compress: int = 2
    num_lstm_layers: int = 2
    trim_right_ratio: float = 1.0
    codebook_size: int = 1024
    codebook_dim: int | None = None
    use_conv_shortcut: bool = True

    def __post_init__(self) -> None:
        """Normalise sequences to tuples and check the whole."""
        self.target_bandwidths = _as_tuple("target_bandwidths", self.target_bandwidths, float)
        self.upsampling_ratios = _as_tuple("upsampling_ratios", self.upsampling_ratios, int)
        if self.codebook_dim is None:
            self.codebook_dim = self.hidden_size
        self.validate()

    def validate(self) -> None:
        """Raise ConfigError, in one sentence, if no model can have this configuration."""
        for name in _POSITIVE:
            _require_int(name, getattr(self, name), at_least=1)
        _require_int("num_residual_layers", self.num_residual_layers, at_least=0)
        for name in ("normalize", "use_causal_conv", "use_conv_shortcut"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(f"{name}={value!r}; it must be true or false")
        if self.audio_channels not in (1, 2):
            raise ConfigError(f"audio_channels={self.audio_channels}; EnCodec has 1 or 2")
        if self.norm_type not in NORM_TYPES:
            raise ConfigError(f"norm_type={self.norm_type!r}; accepted: {', '.join(NORM_TYPES)}")
        if self.pad_mode not in PAD_MODES:
            raise ConfigError(f"pad_mode={self.pad_mode!r}; accepted: {', '.join(PAD_MODES)}")
        if not self.upsampling_ratios or min(self.upsampling_ratios) < 1:
            raise ConfigError(
                f"upsampling_ratios={self.upsampling_ratios}; at least one whole number >= 1"
            )
        if self.compress > self.num_filters:
            raise ConfigError(
                f"compress={self.compress} leaves no channel of num_filters={self.num_filters} "
                "in a residual block"
            )
        if self.codebook_size & (self.codebook_size - 1) or self.codebook_size < 2:
            raise ConfigError(f"codebook_size={self.codebook_size}; it must be a power of two >= 2")
        if self.codebook_dim != self.hidden_size:
            raise ConfigError(
                f"codebook_dim={self.codebook_dim} differs from hidden_size={self.hidden_size}; "
                "the codebooks quantise the encoder's output as it is"
            )
        for name in ("trim_right_ratio", "chunk_length_s", "overlap"):
            _require_number(name, getattr(self, name))
        if not 0.0 <= self.trim_right_ratio <= 1.0:
            raise ConfigError(f"trim_right_ratio={self.trim_right_ratio}; it lies in [0, 1]")
        if self.trim_right_ratio != 1.0 and not self.use_causal_conv:
            raise ConfigError("trim_right_ratio other than 1 needs use_causal_conv=true")
        self._validate_bandwidths()
        self._validate_chunks()

    def _validate_bandwidths(self) -> None:
        bandwidths = self.target_bandwidths
        if not bandwidths or not all(math.isfinite(b) and b > 0 for b in bandwidths):
            raise ConfigError(f"target_bandwidths={bandwidths}; positive numbers of kbps")
        if list(bandwidths) != sorted(set(bandwidths)):
            raise ConfigError(f"target_bandwidths={bandwidths}; they must rise")
        if self.num_quantizers < 1:
            one = self.frame_rate * self.codebook_nbits / 1000
            raise ConfigError(
                f"target_bandwidths={bandwidths}; one codebook alone takes {one:g} kbps at "
                f"{self.frame_rate} frames per second"
            )

    def _validate_chunks(self) -> None:
        if self.overlap is not None and not 0.0 <= self.overlap < 1.0:
            raise ConfigError(f"overlap={self.overlap}; it lies in [0, 1)")
        if self.chunk_length_s is None:
            return
        if self.overlap is None:
            raise ConfigError("chunk_length_s needs overlap, a share of the chunk such as 0.01")
        if (
            not math.isfinite(self.chunk_length_s)
            or int(self.chunk_length_s * self.sampling_rate) < 1
        ):
            raise ConfigError(f"chunk_length_s={self.chunk_length_s}; at least one sample")

    @property
    def chunk_length(self) -> int | None:
        """Samples per chunk, or None for a model that takes a clip as a whole."""
        if self.chunk_length_s is None:
            return None
        return int(self.chunk_length_s * self.sampling_rate)

    @property
    def chunk_stride(self) -> int | None:
        """Samples from one chunk's start to the next one's."""
        if self.chunk_length_s is None or self.overlap is None:
            return None
        return max(1, int((1.0 - self.overlap) * int(self.chunk_length_s * self.sampling_rate)))

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.upsampling_ratios)

    @property
    def frame_rate(self) -> int:
        """Frames per second, rounded up as the paper's models do."""
        return math.ceil(self.sampling_rate / self.hop_length)

    @property
    def codebook_nbits(self) -> int:
        """Bits per code."""
        return math.ceil(math.log2(self.codebook_size))

    @property
    def num_quantizers(self) -> int:
        """Codebooks of the whole model."""
        return int(1000 * self.target_bandwidths[-1] // (self.frame_rate * self.codebook_nbits))

    def codebooks_for(self, bandwidth_kbps: float) -> int:
        """Codebooks that one of ``target_bandwidths`` takes: max(1, floor(kbps / kbps per book)).

        Raises ConfigError for a bandwidth the model was not made for.
        """
        if bandwidth_kbps not in self.target_bandwidths:
            accepted = ", ".join(f"{b:g}" for b in self.target_bandwidths)
            raise ConfigError(f"bandwidth {bandwidth_kbps} kbps; this model has {accepted}")
        books = math.floor(bandwidth_kbps * 1000 / (self.codebook_nbits * self.frame_rate))
        return min(self.num_quantizers, max(1, books))

    def to_dict(self) -> dict[str, Any]:
        """The content of a ``config.json`` that Hugging Face's class reads too."""
        values = asdict(self)
        values["target_bandwidths"] = list(self.target_bandwidths)
        values["upsampling_ratios"] = list(self.upsampling_ratios)
        return {"architectures": ["EncodecModel"], "model_type": "encodec", **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncodecConfig:
        """A configuration from the content of a ``config.json``.

        Keys that describe no architecture (``transformers_version`` and the like) are passed over.
        Raises ConfigError when the file is of another kind of model or holds an impossible value.
        """
        model_type = values.get("model_type", "encodec")
        if model_type != "encodec":
            raise ConfigError(f"model_type={model_type!r}; this package runs 'encodec' models")
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})

    @classmethod
    def from_pretrained(cls, source: str | Path) -> EncodecConfig:
        """The configuration in ``source``: a config.json, or a folder or hub id that has one."""
        from encodec_rt.model.checkpoint import find_file

        path = Path(source) if Path(source).is_file() else find_file(source, CONFIG_NAME)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path} is not a readable JSON configuration: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds no JSON object")
        return cls.from_dict(values)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` into ``folder``, which is made if need be."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        (target / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


_POSITIVE = (
    "sampling_rate", "audio_channels", "hidden_size", "num_filters", "kernel_size",
    "last_kernel_size", "residual_kernel_size", "dilation_growth_rate", "compress",
    "num_lstm_layers", "codebook_size", "codebook_dim",
)  # fmt: skip


def _require_int(name: str, value: object, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ConfigError(f"{name}={value!r}; it must be a whole number >= {at_least}")


def _require_number(name: str, value: object) -> None:
    if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool)):
        raise ConfigError(f"{name}={value!r}; it must be a number")


def _as_tuple(name: str, values: object, kind: type[float] | type[int]) -> tuple[Any, ...]:
    accepted = (int,) if kind is int else (int, float)
    if not isinstance(values, (list, tuple)) or not all(
        isinstance(value, accepted) and not isinstance(value, bool) for value in values
    ):
        raise ConfigError(f"{name}={values!r}; it must be a list of numbers")
    return tuple(kind(value) for value in values)


PRESETS: Mapping[str, EncodecConfig] = MappingProxyType(
    {
        "encodec_24khz": EncodecConfig(),
        "encodec_48khz": EncodecConfig(
            target_bandwidths=(3.0, 6.0, 12.0, 24.0),
            sampling_rate=48_000,
            audio_channels=2,
            normalize=True,
            chunk_length_s=1.0,
            overlap=0.01,
            norm_type="time_group_norm",
            use_causal_conv=False,
        ),
    }
)
"""The two models of the paper, under the names that ``.ecdc`` files give them."""
