"""Ready-made training configurations, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from encodec_rt.config import EncodecConfig
from encodec_rt.training.discriminator import DiscriminatorConfig
from encodec_rt.training.recipe import Stage, TrainingConfig
from encodec_rt.training.sampler import MixConfig

WAVEFORM_WEIGHTS = {
    "relative_l1": 1.0,
    "relative_magnitude": 1.0,
    "relative_complex": 0.5,
    "log_magnitude": 0.5,
}
"""Loss weights that learn the waveform without a discriminator. With heavier logarithmic losses the
phase would hardly be learnt."""

LOUDNESS_WEIGHTS = {"relative_l1": 0.5, "compressed": 3.0, "log_magnitude": 0.25}
"""Loss weights for the end of a run, when the waveform is learnt, which improve what is heard.
Without the logarithmic loss, weak parts would be dropped, the highs first."""

PAPER_WEIGHTS = {"time_l1": 0.1, "mel": 1.0, "adversarial": 3.0, "features": 3.0}
"""Gradient shares of the paper's 24 kHz model, for a balanced stage."""


HEARD_WEIGHTS = {
    "relative_l1": 0.1,
    "relative_complex": 0.3,
    "compressed": 1.0,
    "mel": 1.5,
    "adversarial": 2.0,
    "features": 1.5,
}
"""Gradient shares of a balanced stage with a discriminator, which restores the highs while the
other losses keep the waveform. With a larger share for ``features`` than for ``adversarial`` the
highs sink."""


_SPECTRAL_WEIGHTS = {"relative_complex": 0.7, "compressed": 1.5, "log_mel": 1.2}
"""Loss weights that restore the highs of a trained decoder, as a plain sum. As balanced shares they
do the opposite: the gradient of a logarithm is largest where there is almost nothing to hear."""


_CLEAR_WEIGHTS = {
    "relative_complex": 0.3,
    "compressed": 3.0,
    "log_mel": 0.8,
    "adversarial": 1.0,
    "features": 1.0,
}
"""Loss weights that give a trained decoder's highs their level back, as a plain sum, in which the
discriminator's pull is about as strong as that of the other losses."""


def _small_model(filters: int, width: int) -> EncodecConfig:
    return EncodecConfig(
        target_bandwidths=(1.5, 3.0, 6.0, 12.0),
        num_filters=filters,
        hidden_size=width,
        pad_mode="constant",
    )


_SHARES = (0.15, 0.25, 0.35, 0.25)

_MIX = MixConfig(noise_share=0.1, reverb_share=0.1)

_DEFAULT = TrainingConfig(
    model=_small_model(16, 128),
    mix=_MIX,
    stages=(
        Stage("warm-up", 0.08, 4, 1e-3, WAVEFORM_WEIGHTS, quantised=False),
        Stage("waveform", 0.5, 4, 1e-3, WAVEFORM_WEIGHTS),
        Stage("loudness", 0.86, 4, 1e-3, LOUDNESS_WEIGHTS),
        Stage("loudness, larger batches", 1.0, 8, 1e-3, LOUDNESS_WEIGHTS),
    ),
    optimiser="muon",
    bandwidth_shares=_SHARES,
    precision="bfloat16",
)

_GPU = replace(
    _DEFAULT,
    weight_ema=0.999,
    stages=(
        Stage("loudness", 0.22, 32, 1e-3, LOUDNESS_WEIGHTS),
        Stage("adversarial", 1.0, 32, 6e-4, HEARD_WEIGHTS, balanced=True),
    ),
    commitment=1.0,
    bypass_share=0.15,
    discriminator=DiscriminatorConfig(filters=16, gain=10.0),
    discriminator_rate=5e-4,
    discriminator_chance=1.0,
    judged_share=0.5,
)

_DECODER = replace(
    _DEFAULT,
    mix=replace(_MIX, full_band_share=0.75),
    stages=(Stage("decoder alone", 1.0, 6, 2.5e-4, _SPECTRAL_WEIGHTS, frozen_encoder=True),),
    optimiser="adam",
    betas=(0.9, 0.99),
    clip_norm=5.0,
    output_rate_share=0.1,
    warm_up_steps=100,
    weight_ema=0.998,
    log_floor=1e-3,
    bypass_share=0.0,
)

