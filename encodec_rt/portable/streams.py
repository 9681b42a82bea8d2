"""Streams without torch, with the pushes and flushes of ``encodec_rt.streaming.streams``."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from encodec_rt.arrays import all_usable, check_audio, check_codes
from encodec_rt.concealment import latent_gain
from encodec_rt.errors import ConfigError, InputError, StateError, WeightsError
from encodec_rt.portable.module import DECODER, ENCODER, LEFT, RIGHT, Description, Module
from encodec_rt.portable.snapshot import STARTS, PortableSnapshot
from encodec_rt.types import Audio, Codes


class PortableCodec:
    """A model in WebAssembly, from which streams are opened. Use it from one thread at a time."""

    def __init__(self, content: bytes) -> None:
        """Load the content of a model's file. Raises WeightsError and BackendUnavailable."""
        self.module = Module(content)

    @classmethod
    def load(cls, path: str | Path) -> PortableCodec:
        """Load a file that ``encodec-rt export web`` wrote. Raises as the constructor does."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise WeightsError(f"{path}: {error.strerror}") from None
        return cls(content)

    @property
    def config(self) -> Description:
        """The model's name, rates and sizes."""
        return self.module.describes

    def stream_encoder(
        self, bandwidth_kbps: float = 6.0, *, start: str = "primed"
    ) -> PortableEncoder:
        """A new stream of audio to codes; the arguments are those of ``Codec.stream_encoder``."""
        return PortableEncoder(self.module, self.config.codebooks_for(bandwidth_kbps), start)

    def stream_decoder(
        self, bandwidth_kbps: float = 6.0, *, start: str = "primed"
    ) -> PortableDecoder:
        """A new stream of codes to audio; ``start`` must be that of the encoder."""
        return PortableDecoder(self.module, self.config.codebooks_for(bandwidth_kbps), start)


class _Stream:
    """What both directions share: a stream of the module, and being open or closed."""

    direction: str

    def __init__(self, module: Module, number: int, codebooks: int, start: str) -> None:
        if start not in STARTS:
            raise ConfigError(f"start={start!r}; accepted: {', '.join(STARTS)}")
        handle = module.call("open", number, codebooks if start == "primed" else 0)
        if handle < 0:
            raise StateError("no room for more than 128 streams per direction; drop old ones")
        self._finalizer = weakref.finalize(self, module.call, "close", handle)
        self._module = module
        self._handle = handle
        self.start = start
        self.codebooks = codebooks
        self.closed = False
        self._begun = start != "exact"
        self._waiting = np.zeros((0, self._width), np.float32)

    @property
    def _width(self) -> int:
        raise NotImplementedError

    def _most_waiting(self, begun: bool) -> int:
        """This many are never held back, before or after the stream has begun."""
        raise NotImplementedError

    def _check_open(self) -> None:
        if self.closed:
            raise StateError("this stream was flushed; open a new one")

    def _get(self, consumed: int, produced: int) -> PortableSnapshot:
        return PortableSnapshot(
            direction=self.direction,
            weights_sha256=self._module.describes.weights_sha256,
            start=self.start,
            codebooks=self.codebooks,
            state=self._module.state(self._handle).copy(),
            waiting=self._waiting,
            begun=self._begun,
            closed=self.closed,
            consumed=consumed,
            produced=produced,
        )

    def _set(self, snapshot: PortableSnapshot) -> None:
        state = self._module.state(self._handle)
        sha256 = self._module.describes.weights_sha256
        if not isinstance(snapshot, PortableSnapshot):
            raise StateError("not a snapshot; PortableSnapshot.from_bytes reads one from bytes")
        snapshot.check(
            *(self.direction, self.start, self.codebooks, sha256, len(state), self._width),
            most=self._most_waiting(snapshot.begun),
        )
        state[:] = snapshot.state
        self._waiting = snapshot.waiting.copy()
        self._begun, self.closed = snapshot.begun, snapshot.closed


