"""Codec: a model made ready to stream, from which streams and engines are opened."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from encodec_rt.config import PRESETS, EncodecConfig
from encodec_rt.errors import ConfigError
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.backends import select
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.lane import Lane
from encodec_rt.streaming.plan import (
    is_framewise,
    output_lag,
    plan,
    require_framewise,
    start_frames,
)
from encodec_rt.streaming.segments import SegmentDecoder, SegmentEncoder
from encodec_rt.streaming.session import Start, StreamDecoder, StreamEncoder
from encodec_rt.streaming.steps import network

PRIME_FRAMES = 16
"""Frames of silence that a "primed" stream has behind it."""


class Codec:
    """The weights of a model, packed for one backend on one device.

    Streams that are opened from it share the weights and nothing else. Use it from one thread at
    a time.
    """

    def __init__(
        self, model: EncodecModel, *, device: str | torch.device = "cpu", backend: str = "auto"
    ) -> None:
        """Take the weights of ``model``, which is left as it is.

        Raises BackendUnavailable if the backend cannot run on the device.
        """
        self.config: EncodecConfig = model.config
        self.device = torch.device(device)
        self.ops = select(backend, self.device)
        self.segmented = not is_framewise(model.config)
        self.name = model_name(model)
        self.model = model
        books = torch.stack([stage.codebook.embed for stage in model.quantizer.stages])
        self.codebook_pack = self.ops.pack_codebooks((books.float().to(self.device),))
        self._primed: dict[int, tuple[Tensor, Tensor]] = {}
        if self.segmented:
            self.model = model.to(self.device)
            return
        hop = self.config.hop_length
        encoder, decoder = plan(model.encoder, "encoder"), plan(model.decoder, "decoder")
        self.encoder_net = network(model, encoder, self.ops, self.device)
        self.decoder_net = network(model, decoder, self.ops, self.device)
        self.encoder_start_frames = start_frames(encoder, self.config.pad_mode, hop)
        self.decoder_start_frames = start_frames(decoder, self.config.pad_mode, 1)
        self.decoder_lag = output_lag(decoder)

    @classmethod
    def load(
        cls, source: str | Path, *, device: str | torch.device = "cpu", backend: str = "auto"
    ) -> Codec:
        """A codec from anything that EncodecModel.from_pretrained takes."""
        return cls(EncodecModel.from_pretrained(source), device=device, backend=backend)

    @property
    def prime_frames(self) -> int:
        """Frames of silence before a "primed" stream, enough for both directions to have begun."""
        return max(PRIME_FRAMES, self.encoder_start_frames, self.decoder_start_frames)

    def stream_encoder(
        self, bandwidth_kbps: float = 6.0, *, start: Start = "primed"
    ) -> StreamEncoder:
        """A new stream of audio to codes.

        "primed": the codes are those of silence followed by the audio, and come at once;
        "exact": those of the audio alone, but the first of them need ``encoder_start_frames``;
        "zero": from a zero state, at once, equal to nothing offline. Raises ConfigError.
        """
        require_framewise(self.config)
        codebooks = self.config.codebooks_for(bandwidth_kbps)
        lane = Lane(self.encoder_net, 1, self.device)
        lane.now.load_(0, self.start_state(start, codebooks)[0])
        return StreamEncoder(self, lane, codebooks, begun=start != "exact")

    def stream_decoder(
        self, bandwidth_kbps: float = 6.0, *, start: Start = "primed"
    ) -> StreamDecoder:
        """A new stream of codes to audio; ``start`` is that of the encoder it listens to."""
        require_framewise(self.config)
        codebooks = self.config.codebooks_for(bandwidth_kbps)
        lane = Lane(self.decoder_net, 1, self.device)
        lane.now.load_(0, self.start_state(start, codebooks)[1])
        begun = start != "exact"
        drop = self.decoder_lag if begun else 0
        return StreamDecoder(self, lane, codebooks, begun=begun, drop=drop)

    def engine(self, slots: int, bandwidth_kbps: float = 6.0, *, start: Start = "primed") -> Engine:
        """An engine of that many slots; ``start`` is what a new slot begins with.

        A slot of an engine with start="exact" begins with ``begin_encoder`` and ``begin_decoder``,
        unless ``pad_mode`` is "constant": then "exact" and "zero" are the same.
        """
        return Engine(self, slots, bandwidth_kbps, start=start)

    def segment_encoder(self, bandwidth_kbps: float = 6.0) -> SegmentEncoder:
        """A new stream of audio to segments, for a model that is not causal frame by frame."""
        return SegmentEncoder(self.model, bandwidth_kbps)

    def segment_decoder(self) -> SegmentDecoder:
        """A new stream of segments to audio."""
        return SegmentDecoder(self.model)

    @torch.inference_mode()
    def start_state(self, start: str, codebooks: int) -> tuple[Tensor, Tensor]:
        """The rows [N] of encoder and decoder state of a new stream. Raises ConfigError."""
        if start not in get_args(Start):
            raise ConfigError(f"start={start!r}; accepted: {', '.join(get_args(Start))}")
        lanes = Lane(self.encoder_net, 1, self.device), Lane(self.decoder_net, 1, self.device)
        if start != "primed":
            return lanes[0].now.row(0), lanes[1].now.row(0)
        if codebooks not in self._primed:
            encoder = StreamEncoder(self, lanes[0], codebooks, begun=False)
            decoder = StreamDecoder(self, lanes[1], codebooks, begun=False, drop=0)
            samples = self.prime_frames * self.config.hop_length
            decoder.push(encoder.push(torch.zeros(self.config.audio_channels, samples)))
            self._primed[codebooks] = encoder.snapshot().row, decoder.snapshot().row
        return self._primed[codebooks]


def model_name(model: EncodecModel) -> str:
    """The name that an ``.ecdc`` file gives the model.

    A model of the paper's architecture has the paper's name, any other one the hash of its weights.
    """
    for name, preset in PRESETS.items():
        if model.config == preset:
            return name
    return f"encodec_rt-{fingerprint(model)[:8]}"


def fingerprint(model: EncodecModel) -> str:
    """The sha256, in hex, of all parameters and codebooks in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.endswith((".inited", ".cluster_size", ".embed_avg")):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
