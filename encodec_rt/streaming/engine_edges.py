"""Starts and ends of "exact" streams, computed separately from the engine that has their slots.

Each takes about as long as several ticks. Nothing here touches a slot, so another thread can do it
while the engine's thread continues; the engine then loads the resulting state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from encodec_rt.arrays import UNUSABLE
from encodec_rt.errors import InputError
from encodec_rt.model.numerics import without_autocast
from encodec_rt.streaming.engine_work import as_clip, check_tensor, rows_usable
from encodec_rt.streaming.runner import begin, finish, whole
from encodec_rt.streaming.weights import CodecWeights


class Edges:
    """Both ends of a stream in each direction, for one thread at a time, the engine's or another.

    A state is a row [N], as from ``Engine.state_of``; None means that the stream has not begun,
    because the clip is too short, and that all of it is passed.
    """

    def __init__(self, weights: CodecWeights, codebooks: int) -> None:
        """Encode with ``codebooks`` codebooks."""
        self.device = weights.device
        self._weights, self._codebooks = weights, codebooks

    @torch.inference_mode()
    @without_autocast
    def begin_encoder(self, pcm: Tensor) -> tuple[Tensor, Tensor]:
        """The first ``encoder_start_frames`` frames [n] or [channels, n] -> codes and state.

        Codes are [frames, Q] int64. Raises InputError.
        """
        audio, weights = self._clip(pcm), self._weights
        frames = weights.encoder_start_frames
        if audio.shape[1] != frames * weights.config.hop_length:
            raise InputError(f"audio of shape {tuple(pcm.shape)}; pass {frames} frames")
        latents, row = begin(weights.encoder, audio)
        return self._quantize(latents), row

    @torch.inference_mode()
    @without_autocast
    def begin_decoder(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [decoder_start_frames, Q] int64 -> audio [n] or [channels, n], and state."""
        frames = self._weights.decoder_start_frames
        check_tensor(codes, "codes", torch.int64)
        if codes.ndim != 2 or len(codes) != frames:
            raise InputError(f"codes of shape {tuple(codes.shape)}; pass {frames} frames")
        audio, row = begin(self._weights.decoder, self._dequantize(codes))
        return as_clip(audio), row

    @torch.inference_mode()
    @without_autocast
    def finish_encoder(self, row: Tensor | None, pcm: Tensor) -> Tensor:
        """The codes [frames, Q] int64 of the end of a clip [n] or [channels, n], n >= 0.

        The end is padded as in the offline model.
        """
        audio, net = self._clip(pcm), self._weights.encoder
        if not audio.shape[1]:
            return torch.zeros(0, self._codebooks, dtype=torch.int64, device=self.device)
        return self._quantize(whole(net, audio) if row is None else finish(net, row, audio))

    @torch.inference_mode()
    @without_autocast
    def finish_decoder(self, row: Tensor | None, codes: Tensor) -> Tensor:
        """The audio [n] or [channels, n] of the last codes [frames, Q] and of what is held."""
        check_tensor(codes, "codes", torch.int64)
        if codes.ndim != 2:
            raise InputError(f"codes of shape {tuple(codes.shape)}; pass [frames, codebooks]")
        latents, net = self._dequantize(codes), self._weights.decoder
        if row is None and not len(codes):
            raise InputError("no codes; a clip has at least one frame")
        return as_clip(whole(net, latents) if row is None else finish(net, row, latents))

    def _quantize(self, latents: Tensor) -> Tensor:
        weights = self._weights
        return weights.ops.rvq_encode(latents, weights.codebooks, codebooks=self._codebooks)[0]

    def _dequantize(self, codes: Tensor) -> Tensor:
        return self._weights.ops.rvq_decode(codes[None].to(self.device), self._weights.codebooks)

    def _clip(self, pcm: Tensor) -> Tensor:
        """[n] or [channels, n], finite -> [1, n, channels] on the device."""
        check_tensor(pcm, "audio", torch.float32)
        audio = pcm[None] if pcm.ndim == 1 else pcm
        if audio.ndim != 2 or len(audio) != self._weights.config.audio_channels:
            raise InputError(f"audio of shape {tuple(pcm.shape)}; pass [n] or [channels, n]")
        if pcm.device.type == "cpu" and not rows_usable(pcm, None):
            raise InputError(f"the audio holds {UNUSABLE}")
        return audio.t()[None].to(self.device)
