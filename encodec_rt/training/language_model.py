"""Training the portable language model.

Towards the end weights and activations are rounded as in ``integer``, so that the exported model
predicts as well as the trained one. Before that they are only kept within the same limits, which
saves a quarter of the time.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encodec_rt.atomic import replacing
from encodec_rt.errors import InputError, WeightsError
from encodec_rt.lm.integer import IntegerLm
from encodec_rt.lm.tensors import LmConfig
from encodec_rt.lm.trainable import TrainableLm
from encodec_rt.training.captured import CapturedSteps, EagerSteps, Inputs, on_device
from encodec_rt.training.optimiser import set_rate
from encodec_rt.types import Codes

_LOOK_EVERY = 20
"""Steps between looks at the loss, for which a GPU has to be waited for."""
_SAVE_EVERY_S = 120.0


@dataclass(frozen=True)
class LmRecipe:
    """How a model is trained: ``minutes`` of batches of ``batch`` pieces of ``frames`` frames.

    A piece is a stretch of all clips one after another, at whose ends the context restarts.
    The minutes are those of the processor, on a GPU of the clock. For the last ``rounded_share`` of
    them it is rounded as the exported model is.
    """

    minutes: float = 10.0
    steps: int | None = None
    batch: int = 2
    frames: int = 300
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warm_up: float = 0.03
    rounded_share: float = 0.25
    seed: int = 0


class LmTraining:
    """A language model in training, and what it takes to resume.

    The random choices follow from (seed, step), so no generator state is saved.
    """

    def __init__(
        self,
        clips: Sequence[Codes],
        config: LmConfig,
        recipe: LmRecipe,
        start_from: IntegerLm | None,
        device: torch.device,
    ) -> None:
        """Begin with random weights, or those of ``start_from``. Raises as ``train_lm`` does."""
        self.recipe = recipe
        codes, ages = _joined(clips, sum(config.layers), recipe.frames)
        self._codes = torch.from_numpy(codes).to(device)
        self._ages = torch.from_numpy(ages).to(device)
        torch.manual_seed(recipe.seed)
        self.model = TrainableLm(config)
        if start_from is not None:
            self.model.start_from(start_from)
        self.model.to(device)
        on_gpu = device.type == "cuda"
        rate = recipe.learning_rate
        self._optimiser = torch.optim.AdamW(
            self.model.parameters(),
            torch.tensor(rate, device=device) if on_gpu else rate,
            betas=(0.9, 0.98),
            weight_decay=recipe.weight_decay,
            fused=on_gpu,
            capturable=on_gpu,
        )
        self._steps = CapturedSteps(device) if on_gpu else EagerSteps()
        self.step = 0
        self.spent_s = 0.0

    @property
    def _shape(self) -> dict[str, int | list[int]]:
        """The model's shape as JSON gives it back."""
        shape: dict[str, int | list[int]] = json.loads(json.dumps(asdict(self.model.config)))
        return shape

    @property
    def progress(self) -> float:
        """The share that is done; 1 or more at the end."""
        recipe = self.recipe
        return self.step / recipe.steps if recipe.steps else self.spent_s / (60 * recipe.minutes)

    def advance(self) -> Tensor:
        """Do one step -> its bits per code, 0-d on the device."""
        recipe, done = self.recipe, self.progress
        rounding = done >= 1 - recipe.rounded_share
        rate = min(done / recipe.warm_up + 0.01, 0.5 * (1 + math.cos(math.pi * done)) + 0.01)
        chance = np.random.default_rng((recipe.seed, self.step))
        starts = chance.integers(len(self._codes) - recipe.frames + 1, size=(recipe.batch, 1))
        places = starts + np.arange(recipe.frames)
        inputs = {
            "places": torch.from_numpy(places),
            "rate": torch.tensor(recipe.learning_rate * rate),
        }
        self.model.round(rounding)
        measured = self._steps.run(
            ("rounding" if rounding else "free",),
            self._step,
            on_device(inputs, self._codes.device),
        )
        self.step += 1
        return measured["bits"]

    def _step(self, given: Inputs) -> dict[str, Tensor]:
        """The step itself, which never waits for a value from the device."""
        for group in self._optimiser.param_groups:
            set_rate(group, given["rate"])
        places = given["places"]
        bits: Tensor = self.model(self._codes[places].long(), self._ages[places])
        mean = bits.mean()
        self._optimiser.zero_grad()
        mean.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimiser.step()
        return {"bits": mean.detach()}

    def save(self, path: Path) -> None:
        """Write weights and moments as safetensors."""
        from safetensors.torch import save_file

        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, state in self._optimiser.state_dict()["state"].items():
            tensors |= {f"moments.{index}.{name}": value for name, value in state.items()}
        facts = {"shape": self._shape, "step": self.step, "spent_s": self.spent_s}
        with replacing(path, force=True) as partial:
            save_file(
                {name: value.contiguous() for name, value in tensors.items()},
                partial,
                {"training": json.dumps(facts)},
            )

    def resume(self, path: Path) -> None:
        """Go on where ``save`` was. Raises WeightsError for another file or another shape."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            shape, step, spent_s = facts["shape"], int(facts["step"]), float(facts["spent_s"])
        except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
            raise WeightsError(f"{path} is not a checkpoint of a language model: {error}") from None
        if shape != self._shape:
            raise WeightsError(
                f"{path} is of a language model of {shape}, and this one has {self._shape}; train "
                "in another folder"
            )
        prefix = "model."
        self.model.load_state_dict(
            {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        )
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("moments."):
                _, index, moment = name.split(".")
                state.setdefault(int(index), {})[moment] = tensor
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.spent_s = step, spent_s


def train_lm(
    clips: Sequence[Codes],
    config: LmConfig,
    recipe: LmRecipe,
    on_progress: Callable[[float, float], None] = lambda share, bits: None,
    *,
    start_from: IntegerLm | None = None,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
) -> TrainableLm:
    """Train on ``clips`` of codes [frames, Q] -> the model, on the CPU.

    It begins with the weights of ``start_from`` if that is given. ``on_progress`` gets the share
    done and bits per code. ``checkpoint`` is written every two minutes and when training is
    interrupted; if it is there, training goes on from it. Raises InputError if the clips hold too
    little, ConfigError for a ``start_from`` and WeightsError for a checkpoint of another shape.
    """
    device = torch.device(device)
    training = LmTraining(clips, config, recipe, start_from, device)
    if checkpoint is not None and checkpoint.exists():
        training.resume(checkpoint)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    began = clock() - training.spent_s
    smooth, saved_s = math.nan, training.spent_s
    try:
        while training.progress < 1:
            bits = training.advance()
            training.spent_s = clock() - began
            if device.type == "cpu" or training.step % _LOOK_EVERY == 0:
                latest = bits.item()
                smooth = latest if math.isnan(smooth) else 0.95 * smooth + 0.05 * latest
                on_progress(training.progress, smooth)
            if checkpoint is not None and training.spent_s - saved_s >= _SAVE_EVERY_S:
                training.save(checkpoint)
                saved_s = training.spent_s
    finally:
        if checkpoint is not None and training.step:
            training.save(checkpoint)
    training.model.round(True)
    return training.model.cpu().eval()


def bits_per_code(model: IntegerLm, clips: Sequence[Codes], frames: int) -> NDArray[np.float64]:
    """The average bits of each codebook of ``clips``, with a restart after every ``frames``."""
    books = sum(model.config.layers)
    total, count = np.zeros(books), 0
    for clip in clips:
        for start in range(0, len(clip), frames):
            codes = clip[start : start + frames, :books]
            contexts = model.contexts(codes[:-1], model.start(), len(model.config.layers))
            below = np.zeros((len(codes), model.config.width))
            for book in range(books):
                counts = model.counts(contexts, below, book)
                chosen = counts[np.arange(len(codes)), codes[:, book]]
                total[book] -= np.log2(chosen / 65536).sum()
                below += model.embed(codes[:, book], book)
            count += len(codes)
    return total / max(1, count)


def _joined(
    clips: Sequence[Codes], books: int, frames: int
) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """All clips one after another [n, books], and for each frame its number in its clip."""
    whole = [clip[:, :books] for clip in clips if len(clip) and clip.shape[1] >= books]
    if sum(map(len, whole)) < frames:
        raise InputError(
            f"{sum(map(len, whole))} frames of {books} codebooks to train on; at least {frames} "
            "are needed"
        )
    ages = [np.arange(len(clip), dtype=np.int32) for clip in whole]
    return np.concatenate(whole).astype(np.int16), np.concatenate(ages)