class PortableEncoder(_Stream):
    """Audio pushed in pieces of any size -> codes, frame by frame, whatever the pieces were."""

    direction = "encoder"

    def __init__(self, module: Module, codebooks: int, start: str) -> None:
        """Use PortableCodec.stream_encoder."""
        super().__init__(module, ENCODER, codebooks, start)
        self.samples_in = 0
        self.frames_out = 0

    def push(self, pcm: ArrayLike) -> Codes:
        """Audio float32 [n] or [audio_channels, n], n >= 0 -> codes uint16 [frames, Q].

        Raises InputError for audio of a wrong shape or that is not finite, StateError after
        ``flush``; the stream is then as it was before the call.
        """
        self._check_open()
        # A copy, since some of it may wait for the next push.
        audio: Audio = np.array(check_audio(pcm, self._width).T)
        waiting = np.concatenate([self._waiting, audio]) if len(self._waiting) else audio
        about = self._module.describes
        first, hop = about.encoder_start_frames * about.hop_length, about.hop_length
        codes: list[Codes] = []
        used = 0
        if not self._begun and len(waiting) >= first:
            codes.append(self._encode(waiting[:first], LEFT))
            self._begun, used = True, first
        while self._begun and len(waiting) - used >= hop:
            codes.append(self._encode(waiting[used : used + hop], 0))
            used += hop
        self._waiting = waiting[used:].copy()
        self.samples_in += len(audio)
        return self._collect(codes)

    def flush(self) -> Codes:
        """The codes [frames, Q] of the remaining samples, padded as offline; closes the stream."""
        self._check_open()
        self.closed = True
        if not len(self._waiting):
            return self._collect([])
        edge = RIGHT if self._begun else LEFT | RIGHT
        return self._collect([self._encode(self._waiting, edge)])

    def snapshot(self) -> PortableSnapshot:
        """A copy of the stream's whole state."""
        return self._get(self.samples_in, self.frames_out)

    def restore(self, snapshot: PortableSnapshot) -> None:
        """Continue from ``snapshot``, bit for bit. Raises StateError if it is another stream's."""
        self._set(snapshot)
        self.samples_in, self.frames_out = snapshot.consumed, snapshot.produced

    @property
    def _width(self) -> int:
        return self._module.describes.audio_channels

    def _most_waiting(self, begun: bool) -> int:
        about = self._module.describes
        return about.hop_length * (1 if begun else about.encoder_start_frames)

    def _encode(self, samples: Audio, edge: int) -> Codes:
        self._module.pcm(len(samples))[:] = samples
        frames = self._module.call("encode", self._handle, len(samples), self.codebooks, edge)
        assert frames >= 0, f"the module refused its own stream's step with {frames}"
        return self._module.codes(frames, self.codebooks).copy()

    def _collect(self, codes: list[Codes]) -> Codes:
        self.frames_out += sum(map(len, codes))
        return np.concatenate([np.zeros((0, self.codebooks), np.uint16), *codes])


