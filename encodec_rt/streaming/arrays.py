"""Checks of the arrays that users pass, and conversion of those they get back."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from encodec_rt.arrays import as_array, check_audio, check_codes
from encodec_rt.types import Audio, Codes


def as_audio(pcm: ArrayLike | Tensor, channels: int) -> Tensor:
    """Audio [n] (mono) or [channels, n] -> float32 [n, channels] on the CPU, all finite."""
    # In numpy, whose calls cost less than torch's, since this runs for every frame.
    if isinstance(pcm, Tensor):
        floating = pcm.dtype.is_floating_point
        audio = pcm.detach().cpu().float().numpy() if floating else pcm.cpu().numpy()
    else:
        audio = as_array(pcm, "audio")
    audio = check_audio(audio, channels)
    if not (audio.flags.c_contiguous and audio.flags.writeable):
        audio = audio.copy()
    return torch.from_numpy(audio).t()


def as_codes(codes: ArrayLike | Tensor, size: int, most: int) -> Tensor:
    """Codes [frames, Q], 1 <= Q <= most, each below ``size`` -> the same as int64 on the CPU."""
    array = codes.detach().cpu().numpy() if isinstance(codes, Tensor) else codes
    return torch.from_numpy(check_codes(array, size, most).astype(np.int64))


def to_audio(audio: Tensor) -> Audio:
    """[n, C] -> numpy float32 [n], or [C, n] if there is more than one channel; a copy."""
    samples = audio[:, 0] if audio.shape[1] == 1 else audio.t()
    return samples.cpu().numpy().astype(np.float32, order="C")


def to_codes(codes: Tensor) -> Codes:
    """[frames, Q] -> numpy uint16; a copy."""
    return codes.cpu().numpy().astype(np.uint16)
