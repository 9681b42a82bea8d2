"""The adversarial side of a training step: the discriminator with its optimiser and its crops.

Codec and discriminator learn from one look at the same audio: its features serve both sides, which
saves two of ten passes through the largest network of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from encodec_rt.errors import WeightsError
from encodec_rt.training import losses
from encodec_rt.training.discriminator import MultiScaleStftDiscriminator
from encodec_rt.training.optimiser import adam, load_moments, moments
from encodec_rt.training.recipe import TrainingConfig, different_keys


class Judged(NamedTuple):
    """What the discriminator makes of a batch: logits of every scale, features of every layer."""

    real: list[Tensor]
    fake: list[Tensor]
    real_features: list[list[Tensor]]
    fake_features: list[list[Tensor]]

    def terms(self) -> dict[str, Tensor]:
        """The codec's losses."""
        return {
            "adversarial": losses.generator_hinge(self.fake),
            "features": losses.feature_matching(self.real_features, self.fake_features),
        }


class Adversary:
    """The discriminator of a run."""

    def __init__(self, config: TrainingConfig, device: torch.device) -> None:
        """Build it from torch's random state; the caller seeds that."""
        self.config = config
        self.discriminator = MultiScaleStftDiscriminator(config.discriminator).to(device).train()
        self.optimiser = adam(
            self.discriminator.parameters(),
            config.discriminator_betas,
            rate=config.discriminator_rate,
        )

    def draw_starts(self, items: int, generator: torch.Generator) -> Tensor:
        """Where in each item [items] the stretch that is judged begins, in samples."""
        latest = self.config.crop - self._judged_samples()
        return torch.randint(latest + 1, (items,), generator=generator)

    def judge(
        self,
        estimate: Tensor,
        target: Tensor,
        starts: Tensor,
        autocast: AbstractContextManager[Any],
    ) -> Judged:
        """One look at either [B, C, L], from ``starts`` [B] on, in float32."""
        samples = self._judged_samples()
        place = starts[:, None, None] + torch.arange(samples, device=starts.device)
        place = place.expand(-1, target.shape[1], -1)
        with autocast:
            real = self.discriminator(losses.one_channel(target.gather(2, place)))
            fake = self.discriminator(losses.one_channel(estimate.gather(2, place)))
        fixed = [[feature.detach().float() for feature in own] for own in real[1]]
        followed = [[feature.float() for feature in own] for own in fake[1]]
        logits = [[part.float() for part in side[0]] for side in (real, fake)]
        return Judged(logits[0], logits[1], fixed, followed)

    def gradients(self, judged: Judged) -> tuple[Tensor, Sequence[Tensor]]:
        """The discriminator's loss, and its gradient for every parameter."""
        loss = losses.discriminator_hinge(judged.real, judged.fake)
        parameters = list(self.discriminator.parameters())
        return loss.detach(), torch.autograd.grad(loss, parameters, retain_graph=True)

    def move(self, gradients: Sequence[Tensor]) -> None:
        """One step along ``gradients``, once the codec has no more use for the weights as is."""
        for parameter, gradient in zip(self.discriminator.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """Weights and moments, as plain tensors."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "critic": moments(self.optimiser),
        }

    def load_state_dict(self, config: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Go on with ``state``, unless its ``config`` describes another discriminator."""
        ours = asdict(self.config.discriminator)
        if {**config, "windows": tuple(config["windows"])} == ours:
            self.discriminator.load_state_dict(state["discriminator"])
            load_moments(self.optimiser, state["critic"])

    def start_from(self, state: Mapping[str, Any]) -> None:
        """Take over the trained scales of a trainer's ``state``, with a new optimiser.

        A run may use fewer scales than the other had. Raises WeightsError if one of ours is not
        among them or has another width or gain.
        """
        ours, theirs = self.config.discriminator, state["config"]["discriminator"]
        wanted = asdict(ours) | {"windows": list(ours.windows)}
        given = dict(theirs) | {"windows": [n for n in ours.windows if n in theirs["windows"]]}
        if differing := different_keys(given, wanted):
            raise WeightsError(f"the discriminator to start from differs: {', '.join(differing)}")
        for window, scale in zip(ours.windows, self.discriminator.scales, strict=True):
            prefix = f"scales.{list(theirs['windows']).index(window)}."
            own = (name for name in state["discriminator"] if name.startswith(prefix))
            scale.load_state_dict(
                {name.removeprefix(prefix): state["discriminator"][name] for name in own}
            )

    def _judged_samples(self) -> int:
        share = self.config.judged_share
        return max(1, round(share * self.config.crop))