PRESETS: Mapping[str, TrainingConfig] = MappingProxyType(
    {
        "default": _DEFAULT,
        "default-48k": replace(
            _DEFAULT,
            model=EncodecConfig(
                target_bandwidths=(3.0, 6.0, 12.0, 24.0),
                sampling_rate=48_000,
                audio_channels=2,
                normalize=True,
                chunk_length_s=1.0,
                overlap=0.01,
                num_filters=16,
                norm_type="time_group_norm",
                use_causal_conv=False,
            ),
            mix=replace(_MIX, music=0.5, speech=0.4),
            crop_s=1.0,
            stages=tuple(
                replace(stage, items=max(1, stage.items // 2)) for stage in _DEFAULT.stages
            ),
        ),
        "cpu-tiny": replace(_DEFAULT, model=_small_model(8, 64)),
        "gpu": replace(
            _GPU,
            stages=(
                Stage("warm-up", 0.05, 64, 1e-3, WAVEFORM_WEIGHTS, quantised=False),
                Stage("waveform", 0.3, 64, 1e-3, WAVEFORM_WEIGHTS),
                *(
                    replace(stage, until=until)
                    for stage, until in zip(_GPU.stages, (0.4, 1.0), strict=True)
                ),
            ),
        ),
        "adversarial": _GPU,
        "decoder": _DECODER,
        "decoder-adversarial": replace(
            _DECODER,
            stages=(Stage("adversarial", 1.0, 16, 5e-4, _CLEAR_WEIGHTS, frozen_encoder=True),),
            optimiser="muon",
            clip_norm=20.0,
            warm_up_steps=400,
            weight_ema=0.999,
            bandwidth_shares=(0.1, 0.2, 0.45, 0.25),
            discriminator=DiscriminatorConfig((2048, 1024, 512, 256), filters=16, gain=10.0),
            discriminator_rate=5e-4,
            discriminator_chance=1.0,
        ),
        "paper": TrainingConfig(
            model=EncodecConfig(),
            stages=(Stage("paper", 1.0, 64, 3e-4, PAPER_WEIGHTS, balanced=True),),
            mix=MixConfig(music=0.32, speech=0.32, two=0.24, three=0.12),
            crop_s=1.0,
            betas=(0.5, 0.9),
            bypass_share=0.0,
            lowest_rate_share=1.0,
            output_rate_share=1.0,
        ),
        "smoke": replace(
            _DEFAULT,
            mix=MixConfig(),
            model=EncodecConfig(
                target_bandwidths=(1.5, 3.0),
                num_filters=4,
                hidden_size=16,
                codebook_size=64,
                num_lstm_layers=1,
                pad_mode="constant",
            ),
            stages=(
                Stage("warm-up", 0.3, 4, 2e-3, WAVEFORM_WEIGHTS, quantised=False),
                Stage("codec", 0.7, 4, 2e-3, LOUDNESS_WEIGHTS),
                Stage(
                    "adversarial",
                    1.0,
                    4,
                    1e-3,
                    {**LOUDNESS_WEIGHTS, **PAPER_WEIGHTS},
                    balanced=True,
                ),
            ),
            bandwidth_shares=(),
            crop_s=0.2,
            windows=(64, 256, 1024),
            kmeans_batches=4,
            warm_up_steps=5,
            discriminator=DiscriminatorConfig(windows=(512, 128), filters=4),
            precision="float32",
        ),
    }
)
"""``default`` is for one CPU core, and ``cpu-tiny`` a smaller model for the same. ``gpu`` adds a
discriminator. ``adversarial`` continues from a trained model, with a discriminator, on a GPU.
``decoder`` continues from a trained model on one CPU core and trains its decoder alone, so that its
codes stay the same; ``decoder-adversarial`` does so on a GPU, with a discriminator.
``default-48k`` is a small stereo model that works in chunks and needs its own index (48 kHz, 2
channels). ``paper`` is the paper's recipe, and ``smoke`` is for tests."""
