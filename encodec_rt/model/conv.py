"""The convolutions of EnCodec: padded so that lengths stay multiples of the hop.

Sources: paper section 3.1; ``encodec/modules/conv.py`` (SConv1d, SConvTranspose1d) and
``transformers`` ``modeling_encodec.py``, whose parameter names these modules keep.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.parametrizations import weight_norm

from encodec_rt.config import EncodecConfig
from encodec_rt.model.numerics import FLOAT32_ON_CPU


class EncodecConv1d(nn.Module):
    """Conv1d with ceil(T / stride) outputs for T inputs, causal or centred."""

    def __init__(
        self,
        config: EncodecConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        """Build the layer; ``config`` says how it is padded and normalised."""
        super().__init__()
        self.causal = config.use_causal_conv
        self.pad_mode = config.pad_mode
        self.stride = stride
        self.padding_total = (kernel_size - 1) * dilation + 1 - stride
        conv = nn.Conv1d(
            in_channels, out_channels, kernel_size, stride, dilation=dilation, **FLOAT32_ON_CPU
        )
        self.conv = weight_norm(conv) if config.norm_type == "weight_norm" else conv
        grouped = config.norm_type == "time_group_norm"
        self.norm = nn.GroupNorm(1, out_channels, **FLOAT32_ON_CPU) if grouped else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C', ceil(T / stride)]."""
        extra = -x.shape[-1] % self.stride
        right = 0 if self.causal else self.padding_total // 2
        y: Tensor = self.conv(
            pad1d(x, self.padding_total - right, right + extra, mode=self.pad_mode)
        )
        return y if self.norm is None else self.norm(y)


class EncodecConvTranspose1d(nn.Module):
    """ConvTranspose1d with T * stride outputs for T inputs."""

    def __init__(
        self,
        config: EncodecConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
    ) -> None:
        """Build the layer; ``config`` says which side is trimmed and how it is normalised."""
        super().__init__()
        trim_total = kernel_size - stride
        ratio = config.trim_right_ratio if config.use_causal_conv else 0.5
        # The odd sample is trimmed on the left in the centred layer, on the right in the causal
        # one.
        rounded = math.ceil if config.use_causal_conv else math.floor
        self.trim_right = rounded(trim_total * ratio)
        self.trim_left = trim_total - self.trim_right
        conv = nn.ConvTranspose1d(in_channels, out_channels, kernel_size, stride, **FLOAT32_ON_CPU)
        self.conv = weight_norm(conv) if config.norm_type == "weight_norm" else conv
        grouped = config.norm_type == "time_group_norm"
        self.norm = nn.GroupNorm(1, out_channels, **FLOAT32_ON_CPU) if grouped else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C', T * stride]; the norm sees the untrimmed output, as upstream."""
        y: Tensor = self.conv(x)
        if self.norm is not None:
            y = self.norm(y)
        return y[..., self.trim_left : y.shape[-1] - self.trim_right]


def pad1d(x: Tensor, left: int, right: int, *, mode: str) -> Tensor:
    """[..., T] -> [..., left + T + right].

    A reflection needs more samples than it writes. A shorter clip is first extended with zeros,
    which are removed afterwards (``encodec/modules/conv.py``, ``pad1d``).
    """
    if mode != "reflect":
        return pad(x, (left, right), mode=mode)
    missing = max(0, max(left, right) - x.shape[-1] + 1)
    padded = pad(pad(x, (0, missing)), (left, right), mode="reflect")
    return padded[..., : padded.shape[-1] - missing]
