"""What an engine does in a tick, and the shapes of what goes in and out.

Each piece of work holds its runner and not the engine, so that an engine that is dropped frees
its CUDA graphs at once.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from encodec_rt.streaming.ops import Ops, Work
from encodec_rt.streaming.runner import Runner
from encodec_rt.streaming.weights import CodecWeights


def encode_work(weights: CodecWeights, runner: Runner, books: int, frames: int) -> Work:
    """Audio [S, n] or [S, channels, n] -> codes [S, books], or [S, frames, books] of several."""
    channels = weights.config.audio_channels

    def work(ops: Ops, pcm: Tensor, active: Tensor) -> Tensor:
        samples = pcm.view(len(pcm), channels, -1).transpose(1, 2)
        latents = runner.step(samples, active, ops)
        codes = ops.rvq_encode(latents, weights.codebooks, codebooks=books)
        return codes[:, 0] if frames == 1 else codes

    return work


def decode_work(
    weights: CodecWeights, runner: Runner, codes_shape: tuple[int, ...], shape: tuple[int, ...]
) -> Work:
    """Codes, viewed as ``codes_shape`` [S, frames, Q] -> audio of ``shape``."""

    def work(ops: Ops, codes: Tensor, active: Tensor) -> Tensor:
        latents = ops.rvq_decode(codes.view(codes_shape), weights.codebooks)
        return _as_batch(runner.step(latents, active, ops), shape)

    return work


def latents_work(runner: Runner, shape: tuple[int, ...]) -> Work:
    """Latents [S, frames, D] -> audio of ``shape``."""

    def work(ops: Ops, latents: Tensor, active: Tensor) -> Tensor:
        return _as_batch(runner.step(latents, active, ops), shape)

    return work


def _as_batch(audio: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[S, n, C] -> ``shape``, always a view."""
    return audio.transpose(1, 2).reshape(shape)


def as_clip(audio: Tensor) -> Tensor:
    """[1, n, C] -> [n], or [C, n] where there are more channels than one."""
    channels = audio[0].t()
    return channels[0] if len(channels) == 1 else channels


def all_finite(x: Tensor, active: Tensor | None) -> bool:
    """Whether the active rows of ``x``, on the host, hold neither NaN nor infinity."""
    # In numpy, which takes a fortieth of torch's time for thousands of slots.
    values = x.numpy() if active is None else x.numpy()[active.cpu().numpy()]
    return bool(np.isfinite(values).all())
