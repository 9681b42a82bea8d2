"""SEANet, EnCodec's encoder and decoder (paper section 3.1, ``encodec/modules/seanet.py``)."""

from __future__ import annotations

from torch import Tensor, nn

from encodec_rt.config import EncodecConfig
from encodec_rt.model.conv import EncodecConv1d, EncodecConvTranspose1d
from encodec_rt.model.lstm import EncodecLSTM


class EncodecResnetBlock(nn.Module):
    """ELU, dilated convolution, ELU, 1x1 convolution, added to a shortcut of the input."""

    def __init__(self, config: EncodecConfig, dim: int, dilation: int) -> None:
        """Build a block of ``dim`` channels whose first convolution is dilated."""
        super().__init__()
        hidden = dim // config.compress
        self.block = nn.ModuleList(
            [
                nn.ELU(),
                EncodecConv1d(config, dim, hidden, config.residual_kernel_size, dilation=dilation),
                nn.ELU(),
                EncodecConv1d(config, hidden, dim, kernel_size=1),
            ]
        )
        self.shortcut: nn.Module = nn.Identity()
        if config.use_conv_shortcut:
            self.shortcut = EncodecConv1d(config, dim, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        y = x
        for layer in self.block:
            y = layer(y)
        shortcut: Tensor = self.shortcut(x)
        return shortcut + y


def _residual_blocks(config: EncodecConfig, dim: int) -> list[nn.Module]:
    return [
        EncodecResnetBlock(config, dim, config.dilation_growth_rate**depth)
        for depth in range(config.num_residual_layers)
    ]


class EncodecEncoder(nn.Module):
    """Waveform to latents: one latent per ``hop_length`` samples."""

    def __init__(self, config: EncodecConfig) -> None:
        """Build the encoder that ``config`` describes."""
        super().__init__()
        dim = config.num_filters
        layers: list[nn.Module] = [
            EncodecConv1d(config, config.audio_channels, dim, config.kernel_size)
        ]
        for ratio in reversed(config.upsampling_ratios):
            layers += _residual_blocks(config, dim)
            layers += [nn.ELU(), EncodecConv1d(config, dim, dim * 2, ratio * 2, stride=ratio)]
            dim *= 2
        layers += [
            EncodecLSTM(config, dim),
            nn.ELU(),
            EncodecConv1d(config, dim, config.hidden_size, config.last_kernel_size),
        ]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B, audio_channels, L] -> [B, hidden_size, ceil(L / hop)]."""
        for layer in self.layers:
            x = layer(x)
        return x


class EncodecDecoder(nn.Module):
    """Latents to waveform, the encoder's mirror image."""

    def __init__(self, config: EncodecConfig) -> None:
        """Build the decoder that ``config`` describes."""
        super().__init__()
        dim = config.num_filters * 2 ** len(config.upsampling_ratios)
        layers: list[nn.Module] = [
            EncodecConv1d(config, config.hidden_size, dim, config.kernel_size),
            EncodecLSTM(config, dim),
        ]
        for ratio in config.upsampling_ratios:
            layers += [
                nn.ELU(),
                EncodecConvTranspose1d(config, dim, dim // 2, ratio * 2, stride=ratio),
            ]
            dim //= 2
            layers += _residual_blocks(config, dim)
        layers += [
            nn.ELU(),
            EncodecConv1d(config, dim, config.audio_channels, config.last_kernel_size),
        ]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B, hidden_size, T] -> [B, audio_channels, T * hop]."""
        for layer in self.layers:
            x = layer(x)
        return x
