"""The adversarial part of a training step: the discriminator, its optimiser and what it judges.

Codec and discriminator share one forward pass over the original and one over the decoded audio.
This saves two of ten passes through the largest network of the step.
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
    """The discriminator's outputs for a batch: logits per scale, features per scale and layer.

    The features of the ``real`` audio carry no gradient.
    """

    real: list[Tensor]
    fake: list[Tensor]
    real_features: list[list[Tensor]]
    fake_features: list[list[Tensor]]

    def terms(self) -> dict[str, Tensor]:
        """The losses of the codec, by name."""
        return {
            "adversarial": losses.generator_hinge(self.fake),
            "features": losses.feature_matching(self.real_features, self.fake_features),
        }


class Adversary:
    """The discriminator of a run and its optimiser."""

    def __init__(self, config: TrainingConfig, device: torch.device) -> None:
        """Initialise it from torch's global random state, which the caller seeds."""
        self.config = config
        self.discriminator = MultiScaleStftDiscriminator(config.discriminator).to(device).train()
        self.optimiser = adam(
            self.discriminator.parameters(),
            config.discriminator_betas,
            rate=config.discriminator_rate,
        )

    def draw_starts(self, items: int, generator: torch.Generator) -> Tensor:
        """The first sample of the judged part of each crop -> [items], in samples."""
        latest = self.config.crop - self._judged_samples()
        return torch.randint(latest + 1, (items,), generator=generator)

    def judge(
        self,
        estimate: Tensor,
        target: Tensor,
        starts: Tensor,
        autocast: AbstractContextManager[Any],
    ) -> Judged:
        """Run the discriminator on parts of both signals [B, C, L]; the outputs are float32.

        The parts begin at ``starts`` [B] and are ``judged_share`` of a crop long.
        """
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
        """The discriminator's loss, and its gradient for each parameter; keeps the graph."""
        loss = losses.discriminator_hinge(judged.real, judged.fake)
        parameters = list(self.discriminator.parameters())
        return loss.detach(), torch.autograd.grad(loss, parameters, retain_graph=True)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Update the discriminator; call it only once the codec's own gradient is computed."""
        for parameter, gradient in zip(self.discriminator.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """The weights and the optimiser's moments, as plain tensors."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "critic": moments(self.optimiser),
        }

    def load_state_dict(self, config: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Resume from ``state``, or start anew if its ``config`` is of another discriminator."""
        ours = asdict(self.config.discriminator)
        if {**config, "windows": tuple(config["windows"])} == ours:
            self.discriminator.load_state_dict(state["discriminator"])
            load_moments(self.optimiser, state["critic"])

    def start_from(self, state: Mapping[str, Any]) -> None:
        """Copy the trained scales from a trainer's ``state``; the optimiser stays new.

        This run may use fewer scales than the other. Raises WeightsError if the other lacks one of
        ours, or differs in width or gain.
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
