"""The losses of the paper, and the relative ones that a small budget needs.

Audio is [B, 1, L]. Every loss is a scalar, zero for equal signals. Paper: arXiv 2210.13438, section
3.4. The relative terms divide by the target's own size, so that quiet crops count like loud ones;
with absolute terms alone and without a discriminator no phase is learnt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import relu

PAPER_MEL_WINDOWS = tuple(2**i for i in range(5, 12))
RELATIVE_TERMS = (
    "relative_l1",
    "relative_magnitude",
    "relative_complex",
    "log_magnitude",
    "log_mel",
    "band_envelope",
)
_TINY = 1e-8


@lru_cache(maxsize=32)
def _hann(size: int, device: torch.device) -> Tensor:
    return torch.hann_window(size, device=device)


@lru_cache(maxsize=32)
def _mel_weights(sampling_rate: int, size: int, bins: int, device: torch.device) -> Tensor:
    return mel_filters(sampling_rate, size, bins).to(device)


def mel_filters(sampling_rate: int, size: int, bins: int) -> Tensor:
    """Triangular filters [size // 2 + 1, bins] on the scale 2595 log10(1 + f / 700).

    A filter narrower than one bin of the transform would stay empty; such filters are dropped, so
    that there may be fewer columns than ``bins``.
    """
    top = 2595 * math.log10(1 + sampling_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bins + 2, dtype=torch.float64) / 2595) - 1)
    frequency = torch.linspace(0, sampling_rate / 2, size // 2 + 1, dtype=torch.float64)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    return filters[:, filters.sum(0) > 0].float()


def spectrum(audio: Tensor, size: int) -> Tensor:
    """Complex spectrogram [B, size // 2 + 1, frames]: Hann window, hop of a quarter window."""
    return torch.stft(
        audio.squeeze(1),
        size,
        size // 4,
        window=_hann(size, audio.device),
        return_complex=True,
    )


def pre_emphasis(audio: Tensor, factor: float) -> Tensor:
    """x[t] - factor * x[t - 1], which lifts the highs that speech has little energy in."""
    if factor == 0:
        return audio
    return torch.cat([audio[..., :1], audio[..., 1:] - factor * audio[..., :-1]], -1)


def time_l1(estimate: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the waveforms (the paper's time loss)."""
    return (estimate - target).abs().mean()


def mel_l1_l2(
    estimate: Tensor,
    target: Tensor,
    *,
    sampling_rate: int,
    windows: Sequence[int] = PAPER_MEL_WINDOWS,
    bins: int = 64,
    l2_weight: float = 1.0,
) -> Tensor:
    """Mean over the windows of L1 of mel spectra plus L2 of log mel spectra (the paper's l_f)."""
    total = estimate.new_zeros(())
    for size in windows:
        filters = _mel_weights(sampling_rate, size, bins, estimate.device)
        # The window's root mean square is divided out, so that all windows see one scale.
        scale = math.sqrt(size * 3 / 8)
        a, b = (
            (spectrum(audio, size).abs() / scale).transpose(1, 2) @ filters
            for audio in (estimate, target)
        )
        logs = torch.log(a + 1e-5) - torch.log(b + 1e-5)
        total = total + (a - b).abs().mean() + l2_weight * (logs.square().mean() + _TINY).sqrt()
    return total / len(windows)


def relative_terms(
    estimate: Tensor,
    target: Tensor,
    *,
    sampling_rate: int,
    windows: Sequence[int],
    emphasis: float = 0.0,
    log_floor: float = 1e-2,
    mel_bins: int = 80,
) -> dict[str, Tensor]:
    """Losses that do not depend on the target's level, or hardly.

    ``relative_l1`` of the waveform; and, after a pre-emphasis by ``emphasis``, the means over the
    windows of ``relative_magnitude`` and ``relative_complex`` (L1 over the target's L1: one for
    silence), of ``log_magnitude`` (L1 of logarithms above ``log_floor``), of ``log_mel`` (the
    same of mel bands) and of ``band_envelope``: each mel band's distance over time, divided by the
    band's own size, which is what intelligibility measures compare.
    """
    terms = {"relative_l1": (estimate - target).abs().mean() / (target.abs().mean() + _TINY)}
    # The gain brings speech back to about its level before the pre-emphasis.
    gain = 1 + emphasis * 5 / 3
    estimate, target = (gain * pre_emphasis(audio, emphasis) for audio in (estimate, target))
    names = RELATIVE_TERMS[1:]
    sums = [estimate.new_zeros(()) for _ in names]
    for size in windows:
        a, b = spectrum(estimate, size), spectrum(target, size)
        size_a, size_b = a.abs(), b.abs()
        level = size_b.mean()
        filters = _mel_weights(sampling_rate, size, mel_bins, estimate.device)
        mel_a, mel_b = (m.transpose(1, 2) @ filters for m in (size_a, size_b))
        values = (
            (size_a - size_b).abs().mean() / level,
            (a - b).abs().mean() / level,
            (torch.log(size_a + log_floor) - torch.log(size_b + log_floor)).abs().mean(),
            (torch.log(mel_a + log_floor) - torch.log(mel_b + log_floor)).abs().mean(),
            _band_envelope(mel_a, mel_b),
        )
        sums = [total + value for total, value in zip(sums, values, strict=True)]
    return terms | {name: total / len(windows) for name, total in zip(names, sums, strict=True)}


def _band_envelope(estimate: Tensor, target: Tensor) -> Tensor:
    """Mel magnitudes [B, frames, bands]: mean of |a - b| / |b|, norms over the frames.

    A band of less than 3 % of the mean size counts less, so that empty bands do not rule.
    """
    sizes = target.norm(dim=1)
    floor = 0.03 * sizes.mean(dim=1, keepdim=True) + _TINY
    # The square root of the smallest number keeps the gradient finite where both are equal.
    distances = ((estimate - target).square().sum(1) + _TINY**2).sqrt()
    shares: Tensor = distances / (sizes + floor)
    return shares.mean()


def discriminator_hinge(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean over the discriminators of relu(1 - real) + relu(1 + fake)."""
    pairs = zip(real, fake, strict=True)
    total = sum((relu(1 - r).mean() + relu(1 + f).mean() for r, f in pairs), real[0].new_zeros(()))
    return total / len(real)


def generator_hinge(fake: Sequence[Tensor]) -> Tensor:
    """Mean over the discriminators of relu(1 - fake)."""
    return sum((relu(1 - f).mean() for f in fake), fake[0].new_zeros(())) / len(fake)


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean over all layers of L1 of the features over the real ones' mean size."""
    pairs = [
        (r, f)
        for of_real, of_fake in zip(real, fake, strict=True)
        for r, f in zip(of_real, of_fake, strict=True)
    ]
    total = sum(
        ((r - f).abs().mean() / (r.abs().mean() + _TINY) for r, f in pairs),
        pairs[0][0].new_zeros(()),
    )
    return total / len(pairs)
