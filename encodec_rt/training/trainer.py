"""One training step after another, and everything needed to go on with the next one.

All chance comes from (seed, step), so the state is the step, the progress and tensors; on the CPU a
resumed run is bit for bit the run that was not interrupted, as long as its budget counts steps.

What is drawn is drawn on the CPU, before the step; the step itself never waits for a value of the
device, so that a GPU can run ahead and record it (``captured``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from encodec_rt.errors import WeightsError
from encodec_rt.model.encodec import EncodecModel, loudness
from encodec_rt.training import losses
from encodec_rt.training.adversary import Adversary, Judged
from encodec_rt.training.balancer import Balancer
from encodec_rt.training.captured import CapturedSteps, EagerSteps, Inputs
from encodec_rt.training.initialisation import initialise
from encodec_rt.training.optimiser import Optimiser
from encodec_rt.training.quantizer import (
    Quantised,
    draw_replacements,
    quantise,
    start_codebooks,
    with_entries,
    without_entries,
)
from encodec_rt.training.recipe import Stage, TrainingConfig, different_keys
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
            self.adversary = Adversary(config, device)
        initialise(self.model, generator)
        self.model.to(device).train()
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimiser = Optimiser(
            self.model,
            config.optimiser,
            betas=config.betas,
            output_rate_share=config.output_rate_share,
            clip_norm=config.clip_norm,
        )
        self.balancers = {
            stage.name: Balancer(stage.weights) for stage in config.stages if stage.balanced
        }
        self.step = 0
        self.stage = ""
        self.stage_step = 0
        self.codebooks_started = False
        self.encoder_frozen = False
        books = [config.model.codebooks_for(kbps) for kbps in config.model.target_bandwidths]
        self.books = torch.tensor(books)
        shares = config.bandwidth_shares or (1.0,) * len(books)
        self.book_shares = torch.tensor(shares, dtype=torch.float64)
        self.steps = CapturedSteps(device) if device.type == "cuda" else EagerSteps()

    def start_from(self, model: EncodecModel) -> None:
        """Go on from a trained model's weights, with new optimisers; WeightsError for another."""
        self._refuse_another(model.config.to_dict(), "the model to start from")
        for own in (self.model, self.average):
            own.load_state_dict(model.state_dict())
        self.codebooks_started = True

    def advance(self, progress: float) -> dict[str, Tensor]:
        """One step at ``progress`` in [0, 1); what was measured in it, by name, as 0-d tensors.

        The tensors stay on the device: reading one waits for the step.
        """
        stage = self.config.stage_at(progress)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        if stage.name != self.stage:
            self._enter(stage)
        if stage.quantised and not self.codebooks_started:
            self._start_codebooks(stage, generator)
        inputs = self._draw(stage, progress, generator)
        chance = float(torch.rand((), generator=generator))
        critic = stage.adversarial and chance < self.config.discriminator_chance

        def step(given: Inputs) -> dict[str, Tensor]:
            return self._step(stage, given, train_critic=critic)

        measured = self.steps.run((stage.name, critic), step, inputs)
        self.step += 1
        return measured

    def _draw(self, stage: Stage, progress: float, generator: torch.Generator) -> Inputs:
        """Everything that differs from one step to the next, on the device."""
        model = self.config.model
        inputs = {
            "audio": self.sampler.batch(self.step, stage.items),
            "rate": torch.tensor(
                self.config.learning_rate(stage, progress, self.step - self.stage_step)
            ),
            "decay": torch.tensor(min(self.config.weight_ema, (1 + self.step) / (10 + self.step))),
        }
        if stage.quantised:
            shape = stage.items, 1, 1
            drawn = torch.multinomial(self.book_shares, stage.items, True, generator=generator)
            frames = -(-inputs["audio"].shape[-1] // model.hop_length)
            levels = int(self.books.max())
            inputs["books"] = self.books[drawn]
            inputs["bypass"] = torch.rand(shape, generator=generator) < self.config.bypass_share
            inputs["replacements"] = draw_replacements(
                self.books[drawn], frames, levels, model.codebook_size, generator
            )
        if stage.adversarial:
            inputs["starts"] = self.adversary.draw_starts(stage.items, generator)
        if self.device.type == "cuda":
            # Copied from pinned memory, a batch is on its way while the step before computes.
            inputs = {name: value.pin_memory() for name, value in inputs.items()}
        return {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}

    def _step(self, stage: Stage, given: Inputs, *, train_critic: bool) -> dict[str, Tensor]:
        """The whole step on the device: forward, discriminator, losses, backward, averages."""
        target = given["audio"]
        estimate, quantised = self._forward(target, stage, given)
        measured = {"learning_rate": given["rate"].clone()}
        judged = None
        if stage.adversarial:
            judged = self.adversary.judge(estimate, target, given["starts"], self._autocast())
        terms = self._losses(estimate, target, stage, judged)
        critic_gradients: Sequence[Tensor] = ()
        if judged is not None and train_critic:
            measured["discriminator"], critic_gradients = self.adversary.gradients(judged)
        measured |= {name: term.detach() for name, term in terms.items()}
        self.optimiser.zero_grad()
        penalty = estimate.new_zeros(())
        if quantised is not None and not stage.frozen_encoder:
            penalty = self.config.commitment * quantised.commitment
            measured["commitment"] = quantised.commitment.detach()
            entries = self.config.model.codebook_size
            measured["live_share"] = quantised.used.float().mean() / entries
        if stage.balanced:
            gradient = self.balancers[stage.name].gradient(terms, estimate)
            roots, gradients = [estimate, penalty], [gradient, torch.ones_like(penalty)]
            if not penalty.requires_grad:
                roots, gradients = roots[:1], gradients[:1]
            torch.autograd.backward(roots, gradients)
        else:
            total = sum((stage.weights[name] * term for name, term in terms.items()), penalty)
            torch.autograd.backward([total])
        measured["gradient_norm"] = self.optimiser.step(given["rate"])
        if critic_gradients:
            self.adversary.move(critic_gradients)
        measured["si_sdr_db"] = self._si_sdr_db(estimate.detach(), target)
        self._follow(given["decay"])
        return measured

    def _forward(
        self, target: Tensor, stage: Stage, given: Inputs
    ) -> tuple[Tensor, Quantised | None]:
        scale = loudness(target) if self.config.model.normalize else None
        with torch.set_grad_enabled(not stage.frozen_encoder), self._autocast():
            latents = self.model.encoder(target if scale is None else target / scale)
        latents = latents.float()
        quantised = None
        if stage.quantised:
            quantised = quantise(
                self.model.quantizer,
                latents,
                given["books"],
                given["replacements"],
                decay=self.config.codebook_ema,
                dead_share=self.config.dead_share,
                frozen=stage.frozen_encoder,
            )
            latents = torch.where(given["bypass"], latents, quantised.latents)
        with self._autocast():
            estimate = self.model.decoder(latents).float()
        return estimate if scale is None else estimate * scale, quantised

    def _si_sdr_db(self, estimate: Tensor, target: Tensor) -> Tensor:
        pair = losses.one_channel(estimate), losses.one_channel(target)
        return losses.si_sdr_db(*pair).mean()

    def _enter(self, stage: Stage) -> None:
        """Begin ``stage``, with a warm-up of its own: its gradients may be quite different."""
        self.stage, self.stage_step = stage.name, self.step
        if stage.frozen_encoder and not self.encoder_frozen:
            self._freeze_encoder()

    @torch.no_grad()
    def _freeze_encoder(self) -> None:
        """Fix the encoder as the average that is exported, so that codes change no more."""
        self.model.encoder.load_state_dict(self.average.encoder.state_dict())
        self.encoder_frozen = True

    def reconstruction_losses(
        self, estimate: Tensor, target: Tensor, stage: Stage
    ) -> dict[str, Tensor]:
        """The losses that ``stage`` weighs and that need no discriminator, by name."""
        return losses.reconstruction_terms(
            estimate,
            target,
            stage.losses,
            sampling_rate=self.config.model.sampling_rate,
            windows=self.config.windows,
            log_floor=self.config.log_floor,
        )

    def _losses(
        self, estimate: Tensor, target: Tensor, stage: Stage, judged: Judged | None
    ) -> dict[str, Tensor]:
        terms = self.reconstruction_losses(estimate, target, stage)
        if judged is not None:
            terms |= judged.terms()
        return {name: term for name, term in terms.items() if name in stage.weights}

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

    @torch.no_grad()
    def _follow(self, decay: Tensor) -> None:
        """Move the averages of the weights; buffers are the model's own."""
        live: list[Tensor] = list(self.model.parameters())
        averages: list[Tensor] = list(self.average.parameters())
        towards = torch._foreach_sub(live, averages)
        torch._foreach_mul_(towards, 1 - decay)
        torch._foreach_add_(averages, towards)
        torch._foreach_copy_(list(self.average.buffers()), list(self.model.buffers()))

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that no pickle is needed to read them back."""
        return {
            "config": self.config.to_dict(),
            "step": self.step,
            "stage": self.stage,
            "stage_step": self.stage_step,
            "codebooks_started": self.codebooks_started,
            "encoder_frozen": self.encoder_frozen,
            "model": without_entries(self.model.state_dict()),
            # All else of the average is the model's own.
            "average": dict(self.average.named_parameters()),
            **self.adversary.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "balancers": {name: b.state_dict() for name, b in self.balancers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; raises WeightsError for another model's state.

        Another kind of optimiser, or of discriminator, begins anew.
        """
        self._refuse_another(state["config"]["model"], "the checkpoint")
        self.step = int(state["step"])
        self.stage = str(state.get("stage", ""))
        self.stage_step = int(state.get("stage_step", 0))
        self.codebooks_started = bool(state["codebooks_started"])
        self.encoder_frozen = bool(state.get("encoder_frozen", False))
        self.model.load_state_dict(with_entries(state["model"]))
        self.average.load_state_dict(self.model.state_dict() | dict(state["average"]))
        if state["config"]["optimiser"] == self.config.optimiser:
            self.optimiser.load_state_dict(state["optimiser"])
        self.adversary.load_state_dict(state["config"]["discriminator"], state)
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