class PortableDecoder(_Stream):
    """Codes pushed in any number of frames -> audio; a lost frame can be pushed too."""

    direction = "decoder"

    def __init__(self, module: Module, codebooks: int, start: str) -> None:
        """Use PortableCodec.stream_decoder."""
        super().__init__(module, DECODER, codebooks, start)
        self._drop = module.describes.decoder_lag if self._begun else 0
        self._last_latent = np.zeros(self._width, np.float32)
        self._lost = 0
        self.frames_in = 0
        self.samples_out = 0

    def push(self, codes: ArrayLike | None) -> Audio:
        """Codes [frames, Q], or None for one lost frame -> audio float32 [n] or [channels, n].

        Q may differ from push to push. A lost frame is concealed by the last latent, which fades.
        Raises InputError and StateError.
        """
        self._check_open()
        if codes is None:
            gain = latent_gain(self._lost)
            self._lost += 1
            return self._trimmed(self._decode((self._last_latent * np.float32(gain))[None]))
        about = self._module.describes
        frames = check_codes(codes, about.codebook_size, about.num_quantizers).astype(np.uint16)
        latents = [self._look_up(frame) for frame in frames]
        if latents:
            self._last_latent, self._lost = latents[-1], 0
        return self._trimmed(self._decode(np.array(latents).reshape(-1, self._width)))

    def push_latents(self, latents: ArrayLike) -> Audio:
        """As ``push``, for latents float32 [frames, hidden_size] instead of codes.

        Raises InputError for another shape or values that are not finite, and StateError.
        """
        self._check_open()
        frames = np.asarray(latents, np.float32)
        if frames.ndim != 2 or frames.shape[1] != self._width or not all_usable(frames):
            raise InputError(
                f"latents of shape {frames.shape}; pass finite [frames, {self._width}]"
            )
        self._last_latent = frames[-1].copy() if len(frames) else self._last_latent
        return self._trimmed(self._decode(frames))

    def flush(self, samples: int | None = None) -> Audio:
        """The audio still held, float32 [n] or [channels, n]; closes the stream.

        If ``samples`` are given, the whole stream is cut to them. Raises StateError when closed.
        """
        self._check_open()
        self.closed = True
        audio = np.zeros((0, self._module.describes.audio_channels), np.float32)
        if self._begun:
            audio = self._step(self._waiting, RIGHT)
        elif len(self._waiting):
            audio = self._step(self._waiting, LEFT | RIGHT)
        if samples is not None:
            audio = audio[: self._drop + max(0, samples - self.samples_out)]
        return self._trimmed(audio)

    def snapshot(self) -> PortableSnapshot:
        """A copy of the stream's whole state."""
        held = self._get(self.frames_in, self.samples_out)
        return replace(held, drop=self._drop, lost=self._lost, last_latent=self._last_latent)

    def restore(self, snapshot: PortableSnapshot) -> None:
        """Continue from ``snapshot``, bit for bit. Raises StateError if it is another stream's."""
        self._set(snapshot)
        self.frames_in, self.samples_out = snapshot.consumed, snapshot.produced
        self._drop, self._lost = snapshot.drop, snapshot.lost
        self._last_latent = snapshot.last_latent.copy()

    @property
    def _width(self) -> int:
        return self._module.describes.hidden_size

    def _most_waiting(self, begun: bool) -> int:
        return 1 if begun else self._module.describes.decoder_start_frames

    def _look_up(self, codes: Codes) -> Audio:
        self._module.codes(1, len(codes))[:] = codes
        frames = self._module.call("look_up", 1, len(codes))
        assert frames == 1, f"the module refused checked codes with {frames}"
        latent: Audio = self._module.latents(1)[0].copy()
        return latent

    def _decode(self, latents: Audio) -> Audio:
        self.frames_in += len(latents)
        waiting = np.concatenate([self._waiting, latents]) if len(self._waiting) else latents
        first = self._module.describes.decoder_start_frames
        audio = [np.zeros((0, self._module.describes.audio_channels), np.float32)]
        used = 0
        if not self._begun and len(waiting) >= first:
            audio.append(self._step(waiting[:first], LEFT))
            self._begun, used = True, first
        if self._begun:
            audio += [self._step(waiting[at : at + 1], 0) for at in range(used, len(waiting))]
            used = len(waiting)
        self._waiting = waiting[used:].copy()
        return np.concatenate(audio)

    def _step(self, latents: Audio, edge: int) -> Audio:
        self._module.latents(len(latents))[:] = latents
        samples = self._module.call("decode_latents", self._handle, len(latents), edge)
        assert samples >= 0, f"the module refused its own stream's step with {samples}"
        return self._module.pcm(samples).copy()

    def _trimmed(self, audio: Audio) -> Audio:
        dropped = min(self._drop, len(audio))
        self._drop -= dropped
        audio = audio[dropped:]
        self.samples_out += len(audio)
        return audio[:, 0] if audio.shape[1] == 1 else audio.T.copy()
