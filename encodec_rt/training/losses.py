"""The losses of the paper, and the relative ones that a small budget needs.

Audio is [B, 1, L] unless stated otherwise. Every loss is a scalar; those that compare signals are
zero for equal ones (``mel_l1_l2`` 1e-4). Paper: arXiv 2210.13438, section 3.4. The relative terms
divide by the target's own magnitude, so quiet crops count as much as loud ones. With absolute terms
alone, and without a discriminator, a model does not learn the phase.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import relu

PAPER_MEL_WINDOWS = tuple(2**i for i in range(5, 12))
SPECTRAL_TERMS = (
    "relative_magnitude",
    "relative_complex",
    "log_magnitude",
    "log_mel",
    "compressed",
)
RELATIVE_TERMS = ("relative_l1", *SPECTRAL_TERMS)
_TINY = 1e-8


@lru_cache(maxsize=32)
def _hann(size: int, device: torch.device) -> Tensor:
    return torch.hann_window(size, device=device)


@lru_cache(maxsize=32)
def _mel_weights(sampling_rate: int, size: int, bins: int, device: torch.device) -> Tensor:
    return mel_filters(sampling_rate, size, bins).to(device)


def mel_filters(sampling_rate: int, size: int, bins: int) -> Tensor:
    """Triangular filters [size // 2 + 1, bins] on the scale 2595 log10(1 + f / 700).

    Filters that fall between two bins of the transform would be empty. They are dropped, so there
    may be fewer columns than ``bins``.
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


def one_channel(audio: Tensor) -> Tensor:
    """[B, C, L] -> [B * C, 1, L], since each channel counts by itself (paper, section 3.4)."""
    return audio.reshape(-1, 1, audio.shape[-1])


def si_sdr_db(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio of each item of [B, 1, L] -> [B], in dB.

    Le Roux et al. 2019, "SDR - half-baked or well done?".
    """
    scale = (target * estimate).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True)
    wanted = scale * target
    ratio = wanted.square().sum(-1) / (estimate - wanted).square().sum(-1).clamp(min=1e-12)
    return 10 * torch.log10(ratio.clamp(min=1e-12)).squeeze(1)


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
    """Mean over the windows of L1 of mel spectra plus L2 of log mel spectra.

    The paper's l_f (equation 1), except that its L2 has no logarithm. ``windows`` are in samples,
    ``l2_weight`` multiplies the second term.
    """
    total = estimate.new_zeros(())
    for size in windows:
        filters = _mel_weights(sampling_rate, size, bins, estimate.device)
        # Dividing by the norm of the Hann window gives all windows the same scale.
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
    names: Collection[str] = RELATIVE_TERMS,
    log_floor: float = 1e-2,
) -> dict[str, Tensor]:
    """The losses of ``names`` that depend little or not at all on the target's level, by name.

    ``relative_l1`` compares waveforms. The others are means over STFT ``windows``, in samples:
    ``relative_magnitude`` and ``relative_complex`` (L1 over the target's L1, so 1 for a silent
    estimate), ``log_magnitude`` (L1 of log(magnitude + ``log_floor``)), ``log_mel`` (the same of
    80 mel bands) and ``compressed``, a squared distance of spectra whose magnitudes are raised to
    the power 0.3, roughly as loudness grows.
    """
    terms = {}
    if "relative_l1" in names:
        terms["relative_l1"] = (estimate - target).abs().mean() / (target.abs().mean() + _TINY)
    spectral = [name for name in SPECTRAL_TERMS if name in names]
    for size in windows if spectral else ():
        a, b = spectrum(estimate, size), spectrum(target, size)
        filters = _mel_weights(sampling_rate, size, 80, estimate.device)
        for name in spectral:
            value = _spectral_term(name, a, b, filters, log_floor) / len(windows)
            terms[name] = terms[name] + value if name in terms else value
    return terms


def reconstruction_terms(
    estimate: Tensor,
    target: Tensor,
    names: Collection[str],
    *,
    sampling_rate: int,
    windows: Sequence[int],
    log_floor: float,
) -> dict[str, Tensor]:
    """Every loss of ``names`` that needs no discriminator, by name, of audio [B, C, L]."""
    estimate, target = one_channel(estimate), one_channel(target)
    terms = relative_terms(
        estimate,
        target,
        sampling_rate=sampling_rate,
        windows=windows,
        names=names,
        log_floor=log_floor,
    )
    if "time_l1" in names:
        terms["time_l1"] = time_l1(estimate, target)
    if "mel" in names:
        terms["mel"] = mel_l1_l2(estimate, target, sampling_rate=sampling_rate)
    return terms


def _spectral_term(name: str, a: Tensor, b: Tensor, filters: Tensor, floor: float) -> Tensor:
    if name == "relative_complex":
        return (a - b).abs().mean() / b.abs().mean()
    if name == "compressed":
        return _compressed(a, b)
    sizes = (a.abs(), b.abs())
    if name == "relative_magnitude":
        return (sizes[0] - sizes[1]).abs().mean() / sizes[1].mean()
    if name == "log_mel":
        sizes = (sizes[0].transpose(1, 2) @ filters, sizes[1].transpose(1, 2) @ filters)
    return (torch.log(sizes[0] + floor) - torch.log(sizes[1] + floor)).abs().mean()


def _compressed(a: Tensor, b: Tensor, *, power: float = 0.3, complex_share: float = 0.3) -> Tensor:
    """Squared distance of compressed spectra over the target's power, with and without phase.

    Braun and Tashev 2021, "A consolidated view of loss functions for supervised deep
    learning-based speech enhancement".
    """
    level = b.abs().square().mean((1, 2), keepdim=True).sqrt() + 1e-6
    parts = [torch.view_as_real(spectra / level) for spectra in (a, b)]
    # The offset keeps the gradient of a power below one finite at zero.
    sizes = [(part.square().sum(-1) + 1e-4).sqrt() for part in parts]
    compressed = [size**power for size in sizes]
    target_power = compressed[1].square().mean()
    magnitude = (compressed[0] - compressed[1]).square().mean()
    with_phase = [
        part * (short / size)[..., None]
        for part, short, size in zip(parts, compressed, sizes, strict=True)
    ]
    phase = (with_phase[0] - with_phase[1]).square().sum(-1).mean()
    total: Tensor = ((1 - complex_share) * magnitude + complex_share * phase) / target_power
    return total


def discriminator_hinge(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean over the discriminators of relu(1 - real) + relu(1 + fake)."""
    pairs = zip(real, fake, strict=True)
    total = sum((relu(1 - r).mean() + relu(1 + f).mean() for r, f in pairs), real[0].new_zeros(()))
    return total / len(real)


def generator_hinge(fake: Sequence[Tensor]) -> Tensor:
    """Mean over the discriminators of relu(1 - fake)."""
    return sum((relu(1 - f).mean() for f in fake), fake[0].new_zeros(())) / len(fake)


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean over all layers of the features' L1 over the mean magnitude of the real ones."""
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
