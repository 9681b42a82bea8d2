"""Arrays as users pass them, checked, and as they get them back."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from encodec_rt.errors import InputError
from encodec_rt.types import Audio, Codes


def as_audio(pcm: ArrayLike | Tensor, channels: int) -> Tensor:
    """Audio [n] (mono) or [channels, n] -> float32 [n, channels] on the CPU, all finite."""
    # In numpy, whose calls cost less than torch's: this is done for every frame.
    if isinstance(pcm, Tensor):
        floating = pcm.dtype.is_floating_point
        audio = pcm.detach().cpu().float().numpy() if floating else pcm.cpu().numpy()
    else:
        audio = np.asarray(pcm)
    if audio.dtype.kind != "f":
        raise InputError(f"audio of type {audio.dtype}; pass floating point samples in [-1, 1]")
    if audio.ndim == 1 and channels == 1:
        audio = audio[None]
    if audio.ndim != 2 or audio.shape[0] != channels:
        accepted = "[n]" if channels == 1 else f"[{channels}, n]"
        raise InputError(f"audio of shape {audio.shape}; this model takes {accepted}")
    if audio.dtype != np.float32:
        with np.errstate(over="ignore"):
            audio = audio.astype(np.float32)
    if not (audio.flags.c_contiguous and audio.flags.writeable):
        audio = audio.copy()
    if not np.isfinite(audio).all():
        raise InputError("the audio holds NaN or infinite samples")
    return torch.from_numpy(audio).t()


def as_codes(codes: ArrayLike | Tensor, size: int, most: int) -> Tensor:
    """Codes [frames, Q], 1 <= Q <= most, each below ``size`` -> the same as int64 on the CPU."""
    array = codes.detach().cpu().numpy() if isinstance(codes, Tensor) else np.asarray(codes)
    if array.dtype.kind not in "iu" or array.ndim != 2 or not 1 <= array.shape[1] <= most:
        raise InputError(
            f"codes of shape {array.shape} and type {array.dtype}; "
            f"pass integers [frames, codebooks] with 1 to {most} codebooks"
        )
    if array.size and not (array.min() >= 0 and array.max() < size):
        raise InputError(f"codes from {array.min()} to {array.max()}; accepted: 0 to {size - 1}")
    return torch.from_numpy(array.astype(np.int64))


def to_audio(audio: Tensor) -> Audio:
    """[n, C] -> numpy float32 [n], or [C, n] where there are more channels than one; a copy."""
    samples = audio[:, 0] if audio.shape[1] == 1 else audio.t()
    return samples.cpu().numpy().astype(np.float32, order="C")


def to_codes(codes: Tensor) -> Codes:
    """[frames, Q] -> numpy uint16; a copy."""
    return codes.cpu().numpy().astype(np.uint16)
