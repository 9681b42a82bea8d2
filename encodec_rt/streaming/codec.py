"""Codec: a model ready to stream, from which streams and engines are opened."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import ConfigError, InputError
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.model.identity import identify
from encodec_rt.streaming.backends.select import device_of, select
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.ops import Precision, Tuning
from encodec_rt.streaming.segments import SegmentDecoder, SegmentEncoder
from encodec_rt.streaming.streams import StreamDecoder, StreamEncoder
from encodec_rt.streaming.weights import CodecWeights, Start, pack
from encodec_rt.types import Audio, Codes

WARM_UP_FRAMES = 20
BLOCK = 256
"""Frames per step where a whole clip is available: 3.4 s for the 24 kHz model."""
MAX_CODEBOOK_SIZE = 1 << 16


class Codec:
    """A model's weights, packed for one backend on one device.

    Streams opened from it share the weights and nothing else. Use it from one thread at a time.
    """

    def __init__(
        self,
        model: EncodecModel,
        *,
        device: str | torch.device = "cpu",
        backend: str = "auto",
        precision: Precision = "exact",
        tuned_for: Tuning = "throughput",
    ) -> None:
        """Take the weights of ``model``, which is not changed.

        ``precision`` "fast" rounds the operands of products to 11 bits, which changes some codes.
        ``tuned_for`` "latency" is for one or a few streams on a GPU; it takes 112 MB more there.
        Raises BackendUnavailable if the backend cannot run on the device or with these choices,
        and ConfigError for codebooks too large for 16-bit codes.
        """
        if not isinstance(model, EncodecModel):
            raise ConfigError(
                f"a {type(model).__name__} is not a model; pass an EncodecModel, or use Codec.load"
            )
        if model.config.codebook_size > MAX_CODEBOOK_SIZE:
            raise ConfigError(
                f"codebook_size={model.config.codebook_size}; streams return 16-bit "
                f"codes, so a codebook has at most {MAX_CODEBOOK_SIZE} entries"
            )
        self.config: EncodecConfig = model.config
        self.device = device_of(device)
        self.ops = select(backend, self.device, precision, tuned_for)
        self.segmented = not model.config.is_framewise
        self.model = model
        self._choices = {
            "device": str(self.device),
            "backend": backend,
            "precision": precision,
            "tuned_for": tuned_for,
        }
        # Now rather than on first use, which may be on an event loop.
        self._identity = identify(model)
        if self.segmented and (model.device, model.dtype) != (self.device, torch.float32):
            self.model = copy.deepcopy(model).to(self.device, torch.float32)
        self._packed = (
            None if self.segmented else pack(model, self.ops, self.device, self.weights_sha256)
        )

    @property
    def name(self) -> str:
        """The name that an ``.ecdc`` file gives the model."""
        return self._identity.name

    @property
    def codes_sha256(self) -> str:
        """The SHA-256 of encoder and codebooks, in hex: models that share it share their codes."""
        return self._identity.codes_sha256

    @property
    def weights_sha256(self) -> str:
        """The SHA-256 of all weights, in hex: a stream's state fits models that share it."""
        return self._identity.weights_sha256

    @property
    def sampling_rate(self) -> int:
        """Samples per second and channel."""
        return self.config.sampling_rate

    def start_frames(self, start: Start = "primed") -> int:
        """Frames of audio that a stream's first codes need: its algorithmic delay in frames."""
        return self.packed.encoder_start_frames if start == "exact" else 1

    @property
    def packed(self) -> CodecWeights:
        """The packed weights. Raises ConfigError for a model that cannot be stepped."""
        if self._packed is None:
            raise ConfigError(
                "this model is not causal frame by frame (centred convolutions, a norm over time, "
                "loudness normalisation or chunks); use segment_encoder and segment_decoder"
            )
        return self._packed

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "cpu",
        backend: str = "auto",
        precision: Precision = "exact",
        tuned_for: Tuning = "throughput",
    ) -> Codec:
        """A codec from anything that EncodecModel.from_pretrained takes."""
        model = EncodecModel.from_pretrained(source)
        return cls(model, device=device, backend=backend, precision=precision, tuned_for=tuned_for)

    def stream_encoder(
        self,
        bandwidth_kbps: float = 6.0,
        *,
        start: Start = "primed",
        block_frames: int = 1,
        graph: bool | None = None,
    ) -> StreamEncoder:
        """A new stream of audio to codes.

        With ``start`` "primed" the codes are those of silence followed by the audio, without delay;
        with "exact" those of the audio alone, the first after ``start_frames("exact")`` frames;
        with "zero" the stream starts from a zero state, without delay, and equals nothing offline.

        For files, ``block_frames`` above 1 waits for that many frames and steps them together,
        which is several times faster per frame. ``graph`` is as in ``engine``; a stream's
        ``eager_because`` says why it has no graph. Raises ConfigError and BackendUnavailable.
        """
        codebooks = self.config.codebooks_for(bandwidth_kbps)
        return StreamEncoder(
            self.packed, codebooks, start=start, block_frames=block_frames, graph=graph
        )

    def stream_decoder(
        self,
        bandwidth_kbps: float = 6.0,
        *,
        start: Start = "primed",
        block_frames: int = 1,
        graph: bool | None = None,
    ) -> StreamDecoder:
        """A new stream of codes to audio; ``start`` must be that of the encoder.

        The other arguments are as in ``stream_encoder``; ``block_frames`` need not be the same.
        """
        codebooks = self.config.codebooks_for(bandwidth_kbps)
        return StreamDecoder(
            self.packed, codebooks, start=start, block_frames=block_frames, graph=graph
        )

    def encode(self, audio: ArrayLike | Tensor, bandwidth_kbps: float = 6.0) -> Codes:
        """A whole clip [n] or [channels, n] -> the offline model's codes uint16 [frames, Q].

        Apart from the codes themselves, memory does not grow with the clip. Raises InputError, and
        ConfigError for a model that streams in segments.
        """
        with self.stream_encoder(bandwidth_kbps, start="exact", block_frames=BLOCK) as stream:
            return np.concatenate([stream.push(audio), stream.flush()])

    def decode(self, codes: ArrayLike | Tensor, samples: int | None = None) -> Audio:
        """Codes [frames, Q] of a whole clip -> the offline model's audio [n] or [channels, n].

        n is ``samples``, or all that the frames hold. Q is any number of the model's codebooks.
        Raises InputError and ConfigError as ``encode`` does.
        """
        if codes is None:  # To a stream, a lost frame.
            raise InputError("no codes; pass integers [frames, codebooks]")
        bandwidth_kbps = self.config.target_bandwidths[-1]
        with self.stream_decoder(bandwidth_kbps, start="exact", block_frames=BLOCK) as stream:
            audio = np.concatenate([stream.push(codes), stream.flush(samples)], axis=-1)
        return audio[..., :samples]

    def engine(
        self,
        slots: int,
        bandwidth_kbps: float = 6.0,
        *,
        start: Start = "primed",
        frames: int = 1,
        graph: bool | None = None,
        gather: bool = False,
    ) -> Engine:
        """An engine with ``slots`` slots; a new slot begins with ``start``.

        Each tick steps ``frames`` frames of every slot, like ``block_frames`` of a stream.

        On a CUDA device a tick is one CUDA graph if it can be captured; ``describe`` says whether.
        With ``graph`` True a failed capture raises BackendUnavailable; False uses no graph.

        With ``gather``, for a CPU, a tick costs only as much as the active slots, which form a
        batch of their own. Rounding then depends on how many slots are active: audio by 2e-7, and
        codes where two vectors are practically equidistant.

        A slot of an engine with start="exact" begins with ``begin_encoder`` and ``begin_decoder``,
        unless ``pad_mode`` is "constant": then "exact" and "zero" are the same.
        """
        return Engine(
            self.packed,
            slots,
            bandwidth_kbps,
            start=start,
            frames=frames,
            graph=graph,
            gather=gather,
        )

    def segment_encoder(self, bandwidth_kbps: float = 6.0) -> SegmentEncoder:
        """A new stream of audio to segments, for a model that is not causal frame by frame."""
        return SegmentEncoder(self.model, bandwidth_kbps)

    def segment_decoder(self) -> SegmentDecoder:
        """A new stream of segments to audio."""
        return SegmentDecoder(self.model)

    def __repr__(self) -> str:
        kbps = ", ".join(f"{kbps:g}" for kbps in self.config.target_bandwidths)
        return (
            f"<Codec {self.name}, {self.config.sampling_rate} Hz, {kbps} kbps, "
            f"backend {self.ops.name!r} on {self.device}>"
        )

    def __reduce__(self) -> tuple[Callable[..., Codec], tuple[object, ...]]:
        """Pickle a codec as its model and its arguments; the weights are pickled once."""
        return _from_parts, (self.model, self._choices)


def _from_parts(model: EncodecModel, choices: dict[str, Any]) -> Codec:
    return Codec(model, **choices)


def warm_up(codec: Codec, bandwidth_kbps: float, start: Start) -> None:
    """Run streams that are thrown away, so that everything made on first use exists."""
    silence = np.zeros((codec.config.audio_channels, codec.config.hop_length), np.float32)
    encoder = codec.stream_encoder(bandwidth_kbps, start=start)
    decoder = codec.stream_decoder(bandwidth_kbps, start=start)
    for _ in range(WARM_UP_FRAMES):
        decoder.push(encoder.push(silence))
