"""Streams for users: audio of any length to whole frames of codes, and back."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from encodec_rt.arrays import is_count
from encodec_rt.concealment import latent_gain
from encodec_rt.errors import InputError
from encodec_rt.streaming.arrays import as_audio, as_codes, to_audio, to_codes
from encodec_rt.streaming.ops import Ops, Step
from encodec_rt.streaming.stream_base import Stream, whole
from encodec_rt.streaming.weights import CodecWeights, Start
from encodec_rt.types import Audio, Codes


class StreamEncoder(Stream):
    """Audio pushed in pieces of any size -> codes, frame by frame, whatever the pieces were."""

    kind = "encoder"
    _HELD = ("_waiting", "_begun", "samples_in", "frames_out")

    def __init__(
        self,
        weights: CodecWeights,
        codebooks: int,
        *,
        start: Start = "primed",
        block_frames: int = 1,
        graph: bool | None = None,
    ) -> None:
        """Use Codec.stream_encoder."""
        super().__init__(weights, codebooks, start, block_frames, graph)
        channels = weights.config.audio_channels
        self._waiting = torch.zeros(0, channels, dtype=torch.float32, device="cpu")
        self._begun = start != "exact"
        self.samples_in = 0
        self.frames_out = 0

    @whole
    def push(self, pcm: ArrayLike | Tensor) -> Codes:
        """Audio float32 [n] or [audio_channels, n], n >= 0 -> codes uint16 [frames, Q].

        ``frames`` may be 0. Raises InputError for audio of the wrong shape or that is not finite,
        and StateError after ``flush``; the stream is then as it was before the call.
        """
        config = self._weights.config
        audio = as_audio(pcm, config.audio_channels)
        waiting = torch.cat([self._waiting, audio]) if len(self._waiting) else audio
        first = self._weights.encoder_start_frames * config.hop_length
        block = self.block_frames * config.hop_length
        codes: list[Codes] = []
        used = 0
        if not self._begun and len(waiting) >= first:
            latents = self.runner.begin(0, waiting[None, :first].to(self.device))
            codes.append(self._quantize(latents))
            self._begun, used = True, first
        while self._begun and len(waiting) - used >= block:
            codes.append(to_codes(self._step(waiting[None, used : used + block], None)[0]))
            used += block
        self._waiting = waiting[used:].clone()
        self.samples_in += len(audio)
        return self._collect(codes)

    @whole
    def flush(self) -> Codes:
        """The codes of the remaining samples, padded as in the offline model; closes the stream."""
        self.closed = True
        if not len(self._waiting):
            return self._collect([])
        rest = self._waiting[None].to(self.device)
        latents = self.runner.finish(0, rest) if self._begun else self.runner.whole(rest)
        return self._collect([self._quantize(latents)])

    def _capture(self) -> Step:
        weights, runner, codebooks = self._weights, self.runner, self.codebooks

        def work(ops: Ops, samples: Tensor, active: Tensor) -> Tensor:
            latents = runner.step(samples, active, ops)
            return ops.rvq_encode(latents, weights.codebooks, codebooks=codebooks)

        config, frames = weights.config, self.block_frames
        shape = (1, frames * config.hop_length, config.audio_channels)
        silence = torch.zeros(shape, dtype=torch.float32, device=self.device)
        return weights.ops.capture(weights.ops, work, silence, graph=self._graph, live=frames == 1)

    def _quantize(self, latents: Tensor) -> Codes:
        ops, books = self._weights.ops, self._weights.codebooks
        return to_codes(ops.rvq_encode(latents, books, codebooks=self.codebooks)[0])

    def _collect(self, codes: list[Codes]) -> Codes:
        frames = codes[0] if len(codes) == 1 else _joined(codes, self.codebooks)
        self.frames_out += len(frames)
        return frames

    def _progress(self) -> str:
        return f"{self.samples_in} samples in, {self.frames_out} frames out"


def _joined(codes: list[Codes], codebooks: int) -> Codes:
    return np.concatenate([np.zeros((0, codebooks), np.uint16), *codes])


class StreamDecoder(Stream):
    """Codes pushed in any number of frames -> audio; a lost frame can be pushed too."""

    kind = "decoder"
    _HELD = ("_waiting", "_begun", "_drop", "_last_latent", "_lost", "frames_in", "samples_out")

    def __init__(
        self,
        weights: CodecWeights,
        codebooks: int,
        *,
        start: Start = "primed",
        block_frames: int = 1,
        graph: bool | None = None,
    ) -> None:
        """Use Codec.stream_decoder."""
        super().__init__(weights, codebooks, start, block_frames, graph)
        width = weights.config.hidden_size
        self._waiting = torch.zeros(0, width, dtype=torch.float32, device=self.device)
        self._begun = start != "exact"
        # The samples before the stream's first one, which the decoder still returns.
        self._drop = weights.decoder_lag if self._begun else 0
        self._last_latent = torch.zeros(1, width, dtype=torch.float32, device=self.device)
        self._lost = 0
        self.frames_in = 0
        self.samples_out = 0

    @whole
    def push(self, codes: ArrayLike | Tensor | None) -> Audio:
        """Codes [frames, Q], or None for one lost frame -> audio float32 [n] or [channels, n].

        n is frames * hop_length, except in streams of blocks and at the start of "exact" streams,
        which hold frames back. Q may differ from push to push. A lost frame is concealed by the
        last latent, which fades. Raises InputError and StateError.
        """
        latents = self._conceal() if codes is None else self.dequantize(codes)
        if codes is not None and len(latents):
            self._last_latent, self._lost = latents[-1:].clone(), 0
        return self._decode(latents)

    @whole
    def push_latents(self, latents: Tensor) -> Audio:
        """As ``push``, for latents float32 [frames, hidden_size] instead of codes."""
        width = self._weights.config.hidden_size
        if not isinstance(latents, Tensor) or latents.shape[1:] != (width,):
            shape = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise InputError(f"latents {shape}; pass what dequantize gave, [frames, {width}]")
        latents = latents.to(self.device)
        self._last_latent = latents[-1:].clone() if len(latents) else self._last_latent
        return self._decode(latents)

    @whole
    def flush(self, samples: int | None = None) -> Audio:
        """The audio that is still held; closes the stream.

        With ``samples``, the true length of the audio, it is cut so that the whole stream has that
        length. ``push`` has returned whole frames by then, so the last frame may still have to be
        cut by the caller. Raises InputError for anything but a number.
        """
        if samples is not None and not (is_count(samples) or samples == 0):
            raise InputError(f"samples={samples!r}; pass the number of samples, 0 or more")
        self.closed = True
        rest = self._waiting[None]
        if self._begun:
            audio = self.runner.finish(0, rest)[0]
        elif len(self._waiting):
            audio = self.runner.whole(rest)[0]
        else:
            audio = rest.new_zeros(0, self._weights.config.audio_channels)
        if samples is not None:
            audio = audio[: self._drop + max(0, samples - self.samples_out)]
        return self._trimmed([to_audio(audio)])

    @torch.inference_mode()
    def dequantize(self, codes: ArrayLike | Tensor) -> Tensor:
        """Codes [frames, Q] -> latents [frames, hidden_size], for ``push_latents``.

        Raises InputError; the stream stays as it is.
        """
        config = self._weights.config
        frames = as_codes(codes, config.codebook_size, config.num_quantizers)
        if not len(frames):
            return self._last_latent[:0]
        return self._weights.ops.rvq_decode(frames[None].to(self.device), self._weights.codebooks)[
            0
        ]

    def silence_latent(self) -> Tensor:
        """The latent [1, hidden_size] of a frame of digital silence."""
        config = self._weights.config
        silence = np.zeros((config.audio_channels, config.hop_length), np.float32)
        return self.dequantize(StreamEncoder(self._weights, self.codebooks).push(silence))

    def _capture(self) -> Step:
        weights, runner, frames = self._weights, self.runner, self.block_frames

        def work(ops: Ops, latents: Tensor, active: Tensor) -> Tensor:
            return runner.step(latents, active, ops)

        shape = (1, frames, weights.config.hidden_size)
        latents = torch.zeros(shape, dtype=torch.float32, device=self.device)
        return weights.ops.capture(weights.ops, work, latents, graph=self._graph, live=frames == 1)

    def _conceal(self) -> Tensor:
        gain = latent_gain(self._lost)
        self._lost += 1
        return self._last_latent * gain

    def _decode(self, latents: Tensor) -> Audio:
        self.frames_in += len(latents)
        waiting = torch.cat([self._waiting, latents]) if len(self._waiting) else latents
        first = self._weights.decoder_start_frames
        audio: list[Audio] = []
        used = 0
        if not self._begun and len(waiting) >= first:
            audio.append(to_audio(self.runner.begin(0, waiting[None, :first])[0]))
            self._begun, used = True, first
        while self._begun and len(waiting) - used >= self.block_frames:
            block = waiting[None, used : used + self.block_frames]
            audio.append(to_audio(self._step(block, None)[0]))
            used += self.block_frames
        self._waiting = waiting[used:].clone()
        return self._trimmed(audio)

    def _trimmed(self, audio: list[Audio]) -> Audio:
        channels = self._weights.config.audio_channels
        nothing = np.zeros(0 if channels == 1 else (channels, 0), np.float32)
        joined = audio[0] if len(audio) == 1 else np.concatenate([nothing, *audio], axis=-1)
        dropped = min(self._drop, joined.shape[-1])
        self._drop -= dropped
        self.samples_out += joined.shape[-1] - dropped
        return joined[..., dropped:]

    def _progress(self) -> str:
        return f"{self.frames_in} frames in, {self.samples_out} samples out"
