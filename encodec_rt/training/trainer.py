"""One training step after another, and everything needed to go on with the next one.

All chance comes from (seed, step), so the state is the step, the progress and tensors; on the CPU a
resumed run is bit for bit the run that was not interrupted, as long as its budget counts steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from encodec_rt.errors import WeightsError
from encodec_rt.model.encodec import EncodecModel, loudness
from encodec_rt.training import losses
from encodec_rt.training.balancer import Balancer
from encodec_rt.training.discriminator import MultiScaleStftDiscriminator
from encodec_rt.training.initialisation import initialise
from encodec_rt.training.optimiser import Optimiser
from encodec_rt.training.quantizer import (
    Quantised,
    quantise,
    start_codebooks,
    with_entries,
    without_entries,
)
from encodec_rt.training.recipe import Stage, TrainingConfig
from encodec_rt.training.sampler import Batches


class Trainer:
    """The model under training with its averages, optimisers, balancer and discriminator."""

    def __init__(self, config: TrainingConfig, sampler: Batches, device: torch.device) -> None:
        """Build and initialise everything from ``config.seed``."""
        self.config = config
        self.sampler = sampler
        self.device = device
        generator = torch.Generator().manual_seed(config.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = EncodecModel(config.model)
            self.discriminator = MultiScaleStftDiscriminator(config.discriminator)
        initialise(self.model, generator)
        self.model.to(device).train()
        self.discriminator.to(device).train()
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimiser = Optimiser(
            self.model,
            config.optimiser,
            betas=config.betas,
            output_rate_share=config.output_rate_share,
            clip_norm=config.clip_norm,
        )
        self.critic = torch.optim.Adam(
            self.discriminator.parameters(), betas=config.discriminator_betas
        )
        self.balancers = {
            stage.name: Balancer(stage.weights) for stage in config.stages if stage.balanced
        }
        self.step = 0
        self.codebooks_started = False
        self.encoder_frozen = False
        books = [config.model.codebooks_for(kbps) for kbps in config.model.target_bandwidths]
        self.books = torch.tensor(books)
        shares = config.bandwidth_shares or (1.0,) * len(books)
        self.book_shares = torch.tensor(shares, dtype=torch.float64)

    def start_from(self, model: EncodecModel) -> None:
        """Go on from a trained model's weights, with new optimisers; WeightsError for another."""
        self._refuse_another(model.config.to_dict(), "the model to start from")
        for own in (self.model, self.average):
            own.load_state_dict(model.state_dict())
        self.codebooks_started = True

    def advance(self, progress: float) -> dict[str, float]:
        """One step at ``progress`` in [0, 1); what was measured in it, by name."""
        stage = self.config.stage_at(progress)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        target = self.sampler.batch(self.step, stage.items).to(self.device)
        if stage.frozen_encoder and not self.encoder_frozen:
            self._freeze_encoder()
        if stage.quantised and not self.codebooks_started:
            self._start_codebooks(stage, generator)
        rate = self._learning_rate(stage, progress)
        estimate, quantised = self._forward(target, stage, generator)
        measured = {"learning_rate": rate}
        if stage.adversarial:
            measured |= self._train_discriminator(target, estimate, generator)
        terms = self._losses(estimate, target, stage)
        measured |= {name: float(term.detach()) for name, term in terms.items()}
        self.optimiser.zero_grad()
        penalty = estimate.new_zeros(())
        if quantised is not None and not stage.frozen_encoder:
            penalty = self.config.commitment * quantised.commitment
            measured["commitment"] = float(quantised.commitment.detach())
            entries = self.config.model.codebook_size
            measured["live_share"] = float(quantised.used.float().mean()) / entries
        if stage.balanced:
            gradient = self.balancers[stage.name].gradient(terms, estimate)
            roots, gradients = [estimate, penalty], [gradient, torch.ones_like(penalty)]
            if not penalty.requires_grad:
                roots, gradients = roots[:1], gradients[:1]
            torch.autograd.backward(roots, gradients)
        else:
            total = sum((stage.weights[name] * term for name, term in terms.items()), penalty)
            torch.autograd.backward([total])
        measured["gradient_norm"] = self.optimiser.step(rate)
        measured["si_sdr_db"] = self._si_sdr_db(estimate.detach(), target)
        self.step += 1
        self._follow()
        return measured

    def _forward(
        self, target: Tensor, stage: Stage, generator: torch.Generator
    ) -> tuple[Tensor, Quantised | None]:
        scale = loudness(target) if self.config.model.normalize else None
        with torch.set_grad_enabled(not stage.frozen_encoder), self._autocast():
            latents = self.model.encoder(target if scale is None else target / scale)
        latents = latents.float()
        quantised = None
        if stage.quantised:
            items = len(target)
            drawn = torch.multinomial(self.book_shares, items, True, generator=generator)
            bypass = torch.rand(items, 1, 1, generator=generator) < self.config.bypass_share
            quantised = quantise(
                self.model.quantizer,
                latents,
                self.books[drawn],
                generator,
                decay=self.config.codebook_ema,
                dead_share=self.config.dead_share,
                frozen=stage.frozen_encoder,
            )
            latents = torch.where(bypass.to(self.device), latents, quantised.latents)
        with self._autocast():
            estimate = self.model.decoder(latents).float()
        return estimate if scale is None else estimate * scale, quantised

    def _si_sdr_db(self, estimate: Tensor, target: Tensor) -> float:
        pair = losses.one_channel(estimate), losses.one_channel(target)
        return float(losses.si_sdr_db(*pair).mean())

    @torch.no_grad()
    def _freeze_encoder(self) -> None:
        """Fix the encoder as the average that is exported, so that codes change no more."""
        self.model.encoder.load_state_dict(self.average.encoder.state_dict())
        self.encoder_frozen = True

    def reconstruction_losses(
        self, estimate: Tensor, target: Tensor, stage: Stage
    ) -> dict[str, Tensor]:
        """The losses that ``stage`` weighs and that need no discriminator, by name."""
        config, rate = self.config, self.config.model.sampling_rate
        estimate, target = losses.one_channel(estimate), losses.one_channel(target)
        wanted = {name for name, weight in stage.weights.items() if weight > 0}
        terms = losses.relative_terms(
            estimate,
            target,
            sampling_rate=rate,
            windows=config.windows,
            names=wanted,
            log_floor=config.log_floor,
        )
        if "time_l1" in wanted:
            terms["time_l1"] = losses.time_l1(estimate, target)
        if "mel" in wanted:
            terms["mel"] = losses.mel_l1_l2(estimate, target, sampling_rate=rate)
        return terms

    def _losses(self, estimate: Tensor, target: Tensor, stage: Stage) -> dict[str, Tensor]:
        terms = self.reconstruction_losses(estimate, target, stage)
        if stage.adversarial:
            self.discriminator.requires_grad_(False)
            with torch.no_grad():
                _, real_features = self._judge(target)
            fake, fake_features = self._judge(estimate)
            terms["adversarial"] = losses.generator_hinge(fake)
            terms["features"] = losses.feature_matching(real_features, fake_features)
        return {name: term for name, term in terms.items() if name in stage.weights}

    def _judge(self, audio: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """The discriminator's logits and features of every scale, in float32."""
        with self._autocast():
            logits, features = self.discriminator(losses.one_channel(audio))
        return [part.float() for part in logits], [[f.float() for f in own] for own in features]

    def _train_discriminator(
        self, target: Tensor, estimate: Tensor, generator: torch.Generator
    ) -> dict[str, float]:
        if float(torch.rand((), generator=generator)) >= self.config.discriminator_chance:
            return {}
        self.discriminator.requires_grad_(True)
        real, _ = self._judge(target)
        fake, _ = self._judge(estimate.detach())
        loss = losses.discriminator_hinge(real, fake)
        self.critic.zero_grad(set_to_none=True)
        torch.autograd.backward([loss])
        for group in self.critic.param_groups:
            group["lr"] = self.config.discriminator_rate
        self.critic.step()
        return {"discriminator": float(loss.detach())}

    @torch.no_grad()
    def _start_codebooks(self, stage: Stage, generator: torch.Generator) -> None:
        rows = []
        for number in range(self.config.kmeans_batches):
            # Batches after the end of any run, so that none of them is seen twice.
            batch = self.sampler.batch(2**40 + number, stage.items).to(self.device)
            with self._autocast():
                scale = loudness(batch) if self.config.model.normalize else 1.0
                latents = self.model.encoder(batch / scale)
            rows.append(latents.float().permute(0, 2, 1).flatten(0, 1))
        start_codebooks(self.model.quantizer, torch.cat(rows), generator)
        self.codebooks_started = True

    def _learning_rate(self, stage: Stage, progress: float) -> float:
        warm = min(1.0, (self.step + 1) / self.config.warm_up_steps)
        lowest = self.config.lowest_rate_share
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return stage.learning_rate * warm * (lowest + (1 - lowest) * cosine)

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.config.weight_ema, (1 + self.step) / (10 + self.step))
        live, average = self.model.state_dict(), self.average.state_dict()
        parameters = {name for name, _ in self.model.named_parameters()}
        for name, value in average.items():
            if name in parameters:
                value.lerp_(live[name], 1 - decay)
            else:
                value.copy_(live[name])

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that no pickle is needed to read them back."""
        return {
            "config": self.config.to_dict(),
            "step": self.step,
            "codebooks_started": self.codebooks_started,
            "encoder_frozen": self.encoder_frozen,
            "model": without_entries(self.model.state_dict()),
            # All else of the average is the model's own.
            "average": dict(self.average.named_parameters()),
            "discriminator": self.discriminator.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "critic": self.critic.state_dict(),
            "balancers": {name: b.state_dict() for name, b in self.balancers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; raises WeightsError for another model's state.

        Another kind of optimiser, or of discriminator, begins anew.
        """
        self._refuse_another(state["config"]["model"], "the checkpoint")
        self.step = int(state["step"])
        self.codebooks_started = bool(state["codebooks_started"])
        self.encoder_frozen = bool(state.get("encoder_frozen", False))
        self.model.load_state_dict(with_entries(state["model"]))
        self.average.load_state_dict(self.model.state_dict() | dict(state["average"]))
        if state["config"]["optimiser"] == self.config.optimiser:
            self.optimiser.load_state_dict(state["optimiser"])
        if state["config"]["discriminator"] == self.config.to_dict()["discriminator"]:
            self.discriminator.load_state_dict(state["discriminator"])
            self.critic.load_state_dict(state["critic"])
        for name, balancer in self.balancers.items():
            if name in state["balancers"]:
                balancer.load_state_dict(state["balancers"][name])

    def _refuse_another(self, theirs: Mapping[str, Any], what: str) -> None:
        differing = different_keys(theirs, self.config.model.to_dict())
        if differing:
            raise WeightsError(
                f"{what} is of another model: {', '.join(differing)}; train with its own "
                "configuration, or start in another folder"
            )


def different_keys(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Sequence[str]:
    """'name: theirs, not ours' for every value in which two configurations differ."""
    return [
        f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
        for name in sorted(set(theirs) | set(ours))
        if _plain(theirs.get(name)) != _plain(ours.get(name))
    ]


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
