"""Streams as users hold them: audio of any length in, whole frames out, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from encodec_rt.errors import ConfigError, InputError, StateError
from encodec_rt.streaming.cuda_graph import Step, Tick
from encodec_rt.streaming.runner import Runner
from encodec_rt.streaming.weights import CodecWeights
from encodec_rt.types import Audio, Codes

CONCEALMENT_GAINS = (1.0, 0.8, 0.5, 0.2)
"""What the last latent is multiplied by in the 1st, 2nd, ... lost frame in a row; then 0.

Repeating with decay in the latent domain keeps the decoder's state moving (Lyra fades likewise).
"""


@dataclass(frozen=True)
class Snapshot:
    """A stream frozen between two pushes, to be given back to ``restore`` any number of times."""

    row: Tensor
    fields: tuple[object, ...]


class _Stream:
    """What both directions share: a single slot, and being open or closed.

    ``eager_because`` is None where a block of frames is one CUDA graph, else why it is not.
    """

    _SAVED: tuple[str, ...] = ()
    eager_because: str | None

    def __init__(
        self, model: CodecWeights, runner: Runner, codebooks: int, block_frames: int
    ) -> None:
        if block_frames < 1:
            raise ConfigError(f"block_frames={block_frames}; a block has at least one frame")
        self._model = model
        self._block_frames = block_frames
        self.runner = runner
        self._active = torch.ones(1, dtype=torch.bool, device=model.device)
        self.codebooks = codebooks
        self.closed = False

    def snapshot(self) -> Snapshot:
        """The whole state of the stream, as a value."""
        return Snapshot(
            self.runner.now.row(0), (self.closed, *(getattr(self, name) for name in self._SAVED))
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from ``snapshot``, bit for bit. Raises StateError if it is another stream's."""
        if snapshot.row.shape != self.runner.now.arena[0].shape or (
            len(snapshot.fields) != len(self._SAVED) + 1
        ):
            raise StateError("this snapshot is of another model or of the other direction")
        self.runner.now.load_(0, snapshot.row)
        for name, value in zip(("closed", *self._SAVED), snapshot.fields, strict=True):
            setattr(self, name, value)

    def _ready(self, step: Step, x: Tensor, graph: bool | None) -> Callable[[Tensor], Tensor]:
        """``step`` for blocks shaped like ``x``, on the device: a CUDA graph where there can be.

        All results of a step are in one buffer, and of several in a push none may be lost.
        """
        if self._model.device.type != "cuda" and not graph:
            self.eager_because = f"device {str(self._model.device)!r} has no CUDA graphs"
            return lambda block: step(block, self._active).clone()
        tick = Tick(step, x, graph=graph)
        self.eager_because = tick.eager_because
        return lambda block: tick(block, None).clone()

    def _check_open(self) -> None:
        if self.closed:
            raise StateError("this stream was flushed; open a new one")


class StreamEncoder(_Stream):
    """Audio pushed in pieces of any size -> codes, frame by frame, whatever the pieces were."""

    _SAVED = ("_waiting", "_begun", "samples_in", "frames_out")

    def __init__(
        self,
        model: CodecWeights,
        runner: Runner,
        codebooks: int,
        *,
        begun: bool,
        block_frames: int,
        graph: bool | None,
    ) -> None:
        """Use Codec.stream_encoder. ``begun`` says that the left edge already lies behind."""
        super().__init__(model, runner, codebooks, block_frames)
        shape = (1, block_frames * model.config.hop_length, model.config.audio_channels)
        silence = torch.zeros(shape, device=model.device)
        self._search = model.search(codebooks)
        self._encode = self._ready(self._encode_block, silence, graph)
        self._waiting = torch.zeros(0, model.config.audio_channels)
        self._begun = begun
        self.samples_in = 0
        self.frames_out = 0

    @torch.inference_mode()
    def push(self, pcm: ArrayLike | Tensor) -> Codes:
        """Audio float32 [n] or [audio_channels, n], n >= 0 -> codes uint16 [frames, Q].

        ``frames`` may be 0. Raises InputError for audio of a wrong shape or that is not finite,
        StateError after ``flush``; the stream is then as it was before the call.
        """
        self._check_open()
        audio = as_audio(pcm, self._model.config.audio_channels)
        waiting = torch.cat([self._waiting, audio]) if len(self._waiting) else audio
        hop = self._model.config.hop_length
        first, step = self._model.encoder_start_frames * hop, self._block_frames * hop
        codes: list[Tensor] = []
        used = 0
        if not self._begun and len(waiting) >= first:
            start = waiting[None, :first].to(self._model.device)
            codes.append(self._quantize(self.runner.begin(0, start)).clone())
            self._begun, used = True, first
        while self._begun and len(waiting) - used >= step:
            codes.append(self._encode(waiting[None, used : used + step]))
            used += step
        self._waiting = waiting[used:].clone()
        self.samples_in += len(audio)
        return self._collect(codes)

    @torch.inference_mode()
    def flush(self) -> Codes:
        """The codes of what is left, padded as the offline model pads; closes the stream."""
        self._check_open()
        self.closed = True
        if not len(self._waiting):
            return self._collect([])
        rest = self._waiting[None].to(self._model.device)
        latents = self.runner.finish(0, rest) if self._begun else self.runner.whole(rest)
        return self._collect([self._quantize(latents)])

    def _encode_block(self, samples: Tensor, active: Tensor) -> Tensor:
        return self._quantize(self.runner.step(samples.to(self._model.device), active))

    def _quantize(self, latents: Tensor) -> Tensor:
        return self._search(latents)[0]

    def _collect(self, codes: list[Tensor]) -> Codes:
        if not codes:
            return np.zeros((0, self.codebooks), np.uint16)
        on_host = [part.cpu() for part in codes]
        whole = on_host[0] if len(on_host) == 1 else torch.cat(on_host)
        frames = whole.numpy().astype(np.uint16)
        self.frames_out += len(frames)
        return frames


