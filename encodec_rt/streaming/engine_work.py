"""What an engine does in a tick, and the shapes of what goes in and out.

Each piece of work holds the state that it advances, not the engine, so that an engine frees its
CUDA graphs as soon as it is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encodec_rt.arrays import LOUDEST, all_usable
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import InputError
from encodec_rt.streaming.ops import Ops, Work
from encodec_rt.streaming.weights import CodecWeights

Move = Callable[[Tensor, Tensor, Ops], Tensor]
"""(x [S, T, C], active [S], ops) -> y [S, T', C']: a step of a network, as ``Runner.step`` is."""

MakeWork = Callable[[Move, int], Work]
"""(the network's step, slots in the batch) -> the work of a tick."""

ABSENT = -1
"""The code that stands for an absent codebook."""


@dataclass(frozen=True, eq=False)
class Stepped:
    """The result of stepping some slots: ``rows`` [n, ...], in their order.

    A slot in ``refused`` did not advance, and its row is meaningless.
    """

    rows: Tensor
    refused: Mapping[int, InputError]


def audio_shape(config: EncodecConfig, slots: int, frames: int) -> tuple[int, ...]:
    """[S, n] of one channel, [S, channels, n] of more."""
    channels, samples = config.audio_channels, frames * config.hop_length
    return (slots, samples) if channels == 1 else (slots, channels, samples)


def encode_work(weights: CodecWeights, books: int, frames: int) -> MakeWork:
    """Audio [S, n] or [S, channels, n] -> codes [S, books], or [S, frames, books] of several."""
    channels = weights.config.audio_channels

    def make(move: Move, slots: int) -> Work:
        def work(ops: Ops, pcm: Tensor, active: Tensor) -> Tensor:
            samples = pcm.view(slots, channels, -1).transpose(1, 2)
            latents = move(samples, active, ops)
            codes = ops.rvq_encode(latents, weights.codebooks, codebooks=books)
            return codes[:, 0] if frames == 1 else codes

        return work

    return make


def decode_work(weights: CodecWeights, books: int, frames: int) -> MakeWork:
    """Codes [S, books], or [S, frames, books] of several -> audio [S, n] or [S, channels, n]."""

    def make(move: Move, slots: int) -> Work:
        def work(ops: Ops, codes: Tensor, active: Tensor) -> Tensor:
            latents = ops.rvq_decode(codes.view(slots, frames, books), weights.codebooks)
            return _as_batch(move(latents, active, ops), audio_shape(weights.config, slots, frames))

        return work

    return make


def latents_work(config: EncodecConfig, frames: int) -> MakeWork:
    """Latents [S, frames, D] -> audio [S, n] or [S, channels, n]."""

    def make(move: Move, slots: int) -> Work:
        def work(ops: Ops, latents: Tensor, active: Tensor) -> Tensor:
            return _as_batch(move(latents, active, ops), audio_shape(config, slots, frames))

        return work

    return make


def _as_batch(audio: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[S, n, C] -> ``shape``, always a view."""
    return audio.transpose(1, 2).reshape(shape)


def as_clip(audio: Tensor) -> Tensor:
    """[1, n, C] -> [n], or [C, n] where there are more channels than one."""
    channels = audio[0].t()
    return channels[0] if len(channels) == 1 else channels


def check_tensor(x: object, what: str, dtype: torch.dtype) -> None:
    """Raise InputError unless ``x`` is a tensor of ``dtype``; conversions are the caller's."""
    if not isinstance(x, Tensor):
        raise InputError(f"{what} of type {type(x).__name__}; an engine takes torch tensors")
    if x.dtype != dtype:
        raise InputError(f"{what} of type {x.dtype}; this engine takes {dtype}")


def frames_of_audio(pcm: Tensor, one: tuple[int, ...]) -> int:
    """The frames in audio whose shape for a single frame is ``one``. Raises InputError."""
    check_tensor(pcm, "audio", torch.float32)
    frames = pcm.shape[-1] // one[-1] if pcm.ndim == len(one) else 0
    if not frames or pcm.shape != (*one[:-1], frames * one[-1]):
        raise InputError(f"audio of shape {tuple(pcm.shape)}; pass whole frames of {one}")
    return frames


def frames_of_latents(latents: Tensor, slots: int, width: int) -> int:
    """The frames in latents [slots, frames, width]. Raises InputError."""
    check_tensor(latents, "latents", torch.float32)
    if latents.ndim != 3 or latents.shape[::2] != (slots, width) or not latents.shape[1]:
        raise InputError(
            f"latents of shape {tuple(latents.shape)}; pass [{slots}, frames, {width}]"
        )
    return latents.shape[1]


def rows_usable(x: Tensor, active: Tensor | None) -> bool:
    """Whether the active rows of ``x``, on the host, are all usable (``arrays.all_usable``)."""
    # In numpy, which takes a fortieth of torch's time with thousands of slots.
    values = x.numpy() if active is None else x.numpy()[active.cpu().numpy()]
    return all_usable(values)


def usable_rows(x: Tensor) -> NDArray[np.bool_]:
    """Which rows of ``x``, on the host, are all usable."""
    usable: NDArray[np.bool_] = (np.abs(x.flatten(1).numpy()) <= LOUDEST).all(axis=1)
    return usable


def named_rows(codes: Tensor, size: int) -> NDArray[np.bool_]:
    """Which rows of ``codes``, on the host, hold only existing or absent (-1) codes."""
    values = codes.flatten(1).numpy()
    named: NDArray[np.bool_] = np.all((values >= ABSENT) & (values < size), axis=1)
    return named


def distinct(slots: Sequence[int], most: int) -> Tensor:
    """``slots`` as an index [n] int64. Raises InputError unless they exist and are distinct."""
    if not isinstance(slots, Sequence):
        raise InputError(f"slots of type {type(slots).__name__}; pass a list of numbers")
    known = all(isinstance(each, (int, np.integer)) and 0 <= each < most for each in slots)
    if not slots or not known or len(set(slots)) < len(slots):
        raise InputError(f"slots {list(slots)}; pass distinct ones of the {most} of this engine")
    return torch.tensor(slots, dtype=torch.int64, device="cpu")


def numbered(slots: int | Sequence[int] | Tensor, most: int) -> Tensor:
    """One slot or several as an index [n] int64. Raises InputError unless all of them exist."""
    try:
        index = torch.as_tensor(slots, dtype=torch.int64, device="cpu").reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"slots of type {type(slots).__name__}; pass a number or a list of numbers"
        ) from None
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < most:
        raise InputError(f"slots {index.tolist()}; this engine has {most}")
    return index
