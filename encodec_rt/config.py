"""The configuration of an EnCodec model, and the integers that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from encodec_rt.config_base import (
    HIGHEST,
    LOWEST,
    Chunked,
    PretrainedConfig,
    as_float,
    as_tuple,
)
from encodec_rt.errors import ConfigError
from encodec_rt.pretrained import (
    CONFIG_NAME,
    PretrainedSource,
    check_save_arguments,
    read_json,
    sort_arguments,
    write_json,
)

NORM_TYPES = ("weight_norm", "time_group_norm")
PAD_MODES = ("constant", "reflect", "replicate")
MAX_CODEBOOKS = 4096


@dataclass
class EncodecConfig(Chunked, PretrainedConfig):
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
        """Normalise numbers and sequences, and check everything."""
        self.target_bandwidths = as_tuple("target_bandwidths", self.target_bandwidths, float)
        self.upsampling_ratios = as_tuple("upsampling_ratios", self.upsampling_ratios, int)
        self.trim_right_ratio = as_float("trim_right_ratio", self.trim_right_ratio)
        if self.chunk_length_s is not None:
            self.chunk_length_s = as_float("chunk_length_s", self.chunk_length_s)
        if self.overlap is not None:
            self.overlap = as_float("overlap", self.overlap)
        if self.codebook_dim is None:
            self.codebook_dim = self.hidden_size
        self.validate()

    def validate(self) -> None:
        """Raise ConfigError, in one sentence, if no model can have this configuration."""
        self._validate_types()
        self._validate_choices()
        self._validate_trim()
        self._validate_layers()
        self._validate_bandwidths()
        self._validate_chunks()

    def _validate_types(self) -> None:
        for name, lowest in LOWEST.items():
            value = getattr(self, name)
            if type(value) is not int or not lowest <= value <= HIGHEST:
                raise ConfigError(f"{name}={value!r}; a whole number from {lowest} to {HIGHEST}")
        for name in ("normalize", "use_causal_conv", "use_conv_shortcut"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(f"{name}={value!r}; it must be true or false")

    def _validate_choices(self) -> None:
        if self.audio_channels not in (1, 2):
            raise ConfigError(f"audio_channels={self.audio_channels}; EnCodec has 1 or 2")
        if self.norm_type not in NORM_TYPES:
            raise ConfigError(f"norm_type={self.norm_type!r}; accepted: {', '.join(NORM_TYPES)}")
        if self.pad_mode not in PAD_MODES:
            raise ConfigError(f"pad_mode={self.pad_mode!r}; accepted: {', '.join(PAD_MODES)}")
        if self.codebook_size & (self.codebook_size - 1):
            raise ConfigError(f"codebook_size={self.codebook_size}; it must be a power of two")
        if self.codebook_dim != self.hidden_size:
            raise ConfigError(
                f"codebook_dim={self.codebook_dim} differs from hidden_size={self.hidden_size}; "
                "the codebooks quantise the encoder's output as it is"
            )

    def _validate_trim(self) -> None:
        if not 0.0 <= self.trim_right_ratio <= 1.0:
            raise ConfigError(f"trim_right_ratio={self.trim_right_ratio}; it must be in [0, 1]")
        if self.trim_right_ratio != 1.0 and not self.use_causal_conv:
            raise ConfigError(
                f"trim_right_ratio={self.trim_right_ratio} with use_causal_conv=false; a centred "
                "convolution is trimmed evenly, leave trim_right_ratio at 1.0"
            )

    def _validate_layers(self) -> None:
        ratios = self.upsampling_ratios
        if not ratios or min(ratios) < 1 or len(ratios) > 30 or math.prod(ratios) > HIGHEST:
            raise ConfigError(
                f"upsampling_ratios={ratios}; one or more whole numbers >= 1 whose product is at "
                f"most {HIGHEST}"
            )
        if self.num_filters << len(ratios) > HIGHEST:
            raise ConfigError(
                f"num_filters={self.num_filters}, doubled at each of {len(ratios)} "
                f"upsampling_ratios, is more than {HIGHEST} channels"
            )
        if self.num_residual_layers == 0:
            return
        if self.compress > self.num_filters:
            raise ConfigError(
                f"compress={self.compress} leaves no channel of num_filters={self.num_filters} "
                "in a residual block"
            )
        # In logarithms, since the power itself may be too long a number to write down.
        reach = (self.num_residual_layers - 1) * math.log2(self.dilation_growth_rate)
        if reach + math.log2(self.residual_kernel_size) > math.log2(HIGHEST):
            raise ConfigError(
                f"dilation_growth_rate={self.dilation_growth_rate} over num_residual_layers="
                f"{self.num_residual_layers} is a dilation of more than {HIGHEST} samples"
            )

    def _validate_bandwidths(self) -> None:
        bandwidths = self.target_bandwidths
        if not bandwidths or not all(math.isfinite(1000 * b) and b > 0 for b in bandwidths):
            raise ConfigError(f"target_bandwidths={bandwidths}; pass positive numbers of kbps")
        if list(bandwidths) != sorted(set(bandwidths)):
            raise ConfigError(f"target_bandwidths={bandwidths}; they must increase")
        one = self.frame_rate * self.codebook_nbits / 1000
        if not 1 <= self.num_quantizers <= MAX_CODEBOOKS:
            raise ConfigError(
                f"target_bandwidths={bandwidths} take {self.num_quantizers} codebooks at {one:g} "
                f"kbps each, {self.frame_rate} frames per second; a model has 1 to "
                f"{MAX_CODEBOOKS}"
            )

    def _validate_chunks(self) -> None:
        if self.overlap is not None and not 0.0 <= self.overlap < 1.0:
            raise ConfigError(f"overlap={self.overlap}; it must be in [0, 1)")
        if self.chunk_length_s is None:
            return
        if self.overlap is None:
            raise ConfigError(
                f"chunk_length_s={self.chunk_length_s} without overlap; give the share of a chunk "
                "that the next one repeats, such as 0.01"
            )
        if not 1 <= self.chunk_length_s * self.sampling_rate <= HIGHEST:
            raise ConfigError(
                f"chunk_length_s={self.chunk_length_s}; a chunk is 1 to {HIGHEST} samples long"
            )

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

    @property
    def is_framewise(self) -> bool:
        """Whether the model can be stepped frame by frame.

        Norms over time, centred convolutions, loudness normalisation and chunks all need audio from
        after a frame; models with them stream in segments.
        """
        return (
            self.use_causal_conv
            and self.norm_type == "weight_norm"
            and not self.normalize
            and self.chunk_length_s is None
        )

    def codebooks_for(self, bandwidth_kbps: float) -> int:
        """Codebooks for one of ``target_bandwidths``: max(1, floor(kbps / kbps per codebook)).

        Raises ConfigError for a bandwidth that the model does not have.
        """
        # An array's comparison is an array, which is neither true nor false.
        if getattr(bandwidth_kbps, "ndim", 0) or bandwidth_kbps not in self.target_bandwidths:
            accepted = ", ".join(f"{b:g}" for b in self.target_bandwidths)
            raise ConfigError(f"bandwidth {bandwidth_kbps!r} kbps; this model has {accepted}")
        books = math.floor(bandwidth_kbps * 1000 / (self.codebook_nbits * self.frame_rate))
        return min(self.num_quantizers, max(1, books))

    def to_dict(self) -> dict[str, Any]:
        """The content of a ``config.json`` that Hugging Face's class reads too."""
        values = asdict(self)
        values["target_bandwidths"] = list(self.target_bandwidths)
        values["upsampling_ratios"] = list(self.upsampling_ratios)
        return {"architectures": ["EncodecModel"], "model_type": self.model_type, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncodecConfig:
        """A configuration from the content of a ``config.json``.

        Keys that describe no architecture (``transformers_version`` and the like) are ignored.
        Raises ConfigError if the file is for another kind of model or holds an impossible value.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"a {type(values).__name__} is not the content of a config.json")
        model_type = values.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ConfigError(f"model_type={model_type!r}; this package runs 'encodec' models")
        names = {field.name for field in fields(cls)}
        config = cls(**{name: value for name, value in values.items() if name in names})
        dtype = values.get("dtype", values.get("torch_dtype"))
        config.dtype = dtype if isinstance(dtype, str) else None
        return config

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **arguments: Any
    ) -> EncodecConfig:
        """The configuration in a config.json, or in a folder or hub id that has one.

        ``arguments`` are fields that replace the stored ones, and those of
        ``pretrained.PretrainedSource`` (``revision``, ``subfolder``, ``cache_dir``,
        ``local_files_only``, ``token``, ...); other arguments of ``transformers`` are accepted if
        they have no effect here. Raises ConfigError for the rest, and WeightsError if there is no
        file.
        """
        names = {field.name for field in fields(cls)} | {"dtype", "torch_dtype"}
        places, changes = sort_arguments("EncodecConfig.from_pretrained", arguments, names)
        source = PretrainedSource(pretrained_model_name_or_path, **places)
        path = Path(source.name)
        if not path.is_file():
            path = source.find(CONFIG_NAME)
        # The type of the weights is handled by the model.
        changes.pop("dtype", changes.pop("torch_dtype", None))
        config = cls.from_dict({**read_json(path), **changes})
        config.name_or_path = str(pretrained_model_name_or_path)
        return config

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> None:
        """Write ``config.json`` into a folder, which is created if necessary.

        Of the other arguments of ``transformers``, ``push_to_hub`` is refused.
        """
        check_save_arguments("EncodecConfig.save_pretrained", arguments)
        write_json(Path(save_directory) / CONFIG_NAME, self.file_content())


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