class StreamDecoder(_Stream):
    """Codes pushed in any number of frames -> audio; a lost frame is an input too."""

    _SAVED = ("_waiting", "_begun", "_drop", "_last_latent", "_lost", "frames_in", "samples_out")

    def __init__(
        self,
        model: CodecWeights,
        runner: Runner,
        codebooks: int,
        *,
        begun: bool,
        drop: int,
        block_frames: int,
        graph: bool | None,
    ) -> None:
        """Use Codec.stream_decoder. ``drop`` samples lie before the stream's first."""
        super().__init__(model, runner, codebooks, block_frames)
        latents = torch.zeros(1, block_frames, model.config.hidden_size, device=model.device)
        self._look_up = model.look_up()
        self._decode_block = self._ready(self.runner.step, latents, graph)
        self._waiting = torch.zeros(0, model.config.hidden_size, device=model.device)
        self._begun = begun
        self._drop = drop
        self._last_latent = torch.zeros(1, model.config.hidden_size, device=model.device)
        self._lost = 0
        self.frames_in = 0
        self.samples_out = 0

    @torch.inference_mode()
    def push(self, codes: ArrayLike | Tensor | None) -> Audio:
        """Codes [frames, Q], or None for one lost frame -> audio float32 [n] or [channels, n].

        n is frames * hop_length, but in a stream of blocks, and at the start of an "exact" one,
        which hold frames back. Q may be less than the stream's codebooks, from push to push. A
        lost frame is concealed by the last latent, fading. Raises InputError and StateError.
        """
        self._check_open()
        latents = self._conceal() if codes is None else self._dequantize(codes)
        return self._trimmed(self._decode(latents))

    def push_latents(self, latents: Tensor) -> Audio:
        """As ``push``, for latents [frames, hidden_size] instead of codes."""
        self._check_open()
        with torch.inference_mode():
            self._last_latent = latents[-1:] if len(latents) else self._last_latent
            return self._trimmed(self._decode(latents.to(self._model.device)))

    @torch.inference_mode()
    def flush(self, samples: int | None = None) -> Audio:
        """The audio that is still held; closes the stream.

        With ``samples``, the true length of the audio, no more is given than makes the whole
        stream that long. What ``push`` already gave cannot be taken back: the last frame of a
        clip is whole, and the caller cuts it.
        """
        self._check_open()
        self.closed = True
        rest = self._waiting[None]
        if self._begun:
            audio = self.runner.finish(0, rest)[0]
        elif len(self._waiting):
            audio = self.runner.whole(rest)[0]
        else:
            audio = rest.new_zeros(0, self._model.config.audio_channels)
        if samples is not None:
            audio = audio[: self._drop + max(0, samples - self.samples_out)]
        return self._trimmed(audio)

    def _dequantize(self, codes: ArrayLike | Tensor) -> Tensor:
        frames = as_codes(
            codes, self._model.config.codebook_size, self._model.config.num_quantizers
        )
        if not len(frames):
            return self._last_latent[:0]
        frames = frames[None].to(self._model.device)
        latents = self._look_up(frames)[0]
        self._last_latent = latents[-1:].clone()
        self._lost = 0
        return latents

    def _conceal(self) -> Tensor:
        gain = CONCEALMENT_GAINS[self._lost] if self._lost < len(CONCEALMENT_GAINS) else 0.0
        self._lost += 1
        return self._last_latent * gain

    def _decode(self, latents: Tensor) -> Tensor:
        self.frames_in += len(latents)
        waiting = torch.cat([self._waiting, latents]) if len(self._waiting) else latents
        first = self._model.decoder_start_frames
        audio: list[Tensor] = []
        used = 0
        if not self._begun and len(waiting) >= first:
            audio.append(self.runner.begin(0, waiting[None, :first])[0])
            self._begun, used = True, first
        while self._begun and len(waiting) - used >= self._block_frames:
            block = waiting[None, used : used + self._block_frames]
            audio.append(self._decode_block(block)[0])
            used += self._block_frames
        self._waiting = waiting[used:].clone()
        if len(audio) == 1:
            return audio[0]
        return torch.cat([latents.new_zeros(0, self._model.config.audio_channels), *audio])

    def _trimmed(self, audio: Tensor) -> Audio:
        dropped = min(self._drop, len(audio))
        self._drop -= dropped
        audio = audio[dropped:]
        self.samples_out += len(audio)
        return to_numpy(audio)


def to_numpy(audio: Tensor) -> Audio:
    """[n, C] -> numpy float32 [n], or [C, n] where there are more channels than one."""
    samples = audio.squeeze(1) if audio.shape[1] == 1 else audio.t().contiguous()
    return samples.cpu().numpy().astype(np.float32, copy=False)


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
        raise InputError(f"codes from {array.min()} to {array.max()}; they lie in [0, {size})")
    return torch.from_numpy(array.astype(np.int64))
