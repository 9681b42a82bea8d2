"""Every hyper-parameter of a training run in one place.

A run is a sequence of stages over a progress from 0 to 1. Each stage sets its own losses, whether
it quantises, and, through its losses, whether it has a discriminator.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
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


@dataclass(frozen=True)
class Stage:
    """One phase of a run, which lasts until progress ``until``, with batches of ``items`` crops.

    ``weights`` multiply the losses or, if ``balanced``, are their shares of the gradient. With a
    ``frozen_encoder`` only the decoder is trained: encoder and codebooks stay as they are, so that
    existing codes remain decodable.
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
    def losses(self) -> frozenset[str]:
        """The names of the losses whose weight is above 0."""
        return frozenset(name for name, weight in self.weights.items() if weight > 0)

    @property
    def adversarial(self) -> bool:
        """Whether the stage has a discriminator."""
        return not self.losses.isdisjoint(_ADVERSARIAL)


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run: model, data mix, stages and optimisation.

    ``crop_s`` is the length of a crop in seconds, ``windows`` are the STFT windows of the losses in
    samples, and ``log_floor`` is added to magnitudes before their logarithm. The learning rate
    falls to ``lowest_rate_share`` of the stage's; ``output_rate_share`` is for the decoder's last
    layer (see ``Optimiser``). ``weight_ema`` and ``codebook_ema`` are decays per step.
    ``bypass_share`` of the items reach the decoder unquantised, and ``bandwidth_shares`` are those
    of the model's bandwidths, equal if empty. The discriminator is updated in a step with
    probability ``discriminator_chance``, and sees ``judged_share`` of each crop, from a random
    start.
    """

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
    judged_share: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Raise ConfigError for an impossible combination."""
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
                raise ConfigError(
                    f"stage {stage.name!r} has items={stage.items}; accepted: at least 1"
                )
        if self.bandwidth_shares and len(self.bandwidth_shares) != len(
            self.model.target_bandwidths
        ):
            raise ConfigError(
                f"{len(self.bandwidth_shares)} bandwidth_shares for the bandwidths "
                f"{self.model.target_bandwidths}; one share for each, or none for even shares"
            )
        if self.model.chunk_length_s not in (None, self.crop_s):
            raise ConfigError(
                f"crop_s={self.crop_s}; a model with chunks of {self.model.chunk_length_s} s is "
                "trained on crops as long as they are"
            )
        if not 0 < self.judged_share <= 1:
            raise ConfigError(f"judged_share={self.judged_share}; accepted: above 0, up to 1")
        if self.optimiser not in get_args(Kind):
            raise ConfigError(
                f"optimiser={self.optimiser!r}; accepted: {', '.join(get_args(Kind))}"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision={self.precision!r}; accepted: float32, bfloat16")

    @property
    def crop(self) -> int:
        """Samples per training crop, a whole number of frames."""
        hop = self.model.hop_length
        return max(1, round(self.crop_s * self.model.sampling_rate / hop)) * hop

    def stage_at(self, progress: float) -> Stage:
        """The stage at ``progress`` in [0, 1]."""
        return next((stage for stage in self.stages if progress < stage.until), self.stages[-1])

    def learning_rate(self, stage: Stage, progress: float, steps: int) -> float:
        """The rate at ``progress`` of the run and after ``steps`` of the stage.

        A linear warm-up per stage, times half a cosine over the whole run.
        """
        warm = min(1.0, (steps + 1) / self.warm_up_steps)
        lowest = self.lowest_rate_share
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return stage.learning_rate * warm * (lowest + (1 - lowest) * cosine)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = asdict(self)
        values["model"] = self.model.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """A configuration from what ``to_dict`` returned; raises ConfigError for anything else."""
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
        """Read a JSON file; raises ConfigError if it does not hold a configuration."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(
                f"{path} is not a readable training configuration: {error}"
            ) from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} does not hold a JSON object; give a training.json")
        return cls.from_dict(values)


def different_keys(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Sequence[str]:
    """'NAME is A there and B here' for every value in which two configurations differ."""
    return [
        f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
        for name in sorted(set(theirs) | set(ours))
        if _plain(theirs.get(name)) != _plain(ours.get(name))
    ]


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` from JSON with its lists as tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }


def computes_bfloat16(device: str) -> bool:
    """Whether ``device`` has bfloat16 instructions; without them convolutions are far slower."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # oneDNN asks for AVX-512 on x86; its answer is False for AVX2 alone.
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
