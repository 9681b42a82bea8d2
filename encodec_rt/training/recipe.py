"""Every hyper-parameter of a training run in one place, and the presets.

A run is a sequence of stages over a budget whose progress goes from 0 to 1. Which losses a stage
sums, whether it quantises and whether a discriminator takes part are its own settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import ConfigError
from encodec_rt.training.discriminator import DiscriminatorConfig
from encodec_rt.training.optimiser import Kind
from encodec_rt.training.sampler import MixConfig

LOSSES = (
    "time_l1",
    "mel",
    "relative_l1",
    "relative_magnitude",
    "relative_complex",
    "log_magnitude",
    "log_mel",
    "compressed",
    "adversarial",
    "features",
)
_ADVERSARIAL = ("adversarial", "features")

WAVEFORM_WEIGHTS = {
    "relative_l1": 1.0,
    "relative_magnitude": 1.0,
    "relative_complex": 0.5,
    "log_magnitude": 0.5,
}
"""What learns the waveform without a discriminator; heavier logarithms would drown its phase."""

LOUDNESS_WEIGHTS = {"relative_l1": 0.5, "compressed": 3.0, "log_magnitude": 0.25}
"""For the end of a run, when the waveform is learnt: what is heard. Without the logarithms what is
weak would be left out, the highs first."""

PAPER_WEIGHTS = {"time_l1": 0.1, "mel": 1.0, "adversarial": 3.0, "features": 3.0}
"""Gradient shares of the paper's 24 kHz model, for a balanced stage."""


