"""A training run on disk: its budget, checkpoints, curves and validation audio."""

from __future__ import annotations

import csv
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encodec_rt.atomic import replacing
from encodec_rt.errors import ConfigError, WeightsError
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.pretrained import write_json
from encodec_rt.training.recipe import TrainingConfig
from encodec_rt.training.sampler import Prefetcher, Sampler
from encodec_rt.training.tables import load_index
from encodec_rt.training.trainer import Trainer
from encodec_rt.training.validation import CROP_S, Validation

CHECKPOINT = "checkpoint.pt"
CURVES = "curves.csv"
CONFIG = "training.json"
_COLUMNS = ("step", "progress", "minutes", "name", "value")


@dataclass(frozen=True, slots=True)
class Budget:
    """When a run ends: after ``steps`` steps, or at ``deadline`` in Unix time (s).

    With steps, a run is reproducible bit for bit. With a deadline, the rest of the schedule is
    spread over the remaining time, so it ends on time however often it is interrupted.
    """

    steps: int | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError unless there is exactly one limit."""
        if (self.steps is None) == (self.deadline is None):
            raise ConfigError("a budget is a number of steps or a deadline: give one of the two")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps={self.steps}; accepted: at least 1")

    def progress(self, step: int, begun: float, begun_at: float, now: float) -> float:
        """Progress in [0, 1] at ``step`` and time ``now``.

        The session began at progress ``begun`` and time ``begun_at``; times are Unix times.
        """
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.deadline is not None
        left = self.deadline - begun_at
        return min(1.0, begun + (1 - begun) * (now - begun_at) / left) if left > 0 else 1.0


class Run:
    """One folder with a configuration, a checkpoint, curves and validation audio."""

    def __init__(
        self,
        folder: Path,
        data: Path,
        config: TrainingConfig,
        budget: Budget,
        *,
        device: torch.device | None = None,
        checkpoint_s: float = 180.0,
        log_steps: int = 25,
        validation_items: int = 12,
        clock: Callable[[], float] = time.time,
        start_from: EncodecModel | None = None,
        discriminator_from: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin the run in ``folder`` on the packed audio in ``data``, or resume it.

        A new run begins with the weights of ``start_from`` and the discriminator of the checkpoint
        ``discriminator_from``, which ``read_checkpoint`` read; a resumed run ignores both. It is
        saved every ``checkpoint_s`` seconds, and validated on ``validation_items`` crops.
        Raises WeightsError for a checkpoint of another model, and ConfigError for a
        ``discriminator_from`` that no stage would use.
        """
        if discriminator_from is not None and not any(s.adversarial for s in config.stages):
            raise ConfigError(
                "a discriminator to start from was given, but no stage of the run has one; choose "
                "a preset with adversarial losses, or leave it out"
            )
        self.folder = folder
        self.budget = budget
        self.checkpoint_s = checkpoint_s
        self.log_steps = log_steps
        self.clock = clock
        sources = load_index(data)
        rate = config.model.sampling_rate
        sampler = Sampler(
            sources,
            data,
            config.mix,
            crop=config.crop,
            seed=config.seed,
            sampling_rate=rate,
            channels=config.model.audio_channels,
        )
        held_out = sampler.held_out(round(CROP_S * rate))
        self.validation = Validation(config, held_out, folder / "validation", validation_items)
        device = device or torch.device("cpu")
        batches = sampler if device.type == "cpu" else Prefetcher(sampler)
        self.trainer = Trainer(config, batches, device)
        self.progress = 0.0
        self.minutes = 0.0
        self.rows: list[tuple[int, float, float, str, float]] = []
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).is_file():
            self._resume()
        else:
            if start_from is not None:
                self.trainer.start_from(start_from)
            if discriminator_from is not None:
                self.trainer.adversary.start_from(discriminator_from["trainer"])
        write_json(folder / CONFIG, config.to_dict())

    def train(
        self,
        report: Callable[[str], None] = lambda _: None,
        tick: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Train until the budget is spent.

        ``report`` gets a line every ``log_steps`` steps and for each checkpoint, ``tick`` the
        progress before each step. A checkpoint is also written at the end and when interrupted.
        """
        begun, begun_at, minutes = self.progress, self.clock(), self.minutes
        saved_at = begun_at
        gathered: dict[str, list[Tensor]] = {}
        try:
            while True:
                now = self.clock()
                self.minutes = minutes + (now - begun_at) / 60
                self.progress = self.budget.progress(self.trainer.step, begun, begun_at, now)
                tick(self.progress)
                if self.progress >= 1:
                    break
                if now - saved_at >= self.checkpoint_s:
                    report(self.save())
                    saved_at = self.clock()
                for name, value in self.trainer.advance(self.progress).items():
                    gathered.setdefault(name, []).append(value)
                if self.trainer.step % self.log_steps == 0:
                    means = {name: float(torch.stack(v).mean()) for name, v in gathered.items()}
                    report(self._note(means))
                    gathered.clear()
        finally:
            report(self.save())

    def save(self) -> str:
        """Validate, and write checkpoint, curves and validation audio -> a line to report."""
        stage = self.trainer.config.stage_at(self.progress)
        scores = self.validation.scores(self.trainer, stage)
        line = self._note(scores)
        state = {
            "trainer": self.trainer.state_dict(),
            "progress": self.progress,
            "minutes": self.minutes,
        }
        with replacing(self.folder / CHECKPOINT, force=True) as partial:
            torch.save(state, partial)
        with (
            replacing(self.folder / CURVES, force=True) as partial,
            partial.open("w", newline="") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            writer.writerows(self.rows)
        missing = f"; not scored: {self.validation.missing}" if self.validation.missing else ""
        return f"checkpoint; {line}{missing}"

    def _note(self, values: Mapping[str, float]) -> str:
        step = self.trainer.step
        stamp = (step, round(self.progress, 5), round(self.minutes, 3))
        self.rows += [(*stamp, name, round(value, 6)) for name, value in values.items()]
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        return f"step {step} progress {self.progress:.4f} minute {self.minutes:.1f} {shown}"

    def _resume(self) -> None:
        state = read_checkpoint(self.folder / CHECKPOINT)
        self.trainer.load_state_dict(state["trainer"])
        self.progress = float(state["progress"])
        self.minutes = float(state["minutes"])
        if self.budget.steps is not None:
            self.progress = self.budget.progress(self.trainer.step, 0, 0, 0)
        curves = self.folder / CURVES
        if curves.is_file():
            with curves.open(newline="") as file:
                rows = list(csv.reader(file))[1:]
            self.rows = [
                (int(step), float(progress), float(minutes), name, float(value))
                for step, progress, minutes, name, value in rows
                if int(step) <= self.trainer.step
            ]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; nothing in it is executed. WeightsError for another file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path} is not a training checkpoint: {error}") from error
    if not isinstance(state, dict) or "trainer" not in state:
        raise WeightsError(f"{path} is not a training checkpoint")
    return state
