"""The multi-scale STFT discriminator of the paper (section 3.4, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.nn.utils.parametrizations import weight_norm


@dataclass(frozen=True, slots=True)
class DiscriminatorConfig:
    """STFT windows, in samples, and width; the defaults are the paper's.

    ``gain`` multiplies the spectra: those of speech at -20 dBFS are about 0.1, from which the first
    layers learn slowly.
    """

    windows: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    filters: int = 32
    gain: float = 1.0


class StftDiscriminator(nn.Module):
    """Judges a complex spectrogram with 2-d convolutions over (time, frequency)."""

    window: Tensor

    def __init__(self, size: int, filters: int, gain: float = 1.0) -> None:
        """Build the six convolutions for windows of ``size`` samples.

        One of 3 x 9 (frames x bins), three of 3 x 9 with time dilations 1, 2, 4 and frequency
        stride 2, and two of 3 x 3. The paper says 3 x 8 where its code has 3 x 9.
        """
        super().__init__()
        self.size = size
        self.gain = gain
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        layers = [nn.Conv2d(2, filters, (3, 9), padding=(1, 4))]
        layers += [
            nn.Conv2d(
                filters,
                filters,
                (3, 9),
                stride=(1, 2),
                dilation=(dilation, 1),
                padding=(dilation, 4),
            )
            for dilation in (1, 2, 4)
        ]
        layers += [nn.Conv2d(filters, filters, (3, 3), padding=(1, 1))]
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.last = weight_norm(nn.Conv2d(filters, 1, (3, 3), padding=(1, 1)))

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, 1, L] -> logits [B, 1, frames, bins], and the features of all layers before them."""
        spectrum = torch.stft(
            audio.squeeze(1),
            self.size,
            self.size // 4,
            window=self.window,
            normalized=True,
            return_complex=True,
        )
        # [B, 2, frames, bins]: the real and the imaginary part are the two channels.
        hidden = self.gain * torch.view_as_real(spectrum).permute(0, 3, 2, 1)
        if hidden.is_cuda:
            # With so few channels, tensor cores are used only if the layout is channels-last.
            hidden = hidden.contiguous(memory_format=torch.channels_last)
        features = []
        for layer in self.layers:
            hidden = leaky_relu(layer(hidden), 0.2)
            features.append(hidden)
        logits: Tensor = self.last(hidden)
        return logits, features


class MultiScaleStftDiscriminator(nn.Module):
    """One ``StftDiscriminator`` per window size."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        """Build one discriminator for each window of ``config``."""
        super().__init__()
        self.scales = nn.ModuleList(
            StftDiscriminator(size, config.filters, config.gain) for size in config.windows
        )

    def forward(self, audio: Tensor) -> tuple[list[Tensor], list[Sequence[Tensor]]]:
        """[B, 1, L] -> the logits of every scale, and the features of every scale's layers."""
        judged = [scale(audio) for scale in self.scales]
        return [logits for logits, _ in judged], [features for _, features in judged]
