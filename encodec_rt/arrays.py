"""Checks of audio and codes that users pass. Needs only numpy."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encodec_rt.errors import InputError
from encodec_rt.types import Audio

LOUDEST = 1e12
"""No sample may be beyond it: an overflow in a layer would stay in the state for good."""
UNUSABLE = f"NaN or infinite values, or some beyond {LOUDEST:g}"


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


def all_usable(values: NDArray[Any]) -> bool:
    """Whether all of ``values`` are numbers up to LOUDEST, of either sign."""
    # Without a temporary array; NaN passes no comparison.
    return not values.size or bool(values.max() <= LOUDEST and values.min() >= -LOUDEST)


def check_audio(pcm: ArrayLike, channels: int) -> Audio:
    """Audio [n] (mono) or [channels, n] -> float32 [channels, n]; may be the same array.

    Raises InputError, for NaN, infinity and samples beyond LOUDEST too.
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
    if not all_usable(audio):
        raise InputError(f"the audio holds {UNUSABLE}")
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
