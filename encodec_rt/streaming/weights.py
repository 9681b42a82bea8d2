"""A causal model's weights, packed for one backend on one device: what all streams share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import ConfigError
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.ops import Ops, Packed
from encodec_rt.streaming.plan import output_lag, plan, start_frames
from encodec_rt.streaming.runner import Lane, Repeated
from encodec_rt.streaming.steps import Network, network

Start = Literal["primed", "exact", "zero"]

PRIME_FRAMES = 16
"""Frames of silence that a "primed" stream has behind it."""


@dataclass(frozen=True, slots=True)
class PackedModel:
    """Both networks and the codebooks, and how many frames each direction needs to start.

    ``decoder_lag`` counts the samples that the decoder's output is behind the frames pushed.
    """

    config: EncodecConfig
    device: torch.device
    ops: Ops
    codebooks: Packed
    encoder: Network
    decoder: Network
    encoder_start_frames: int
    decoder_start_frames: int
    decoder_lag: int
    _primed: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def prime_frames(self) -> int:
        """Frames of silence before a "primed" stream, enough for both directions to have begun."""
        return max(PRIME_FRAMES, self.encoder_start_frames, self.decoder_start_frames)

    def start_state(self, start: str, codebooks: int) -> tuple[Tensor, Tensor]:
        """The rows [N] of encoder and decoder state of a new stream. Raises ConfigError."""
        if start not in get_args(Start):
            raise ConfigError(f"start={start!r}; accepted: {', '.join(get_args(Start))}")
        if start != "primed":
            lanes = Lane(self.encoder, 1, self.device), Lane(self.decoder, 1, self.device)
            return lanes[0].now.row(0), lanes[1].now.row(0)
        if codebooks not in self._primed:
            self._primed[codebooks] = self._after_silence(codebooks)
        return self._primed[codebooks]

    def search(self, codebooks: int) -> Repeated:
        """Latents [S, T, D] -> codes [S, T, codebooks] int64, which the next call may overwrite."""
        return Repeated(
            self.ops, lambda ops, x: ops.rvq_encode(x, self.codebooks, codebooks=codebooks)
        )

    def look_up(self) -> Repeated:
        """Codes [S, T, Q] int64 -> latents [S, T, D], which the next call may overwrite."""
        return Repeated(self.ops, lambda ops, codes: ops.rvq_decode(codes, self.codebooks))

    @torch.inference_mode()
    def _after_silence(self, codebooks: int) -> tuple[Tensor, Tensor]:
        hop, frames = self.config.hop_length, self.prime_frames
        shape = (1, frames * hop, self.config.audio_channels)
        encoder = Lane(self.encoder, 1, self.device)
        silence = torch.zeros(shape, device=self.device)
        latents = encoder.run_from_start(silence, self.encoder_start_frames * hop, hop)
        codes = self.ops.rvq_encode(latents, self.codebooks, codebooks=codebooks)
        decoder = Lane(self.decoder, 1, self.device)
        decoder.run_from_start(
            self.ops.rvq_decode(codes, self.codebooks), self.decoder_start_frames, 1
        )
        return encoder.now.row(0), decoder.now.row(0)


def pack(model: EncodecModel, ops: Ops, device: torch.device) -> PackedModel:
    """Fold, move and pack the weights of a causal model, once."""
    config = model.config
    encoder, decoder = plan(model.encoder, "encoder"), plan(model.decoder, "decoder")
    books = torch.stack([stage.codebook.embed for stage in model.quantizer.stages])
    return PackedModel(
        config=config,
        device=device,
        ops=ops,
        codebooks=ops.pack_codebooks((books.float().to(device),)),
        encoder=network(model, encoder, ops, device),
        decoder=network(model, decoder, ops, device),
        encoder_start_frames=start_frames(encoder, config.pad_mode, config.hop_length),
        decoder_start_frames=start_frames(decoder, config.pad_mode, 1),
        decoder_lag=output_lag(decoder),
    )
