"""Validation during a run: scores of fixed held-out crops, and their audio."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from encodec_rt.audio import AudioWriter
from encodec_rt.errors import BackendUnavailable
from encodec_rt.model.encodec import loudness
from encodec_rt.quality import band_levels_db, estoi, pesq_wb
from encodec_rt.training.losses import one_channel, si_sdr_db
from encodec_rt.training.recipe import Stage, TrainingConfig
from encodec_rt.training.sampler import MixConfig, Sampler
from encodec_rt.training.trainer import Trainer

CROP_S = 3.0


class Validation:
    """Crops of held-out audio: ``mixed`` as in training, and clean ``speech``, one voice each.

    ``missing`` says which scores could not be computed, and why.
    """

    def __init__(self, config: TrainingConfig, held_out: Sampler, folder: Path, items: int) -> None:
        """Draw ``items`` crops of either kind; the audio will be written to ``folder``."""
        self.rate = config.model.sampling_rate
        self.folder = folder
        self.mixed = held_out.batch(0, items)
        self.speech: Tensor | None = None
        self.missing = ""
        if "speech" in held_out.kinds:
            alone = MixConfig(
                speech=1.0,
                music=0.0,
                two=0.0,
                three=0.0,
                full_band_share=config.mix.full_band_share,
                weights=config.mix.weights,
            )
            self.speech = held_out.remixed(alone).batch(1, items)

    @torch.no_grad()
    def scores(self, trainer: Trainer, stage: Stage) -> dict[str, float]:
        """Scores of the averaged model, by name; see ``decoded`` for its bandwidth.

        The losses of ``stage`` and SI-SDR of the mixed crops, and PESQ, ESTOI and the level of each
        band of the speech. Writes the mixed crops and their decoded versions as FLAC.
        """
        audio = self.mixed.to(trainer.device)
        estimate = decoded(trainer, audio)
        self._write(audio, estimate)
        terms = trainer.reconstruction_losses(estimate, audio, stage)
        found = {f"held_out_{name}": float(term) for name, term in terms.items()}
        found["held_out_si_sdr_db"] = float(
            si_sdr_db(one_channel(estimate), one_channel(audio)).mean()
        )
        if self.speech is not None:
            speech = self.speech.to(trainer.device)
            found |= self._speech_scores(speech, decoded(trainer, speech))
        return found

    def _speech_scores(self, speech: Tensor, estimate: Tensor) -> dict[str, float]:
        values: dict[str, list[float]] = defaultdict(list)
        for item, ours in zip(speech, estimate, strict=True):
            pair = item.mean(0).cpu().numpy(), ours.mean(0).cpu().numpy()
            for name, level in band_levels_db(*pair, self.rate).items():
                _keep(values[f"held_out_{name}"], level)
            for name, metric in (("pesq_wb", pesq_wb), ("estoi", estoi)):
                try:
                    _keep(values[f"held_out_{name}"], metric(*pair, self.rate))
                except BackendUnavailable as error:
                    self.missing = str(error)
        return {name: sum(found) / len(found) for name, found in values.items() if found}

    def _write(self, audio: Tensor, estimate: Tensor) -> None:
        self.folder.mkdir(exist_ok=True)
        for number, (reference, ours) in enumerate(zip(audio, estimate, strict=True)):
            for what, signal in (("original", reference), ("decoded", ours)):
                path = self.folder / f"{number:02d}-{what}.flac"
                samples = signal.cpu().numpy()
                with AudioWriter(path, rate_hz=self.rate, channels=len(samples), force=True) as out:
                    out.write(samples)


def decoded(trainer: Trainer, audio: Tensor) -> Tensor:
    """``audio`` [B, C, L] through the averaged model -> [B, C, L].

    At 6 kbps, or the highest bandwidth of a model without it; unquantised as long as there are no
    codebooks.
    """
    bandwidths = trainer.config.model.target_bandwidths
    bandwidth = 6.0 if 6.0 in bandwidths else bandwidths[-1]
    model = trainer.average
    if trainer.codebooks_started:
        estimate: Tensor = model(audio, bandwidth=bandwidth).audio_values
        return estimate[..., : audio.shape[-1]]
    scale = loudness(audio) if model.config.normalize else 1.0
    unquantised: Tensor = scale * model.decoder(model.encoder(audio / scale))
    return unquantised[..., : audio.shape[-1]]


def _keep(values: list[float], value: float | None) -> None:
    if value is not None:
        values.append(value)
