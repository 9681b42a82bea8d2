from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from encodec_rt.training import losses

RATE = 24_000


def noise(seed: int, *, items: int = 2, samples: int = 4_800, level: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return level * torch.randn(items, 1, samples, generator=generator)


def numpy_stft(audio: NDArray[np.float64], size: int) -> NDArray[np.complex128]:
    hop = size // 4
    padded = np.pad(audio, size // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    starts = range(0, len(padded) - size + 1, hop)
    return np.array([np.fft.rfft(window * padded[start : start + size]) for start in starts])


def numpy_mel(rate: int, size: int, bins: int) -> NDArray[np.float64]:
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 1400), bins + 2) / 2595) - 1)
    grid = np.fft.rfftfreq(size, 1 / rate)
    columns = [np.interp(grid, edges[i : i + 3], [0, 1, 0]) for i in range(bins)]
    return np.stack([column for column in columns if column.sum() > 0], 1)


def relative(estimate: Tensor, target: Tensor) -> dict[str, Tensor]:
    return losses.relative_terms(estimate, target, sampling_rate=RATE, windows=(256, 1024))


def test_every_loss_of_equal_signals_is_zero() -> None:
    audio = noise(0)
    for name, term in relative(audio, audio).items():
        assert float(term) == pytest.approx(0, abs=1e-6), name
    assert float(losses.time_l1(audio, audio)) == 0
    assert float(losses.mel_l1_l2(audio, audio, sampling_rate=RATE)) == pytest.approx(0, abs=2e-4)


def test_silence_costs_one_in_every_relative_loss_at_any_level() -> None:
    for level in (0.001, 0.3):
        target = noise(1, level=level)
        terms = relative(torch.zeros_like(target), target)
        for name in ("relative_l1", "relative_magnitude", "relative_complex"):
            assert float(terms[name]) == pytest.approx(1, rel=1e-3)


def test_only_the_complex_and_waveform_losses_hear_a_flipped_sign() -> None:
    target = noise(2)
    terms = relative(-target, target)
    assert float(terms["relative_magnitude"]) == pytest.approx(0, abs=1e-6)
    assert float(terms["log_mel"]) == pytest.approx(0, abs=1e-6)
    assert float(terms["relative_complex"]) == pytest.approx(2, rel=1e-4)
    assert float(terms["relative_l1"]) == pytest.approx(2, rel=1e-4)


def test_relative_terms_equal_the_formulas_written_out_in_numpy() -> None:
    estimate, target = noise(3, items=1), noise(4, items=1)
    a, b = (numpy_stft(audio[0, 0].double().numpy(), 512) for audio in (estimate, target))
    mel = numpy_mel(RATE, 512, 80)
    level = np.abs(b).mean()
    wanted = {
        "relative_magnitude": np.abs(np.abs(a) - np.abs(b)).mean() / level,
        "relative_complex": np.abs(a - b).mean() / level,
        "log_magnitude": np.abs(np.log(np.abs(a) + 0.01) - np.log(np.abs(b) + 0.01)).mean(),
        "log_mel": np.abs(np.log(np.abs(a) @ mel + 0.01) - np.log(np.abs(b) @ mel + 0.01)).mean(),
    }
    heard = []
    for spectra in (a, b):
        spectra = spectra / (np.sqrt(np.square(np.abs(b)).mean()) + 1e-6)
        size = np.sqrt(np.square(np.abs(spectra)) + 1e-4)
        heard.append((size**0.3, spectra * size**0.3 / size))
    wanted["compressed"] = (
        0.7 * np.square(heard[0][0] - heard[1][0]).mean()
        + 0.3 * np.square(np.abs(heard[0][1] - heard[1][1])).mean()
    ) / np.square(heard[1][0]).mean()
    terms = losses.relative_terms(estimate, target, sampling_rate=RATE, windows=(512,))
    assert terms.keys() == {"relative_l1", *wanted}
    for name, value in wanted.items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-3), name


def test_mel_loss_equals_the_papers_formula_written_out_in_numpy() -> None:
    estimate, target = noise(5, items=1), noise(6, items=1)
    total = 0.0
    for size in (256, 1024):
        mel = numpy_mel(RATE, size, 64)
        a, b = (
            np.abs(numpy_stft(audio[0, 0].double().numpy(), size)) / math.sqrt(size * 3 / 8) @ mel
            for audio in (estimate, target)
        )
        logs = np.log(a + 1e-5) - np.log(b + 1e-5)
        total += np.abs(a - b).mean() + np.sqrt((logs**2).mean())
    loss = losses.mel_l1_l2(estimate, target, sampling_rate=RATE, windows=(256, 1024))
    assert float(loss) == pytest.approx(total / 2, rel=1e-3)


def test_gradients_are_finite_where_both_signals_are_silent() -> None:
    estimate = torch.zeros(1, 1, 4_800, requires_grad=True)
    target = torch.cat([torch.zeros(1, 1, 2_400), noise(8, items=1, samples=2_400)], -1)
    sum(relative(estimate, target).values(), torch.zeros(())).backward()
    assert estimate.grad is not None
    assert bool(torch.isfinite(estimate.grad).all())


def test_hinge_losses_are_zero_exactly_beyond_the_margin() -> None:
    sure, unsure = torch.full((2, 3), 1.5), torch.zeros(2, 3)
    assert float(losses.discriminator_hinge([sure], [-sure])) == 0
    assert float(losses.discriminator_hinge([unsure, sure], [unsure, -sure])) == 1
    assert float(losses.generator_hinge([sure])) == 0
    assert float(losses.generator_hinge([-sure, sure])) == 1.25


def test_feature_matching_does_not_depend_on_the_features_scale() -> None:
    real = [[noise(9), noise(10)], [noise(11)]]
    fake = [[noise(12), noise(13)], [noise(14)]]
    loss = float(losses.feature_matching(real, fake))
    ten_times = [[[10 * layer for layer in scale] for scale in side] for side in (real, fake)]
    louder = float(losses.feature_matching(*ten_times))
    assert louder == pytest.approx(loss, rel=1e-4)
    by_hand = [
        float((r - f).abs().mean() / r.abs().mean())
        for of_real, of_fake in zip(real, fake, strict=True)
        for r, f in zip(of_real, of_fake, strict=True)
    ]
    assert loss == pytest.approx(sum(by_hand) / 3, rel=1e-4)


def test_mel_filters_overlap_to_one_between_the_first_and_the_last_peak() -> None:
    filters = losses.mel_filters(RATE, 2048, 40)
    assert filters.shape == (1025, 40)
    inside = filters.sum(1)[10:900]
    assert torch.allclose(inside, torch.ones_like(inside), atol=1e-5)
