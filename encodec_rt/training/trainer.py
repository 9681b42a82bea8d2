"""The training step, and the state needed to resume after it.

All random numbers follow from (seed, step), so no generator state is saved. On the CPU a resumed
run equals an uninterrupted one bit for bit, as long as its budget counts steps.

Random numbers are drawn on the CPU, before the step. The step itself never waits for a value from
the device, so a GPU can run ahead, and the step can be recorded as a CUDA graph (``captured.py``).
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
from encodec_rt.training.captured import CapturedSteps, EagerSteps, Inputs, on_device
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
    """The model being trained, its ``average`` to be exported, optimisers and discriminator."""

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
        """Begin with ``model``'s weights. Raises WeightsError if its configuration differs."""
        self._require_same_model(model.config.to_dict(), "the model to start from")
        for own in (self.model, self.average):
            own.load_state_dict(model.state_dict())
        self.codebooks_started = True

    def advance(self, progress: float) -> dict[str, Tensor]:
        """Do one step at ``progress`` in [0, 1) -> its losses and statistics, by name.

        They are 0-d tensors on the device: reading one waits for the step.
        """
        stage = self.config.stage_at(progress)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        if stage.name != self.stage:
            self._enter(stage)
        if stage.quantised and not self.codebooks_started:
            self._start_codebooks(stage, generator)
        inputs = self._draw(stage, progress, generator)
        chance = float(torch.rand((), generator=generator))
        train_discriminator = stage.adversarial and chance < self.config.discriminator_chance

        def step(given: Inputs) -> dict[str, Tensor]:
            return self._step(stage, given, train_discriminator=train_discriminator)

        measured = self.steps.run((stage.name, train_discriminator), step, inputs)
        self.step += 1
        return measured

    def _draw(self, stage: Stage, progress: float, generator: torch.Generator) -> Inputs:
        """The step's inputs, on the device: whatever differs from one step to the next."""
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
        return on_device(inputs, self.device)

    def _step(self, stage: Stage, given: Inputs, *, train_discriminator: bool) -> dict[str, Tensor]:
        """The step itself, on the device: forward, discriminator, losses, backward, updates."""
        target = given["audio"]
        estimate, quantised = self._forward(target, stage, given)
        measured = {"learning_rate": given["rate"].clone()}
        judged = None
        if stage.adversarial:
            judged = self.adversary.judge(estimate, target, given["starts"], self._autocast())
        terms = self._losses(estimate, target, stage, judged)
        discriminator_gradients: Sequence[Tensor] = ()
        if judged is not None and train_discriminator:
            measured["discriminator"], discriminator_gradients = self.adversary.gradients(judged)
        measured |= {name: term.detach() for name, term in terms.items()}
        self.optimiser.zero_grad()
        penalty = estimate.new_zeros(())
        if quantised is not None and not stage.frozen_encoder:
            penalty = self.config.commitment * quantised.commitment
            measured["commitment"] = quantised.commitment.detach()
            entries = self.config.model.codebook_size
            measured["live_share"] = quantised.used.float().mean() / entries
        # Of the codec only: a recording would add the discriminator's to tensors freed since.
        if stage.balanced:
            roots, gradients = [estimate], [self.balancers[stage.name].gradient(terms, estimate)]
            if penalty.requires_grad:
                roots, gradients = [*roots, penalty], [*gradients, torch.ones_like(penalty)]
            torch.autograd.backward(roots, gradients, inputs=self.optimiser.parameters)
        else:
            total = sum((stage.weights[name] * term for name, term in terms.items()), penalty)
            torch.autograd.backward([total], inputs=self.optimiser.parameters)
        measured["gradient_norm"] = self.optimiser.step(given["rate"])
        if discriminator_gradients:
            self.adversary.step(discriminator_gradients)
        measured["si_sdr_db"] = self._si_sdr_db(estimate.detach(), target)
        self._update_average(given["decay"])
        return measured

    def _forward(
        self, target: Tensor, stage: Stage, given: Inputs
    ) -> tuple[Tensor, Quantised | None]:
        scale = loudness(target) if self.config.model.normalize else None
        # A decoder that is trained alone has to learn highs that bfloat16's noise would mask.
        autocast = self._autocast(exact=stage.frozen_encoder)
        with torch.set_grad_enabled(not stage.frozen_encoder), autocast:
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
        with autocast:
            estimate = self.model.decoder(latents).float()
        return estimate if scale is None else estimate * scale, quantised

    def _si_sdr_db(self, estimate: Tensor, target: Tensor) -> Tensor:
        pair = losses.one_channel(estimate), losses.one_channel(target)
        return losses.si_sdr_db(*pair).mean()

    def _enter(self, stage: Stage) -> None:
        """Begin ``stage`` with its own warm-up, since its gradients may be quite different."""
        self.stage, self.stage_step = stage.name, self.step
        if stage.frozen_encoder and not self.encoder_frozen:
            self._freeze_encoder()

    @torch.no_grad()
    def _freeze_encoder(self) -> None:
        """Replace the encoder by its average, which is exported, and keep it from then on."""
        self.model.encoder.load_state_dict(self.average.encoder.state_dict())
        self.encoder_frozen = True

    def reconstruction_losses(
        self, estimate: Tensor, target: Tensor, stage: Stage
    ) -> dict[str, Tensor]:
        """The losses of ``stage`` that need no discriminator, by name, of audio [B, C, L]."""
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
            # Step numbers beyond any run, so that training does not see these batches again.
            batch = self.sampler.batch(2**40 + number, stage.items).to(self.device)
            with self._autocast():
                scale = loudness(batch) if self.config.model.normalize else 1.0
                latents = self.model.encoder(batch / scale)
            rows.append(latents.float().permute(0, 2, 1).flatten(0, 1))
        start_codebooks(self.model.quantizer, torch.cat(rows), generator)
        self.codebooks_started = True

    @torch.no_grad()
    def _update_average(self, decay: Tensor) -> None:
        """Move the averaged weights towards the model's; buffers are copied."""
        live: list[Tensor] = list(self.model.parameters())
        averages: list[Tensor] = list(self.average.parameters())
        towards = torch._foreach_sub(live, averages)
        torch._foreach_mul_(towards, 1 - decay)
        torch._foreach_add_(averages, towards)
        torch._foreach_copy_(list(self.average.buffers()), list(self.model.buffers()))

    def _autocast(self, *, exact: bool = False) -> torch.autocast:
        enabled = self.config.precision == "bfloat16" and not exact
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def state_dict(self) -> dict[str, Any]:
        """The whole state, in tensors and plain values that need no unpickling of classes."""
        return {
            "config": self.config.to_dict(),
            "step": self.step,
            "stage": self.stage,
            "stage_step": self.stage_step,
            "codebooks_started": self.codebooks_started,
            "encoder_frozen": self.encoder_frozen,
            "model": without_entries(self.model.state_dict()),
            # The buffers of the average are the model's own.
            "average": dict(self.average.named_parameters()),
            **self.adversary.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "balancers": {name: b.state_dict() for name, b in self.balancers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from what ``state_dict`` returned; raises WeightsError if the model differs.

        If the optimiser or the discriminator differs, ours starts anew.
        """
        self._require_same_model(state["config"]["model"], "the checkpoint")
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

    def _require_same_model(self, theirs: Mapping[str, Any], what: str) -> None:
        differing = different_keys(theirs, self.config.model.to_dict())
        if differing:
            raise WeightsError(
                f"{what} has another configuration: {', '.join(differing)}; train with its own "
                "configuration, or start in another folder"
            )
