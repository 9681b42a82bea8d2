"""A step that a CUDA graph can hold: it never asks the device for a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from encodec_rt.lm.tensors import LmConfig
from encodec_rt.training import language_model, optimiser
from encodec_rt.training.captured import EagerSteps
from encodec_rt.training.language_model import LmRecipe, LmTraining
from encodec_rt.training.presets import PRESETS
from encodec_rt.training.trainer import Trainer

SMOKE = PRESETS["smoke"]
_READING = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "is_nonzero")


class Noise:
    """Batches of noise."""

    def batch(self, step: int, items: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        return 0.1 * torch.randn(items, 1, SMOKE.crop, generator=generator)


class Reads(TorchDispatchMode):
    """Collects the names of operations that need a value on the CPU before they can go on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = str(func)
        masks = name.startswith("aten.index") and any(
            isinstance(part, Tensor) and part.dtype == torch.bool
            for part in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if masks or any(part in name for part in _READING):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def trainer() -> Trainer:
    made = Trainer(SMOKE, Noise(), torch.device("cpu"))
    made.advance(0.0)
    made.advance(0.5)
    return made


@pytest.mark.parametrize("stage", SMOKE.stages, ids=lambda stage: stage.name)
def test_a_step_waits_for_no_value_of_the_device(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = trainer()
    # On a CPU torch's own Adam reads its rate and step; on a GPU both are tensors.
    ours.optimiser.parts = [p for p in ours.optimiser.parts if isinstance(p, optimiser.Muon)]
    monkeypatch.setattr(ours.adversary.optimiser, "step", lambda: None)
    monkeypatch.setattr(optimiser, "set_rate", lambda group, rate: group.update(lr=rate))
    given = ours._draw(stage, 0.5, torch.Generator().manual_seed(0))
    ours._step(
        stage, given, train_discriminator=stage.adversarial
    )  # filters and windows are made once
    with Reads() as reads:
        ours._step(stage, given, train_discriminator=stage.adversarial)
    assert ours.optimiser.parts
    assert reads.found == []


@pytest.mark.parametrize("balanced", [False, True])
def test_the_codecs_backward_pass_leaves_the_discriminators_gradients_alone(
    balanced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = trainer()
    stage = replace(SMOKE.stages[-1], balanced=balanced)
    monkeypatch.setattr(ours.adversary, "step", lambda gradients: None)
    for frozen in (False, True):
        given = ours._draw(stage, 0.9, torch.Generator().manual_seed(0))
        ours._step(replace(stage, frozen_encoder=frozen), given, train_discriminator=True)
        assert all(p.grad is None for p in ours.adversary.discriminator.parameters())
        reached = [p.grad is not None for p in ours.model.encoder.parameters()]
        assert not any(reached) if frozen else all(reached)
        assert all(p.grad is not None for p in ours.model.decoder.parameters())


def test_a_decoder_alone_is_trained_in_float32() -> None:
    config = replace(SMOKE, precision="bfloat16")
    ours = Trainer(config, Noise(), torch.device("cpu"))
    ours.codebooks_started = True
    estimates = {}
    for frozen in (False, True):
        stage = replace(SMOKE.stages[1], frozen_encoder=frozen)
        given = ours._draw(stage, 0.5, torch.Generator().manual_seed(0))
        with torch.no_grad():
            estimates[frozen], _ = ours._forward(given["audio"], stage, given)
    rounded = [estimate.bfloat16().float() for estimate in estimates.values()]
    assert torch.equal(estimates[False], rounded[0])
    assert not torch.equal(estimates[True], rounded[1])


def test_a_step_of_a_language_model_waits_for_none_either(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [np.random.default_rng(0).integers(0, 16, (100, 2)).astype(np.uint16)]
    config, recipe = LmConfig((1, 1), 16, (24, 16), (1, 2)), LmRecipe(batch=2, frames=50)
    ours = LmTraining(clips, config, recipe, None, torch.device("cpu"))
    monkeypatch.setattr(ours._optimiser, "step", lambda: None)
    monkeypatch.setattr(language_model, "set_rate", lambda group, rate: group.update(lr=rate))
    given = {"places": torch.arange(50).expand(2, -1), "rate": torch.tensor(1e-3)}
    for rounding in (False, True):
        ours.model.round(rounding)
        with Reads() as reads:
            ours._step(given)
        assert reads.found == []


def test_reading_a_value_is_noticed() -> None:
    with Reads() as reads:
        float(torch.ones(3).sum())
        torch.ones(3)[torch.tensor([True, False, True])]
    assert len(reads.found) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_steps_train_as_eager_ones_do() -> None:
    config = replace(SMOKE, discriminator_chance=1.0)
    losses = []
    for eager in (True, False):
        ours = Trainer(config, Noise(), torch.device("cuda"))
        if eager:
            ours.steps = EagerSteps()
        rows = [ours.advance(progress) for progress in (0.0,) * 8 + (0.5,) * 8 + (0.9,) * 8]
        losses.append([float(row["si_sdr_db"]) for row in rows])
    assert losses[0] == pytest.approx(losses[1], abs=0.5)
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-3)
