"""Checks of audio and codes that users pass. Needs only numpy."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encodec_rt.errors import InputError
from encodec_rt.types import Audio


def is_count(number: object) -> bool:
    """Whether ``number`` is an integer of at least 1, of Python's or numpy's types."""
    whole = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    return whole and int(cast("int", number)) >= 1


def as_array(values: ArrayLike, what: str) -> NDArray[Any]:
    """``values`` as an array. Raises InputError for rows of different lengths."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(f"{what} of rows with different lengths; pass an array") from error


def check_audio(pcm: ArrayLike, channels: int) -> Audio:
    """Audio [n] (mono) or [channels, n] -> finite float32 [channels, n]; may be the same array.

    Raises InputError.
    """
    audio = as_array(pcm, "audio")
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
    if not np.isfinite(audio).all():
        raise InputError("the audio holds NaN or infinite samples")
    return audio


def check_codes(codes: ArrayLike, size: int, most: int) -> NDArray[np.integer[Any]]:
    """Codes [frames, Q] of any integer type, 1 <= Q <= most, each below ``size``, as they are.

    Raises InputError.
    """
    array = as_array(codes, "codes")
    if array.dtype.kind not in "iu" or array.ndim != 2 or not 1 <= array.shape[1] <= most:
        raise InputError(
            f"codes of shape {array.shape} and type {array.dtype}; "
            f"pass integers [frames, codebooks] with 1 to {most} codebooks"
        )
    if array.size and not (array.min() >= 0 and array.max() < size):
        raise InputError(f"codes from {array.min()} to {array.max()}; accepted: 0 to {size - 1}")
    return array
