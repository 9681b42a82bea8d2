"""Codec: a model made ready to stream, from which streams and engines are opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import ConfigError
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.model.identity import identify
from encodec_rt.streaming.backends.select import select
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.ops import Precision, Tuning
from encodec_rt.streaming.runner import Runner
from encodec_rt.streaming.segments import SegmentDecoder, SegmentEncoder
from encodec_rt.streaming.streams import StreamDecoder, StreamEncoder
from encodec_rt.streaming.weights import CodecWeights, Start, pack

WARM_UP_FRAMES = 20
MAX_CODEBOOK_SIZE = 1 << 16


class Codec:
    """The weights of a model, packed for one backend on one device.

    Streams that are opened from it share the weights and nothing else. Use it from one thread at
    a time.
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
        """Take the weights of ``model``, which is left as it is.

        ``precision`` "fast" rounds factors to 11 bits, which changes some codes. ``tuned_for``
        "latency" is for one or a few streams on a GPU; it takes 112 MB more there. Raises
        BackendUnavailable if the backend cannot run on the device or not so, and ConfigError for
        codebooks too large for 16-bit codes.
        """
        if model.config.codebook_size > MAX_CODEBOOK_SIZE:
            raise ConfigError(
                f"codebook_size={model.config.codebook_size}; streams give codes as 16-bit "
                f"numbers, which name up to {MAX_CODEBOOK_SIZE}"
            )
        self.config: EncodecConfig = model.config
        self.device = torch.device(device)
        self.ops = select(backend, self.device, precision, tuned_for)
        self.segmented = not model.config.is_framewise
        identity = identify(model)
        self.name, self.weights_sha256 = identity.name, identity.weights_sha256
        self.model = model.to(self.device) if self.segmented else model
        self._packed = None if self.segmented else pack(model, self.ops, self.device)

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

        "primed": the codes are those of silence followed by the audio, and come at once;
        "exact": those of the audio alone, but the first of them need ``encoder_start_frames``;
        "zero": from a zero state, at once, equal to nothing offline.

        With ``block_frames`` above 1 that many frames are waited for and stepped at once, which is
        several times faster per frame: for files. ``graph`` is as in ``engine``; a stream's
        ``eager_because`` says why it has none. Raises ConfigError and BackendUnavailable.
        """
        packed, codebooks = self.packed, self.config.codebooks_for(bandwidth_kbps)
        runner = Runner(packed.encoder, 1, self.device, live=block_frames == 1)
        runner.now.load_(0, packed.start_state(start, codebooks)[0])
        return StreamEncoder(
            packed,
            runner,
            codebooks,
            begun=start != "exact",
            block_frames=block_frames,
            graph=graph,
        )

    def stream_decoder(
        self,
        bandwidth_kbps: float = 6.0,
        *,
        start: Start = "primed",
        block_frames: int = 1,
        graph: bool | None = None,
    ) -> StreamDecoder:
        """A new stream of codes to audio; ``start`` is that of the encoder it listens to.

        The other arguments are as in ``stream_encoder``; ``block_frames`` need not be the same.
        """
        packed, codebooks = self.packed, self.config.codebooks_for(bandwidth_kbps)
        runner = Runner(packed.decoder, 1, self.device, live=block_frames == 1)
        runner.now.load_(0, packed.start_state(start, codebooks)[1])
        begun = start != "exact"
        drop = packed.decoder_lag if begun else 0
        return StreamDecoder(
            packed,
            runner,
            codebooks,
            begun=begun,
            drop=drop,
            block_frames=block_frames,
            graph=graph,
        )

    def engine(
        self,
        slots: int,
        bandwidth_kbps: float = 6.0,
        *,
        start: Start = "primed",
        graph: bool | None = None,
    ) -> Engine:
        """An engine of that many slots; ``start`` is what a new slot begins with.

        On a CUDA device a tick is one CUDA graph if it can be captured, which ``describe`` says;
        ``graph`` True raises BackendUnavailable if it cannot, False does without.

        A slot of an engine with start="exact" begins with ``begin_encoder`` and ``begin_decoder``,
        unless ``pad_mode`` is "constant": then "exact" and "zero" are the same.
        """
        return Engine(self.packed, slots, bandwidth_kbps, start=start, graph=graph)

    def segment_encoder(self, bandwidth_kbps: float = 6.0) -> SegmentEncoder:
        """A new stream of audio to segments, for a model that is not causal frame by frame."""
        return SegmentEncoder(self.model, bandwidth_kbps)

    def segment_decoder(self) -> SegmentDecoder:
        """A new stream of segments to audio."""
        return SegmentDecoder(self.model)


def warm_up(codec: Codec, bandwidth_kbps: float, start: Start) -> None:
    """Let everything that is made on first use be made, on streams that are thrown away."""
    silence = np.zeros((codec.config.audio_channels, codec.config.hop_length), np.float32)
    encoder = codec.stream_encoder(bandwidth_kbps, start=start)
    decoder = codec.stream_decoder(bandwidth_kbps, start=start)
    for _ in range(WARM_UP_FRAMES):
        decoder.push(encoder.push(silence))