@dataclass(frozen=True)
class Stage:
    """One phase of a run, which lasts until progress ``until``.

    ``weights`` are multiplied with the losses or, where ``balanced``, are their gradient shares.
    With a ``frozen_encoder`` neither the encoder nor the codebooks move: the decoder alone learns,
    and codes that were written before stay readable.
    """

    name: str
    until: float
    items: int
    learning_rate: float
    weights: Mapping[str, float]
    quantised: bool = True
    balanced: bool = False
    frozen_encoder: bool = False

    @property
    def adversarial(self) -> bool:
        """Whether a discriminator takes part."""
        return any(self.weights.get(name, 0) > 0 for name in _ADVERSARIAL)


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run: model, data mix, stages and optimisation."""

    model: EncodecConfig
    stages: tuple[Stage, ...]
    mix: MixConfig = field(default_factory=MixConfig)
    seed: int = 0
    crop_s: float = 0.8
    optimiser: Kind = "adam"
    betas: tuple[float, float] = (0.8, 0.99)
    clip_norm: float = 20.0
    output_rate_share: float = 0.03
    warm_up_steps: int = 50
    lowest_rate_share: float = 0.02
    weight_ema: float = 0.995
    windows: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    log_floor: float = 1e-2
    codebook_ema: float = 0.99
    dead_share: float = 0.1
    kmeans_batches: int = 30
    commitment: float = 0.25
    bypass_share: float = 0.25
    bandwidth_shares: tuple[float, ...] = ()
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    discriminator_rate: float = 3e-4
    discriminator_betas: tuple[float, float] = (0.5, 0.9)
    discriminator_chance: float = 2 / 3
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Raise ConfigError for a run that cannot be."""
        ends = [stage.until for stage in self.stages]
        if not ends or ends != sorted(set(ends)) or ends[0] <= 0 or ends[-1] != 1.0:
            raise ConfigError(f"stages end at {ends}; they must rise from above 0 to exactly 1")
        for stage in self.stages:
            if unknown := sorted(set(stage.weights) - set(LOSSES)):
                raise ConfigError(
                    f"stage {stage.name!r} weighs {', '.join(unknown)}; the losses are "
                    f"{', '.join(LOSSES)}"
                )
            if stage.items < 1:
                raise ConfigError(f"stage {stage.name!r} has items={stage.items}; at least 1")
        if self.bandwidth_shares and len(self.bandwidth_shares) != len(
            self.model.target_bandwidths
        ):
            raise ConfigError(
                f"{len(self.bandwidth_shares)} bandwidth_shares for the bandwidths "
                f"{self.model.target_bandwidths}; one share for each, or none for even shares"
            )
        if self.model.audio_channels != 1 or self.model.chunk_length_s is not None:
            raise ConfigError("training takes one-channel models without chunks")
        if self.optimiser not in get_args(Kind):
            raise ConfigError(
                f"optimiser={self.optimiser!r}; accepted: {', '.join(get_args(Kind))}"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision={self.precision!r}; accepted: float32, bfloat16")

    @property
    def crop(self) -> int:
        """Samples per training crop: a whole number of frames."""
        hop = self.model.hop_length
        return max(1, round(self.crop_s * self.model.sampling_rate / hop)) * hop

    def stage_at(self, progress: float) -> Stage:
        """The stage that progress in [0, 1] falls into."""
        return next((stage for stage in self.stages if progress < stage.until), self.stages[-1])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = asdict(self)
        values["model"] = self.model.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """A configuration from what ``to_dict`` gave; raises ConfigError for an unknown key."""
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"a training configuration has no {', '.join(unknown)}")
        plain = _with_tuples(values)
        try:
            return cls(
                **{
                    **plain,
                    "model": EncodecConfig.from_dict(values["model"]),
                    "stages": tuple(Stage(**stage) for stage in values["stages"]),
                    "mix": MixConfig(**_with_tuples(values["mix"])),
                    "discriminator": DiscriminatorConfig(**_with_tuples(values["discriminator"])),
                }
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(f"not a training configuration: {error}") from error

    @classmethod
    def load(cls, path: Path) -> TrainingConfig:
        """Read a JSON file; raises ConfigError when it holds no configuration."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path} is no readable training configuration: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds no JSON object")
        return cls.from_dict(values)


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as JSON gave them, with tuples for lists."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }


def computes_bfloat16(device: str) -> bool:
    """Whether ``device`` has instructions for bfloat16; without, convolutions are far slower."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # oneDNN asks for AVX-512 on x86; its answer is False for AVX2 alone.
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _small_model(filters: int, width: int) -> EncodecConfig:
    return EncodecConfig(
        target_bandwidths=(1.5, 3.0, 6.0, 12.0),
        num_filters=filters,
        hidden_size=width,
        pad_mode="constant",
    )


_SHARES = (0.15, 0.25, 0.35, 0.25)

_MIX = MixConfig(noise_share=0.1, reverb_share=0.1)

_DEFAULT = TrainingConfig(
    model=_small_model(16, 128),
    mix=_MIX,
    stages=(
        Stage("warm-up", 0.08, 4, 1e-3, WAVEFORM_WEIGHTS, quantised=False),
        Stage("waveform", 0.5, 4, 1e-3, WAVEFORM_WEIGHTS),
        Stage("loudness", 0.86, 4, 1e-3, LOUDNESS_WEIGHTS),
        Stage("loudness, larger batches", 1.0, 8, 1e-3, LOUDNESS_WEIGHTS),
    ),
    optimiser="muon",
    bandwidth_shares=_SHARES,
    precision="bfloat16",
)

PRESETS: Mapping[str, TrainingConfig] = MappingProxyType(
    {
        "default": _DEFAULT,
        "cpu-tiny": replace(_DEFAULT, model=_small_model(8, 64)),
        "gpu": replace(
            _DEFAULT,
            crop_s=1.0,
            weight_ema=0.999,
            stages=(
                Stage("warm-up", 0.05, 64, 1e-3, WAVEFORM_WEIGHTS, quantised=False),
                Stage("waveform", 0.4, 64, 1e-3, WAVEFORM_WEIGHTS),
                Stage(
                    "adversarial",
                    1.0,
                    64,
                    3e-4,
                    {"relative_l1": 0.1, "relative_complex": 0.5, "mel": 1.0}
                    | {"adversarial": 3.0, "features": 3.0},
                    balanced=True,
                ),
            ),
            discriminator=DiscriminatorConfig(filters=16),
        ),
        "decoder": replace(
            _DEFAULT,
            mix=replace(_MIX, full_band_share=0.75),
            stages=(
                Stage(
                    "decoder alone",
                    1.0,
                    6,
                    3e-4,
                    {"relative_complex": 0.5, "compressed": 1.0, "log_mel": 1.0, "mel": 1.0}
                    | {"adversarial": 3.0, "features": 2.0},
                    balanced=True,
                    frozen_encoder=True,
                ),
            ),
            crop_s=0.4,
            optimiser="adam",
            betas=(0.7, 0.95),
            output_rate_share=0.1,
            weight_ema=0.998,
            bypass_share=0.0,
            discriminator=DiscriminatorConfig(windows=(1024, 512, 256), filters=12, gain=10.0),
            discriminator_rate=1e-3,
            discriminator_chance=1.0,
        ),
        "paper": TrainingConfig(
            model=EncodecConfig(),
            stages=(Stage("paper", 1.0, 64, 3e-4, PAPER_WEIGHTS, balanced=True),),
            mix=MixConfig(music=0.32, speech=0.32, two=0.24, three=0.12),
            crop_s=1.0,
            betas=(0.5, 0.9),
            bypass_share=0.0,
            lowest_rate_share=1.0,
            output_rate_share=1.0,
        ),
        "smoke": replace(
            _DEFAULT,
            mix=MixConfig(),
            model=EncodecConfig(
                target_bandwidths=(1.5, 3.0),
                num_filters=4,
                hidden_size=16,
                codebook_size=64,
                num_lstm_layers=1,
                pad_mode="constant",
            ),
            stages=(
                Stage("warm-up", 0.3, 4, 2e-3, WAVEFORM_WEIGHTS, quantised=False),
                Stage("codec", 0.7, 4, 2e-3, LOUDNESS_WEIGHTS),
                Stage(
                    "adversarial",
                    1.0,
                    4,
                    1e-3,
                    {**LOUDNESS_WEIGHTS, **PAPER_WEIGHTS},
                    balanced=True,
                ),
            ),
            bandwidth_shares=(),
            crop_s=0.2,
            windows=(64, 256, 1024),
            kmeans_batches=4,
            warm_up_steps=5,
            discriminator=DiscriminatorConfig(windows=(512, 128), filters=4),
            precision="float32",
        ),
    }
)
"""``default`` is for one CPU core; ``gpu`` adds the discriminator; ``decoder`` goes on with a
trained model's decoder alone, so that its codes stay; ``paper`` is the paper."""
