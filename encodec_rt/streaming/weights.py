"""A causal model's weights, packed for one backend on one device: what all streams share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import ConfigError
from encodec_rt.model.conv import EncodecConv1d, EncodecConvTranspose1d
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.model.identity import weights_sha256
from encodec_rt.model.lstm import EncodecLSTM
from encodec_rt.model.numerics import without_autocast
from encodec_rt.model.seanet import EncodecResnetBlock
from encodec_rt.streaming.ops import Ops, Packed
from encodec_rt.streaming.plan import (
    ConvSpec,
    ConvTransposeSpec,
    LayerSpec,
    Plan,
    ResBlockSpec,
    block_convs,
    output_lag,
    plan,
    start_frames,
)
from encodec_rt.streaming.runner import Runner
from encodec_rt.streaming.steps import PackedLayers

Start = Literal["primed", "exact", "zero"]

PRIME_FRAMES = 16
"""Frames of silence before a "primed" stream."""


@dataclass(frozen=True, slots=True)
class CodecWeights:
    """Both networks and the codebooks, and how many frames each direction needs to start.

    ``decoder_lag`` counts the samples by which the decoder's output is behind the frames pushed,
    and ``sha256`` identifies the weights.
    """

    config: EncodecConfig
    device: torch.device
    ops: Ops
    codebooks: Packed
    encoder: PackedLayers
    decoder: PackedLayers
    encoder_start_frames: int
    decoder_start_frames: int
    decoder_lag: int
    sha256: str
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
            runners = Runner(self.encoder, 1, self.device), Runner(self.decoder, 1, self.device)
            return runners[0].now.row(0), runners[1].now.row(0)
        if codebooks not in self._primed:
            self._primed[codebooks] = self._after_silence(codebooks)
        return self._primed[codebooks]

    @torch.inference_mode()
    @without_autocast
    def _after_silence(self, codebooks: int) -> tuple[Tensor, Tensor]:
        hop, frames = self.config.hop_length, self.prime_frames
        shape = (1, frames * hop, self.config.audio_channels)
        encoder = Runner(self.encoder, 1, self.device)
        silence = torch.zeros(shape, dtype=torch.float32, device=self.device)
        latents = encoder.run_from_start(silence, self.encoder_start_frames * hop, hop)
        codes = self.ops.rvq_encode(latents, self.codebooks, codebooks=codebooks)
        decoder = Runner(self.decoder, 1, self.device)
        decoder.run_from_start(
            self.ops.rvq_decode(codes, self.codebooks), self.decoder_start_frames, 1
        )
        return encoder.now.row(0), decoder.now.row(0)


def pack(
    model: EncodecModel,
    ops: Ops,
    device: torch.device,
    sha256: str | None = None,
) -> CodecWeights:
    """Fold, move and pack the weights of a causal model, once."""
    config = model.config
    encoder, decoder = plan(model.encoder, "encoder"), plan(model.decoder, "decoder")
    books = torch.stack([stage.codebook.embed for stage in model.quantizer.stages])
    return CodecWeights(
        config=config,
        device=device,
        ops=ops,
        codebooks=ops.pack_codebooks((books.float().to(device),)),
        encoder=pack_layers(model, encoder, ops, device),
        decoder=pack_layers(model, decoder, ops, device),
        encoder_start_frames=start_frames(encoder, config.pad_mode, config.hop_length),
        decoder_start_frames=start_frames(decoder, config.pad_mode, 1),
        decoder_lag=output_lag(decoder),
        sha256=sha256 or weights_sha256(model),
    )


def pack_layers(model: EncodecModel, specs: Plan, ops: Ops, device: torch.device) -> PackedLayers:
    """Fold, move and pack the weights of the layers in ``specs``, once."""
    packed = {}
    for spec in specs:
        weights = tuple(weight.float().to(device) for weight in layer_weights(model, spec))
        packed[spec.name] = _pack(ops, spec, weights)
    return PackedLayers(specs, packed, ops, model.config.pad_mode)


def _pack(ops: Ops, spec: LayerSpec, weights: Packed) -> Packed:
    if isinstance(spec, ConvSpec):
        return ops.pack_conv1d(*weights, stride=spec.stride, dilation=spec.dilation)
    if isinstance(spec, ConvTransposeSpec):
        return ops.pack_conv_transpose1d(*weights, stride=spec.stride, dilation=1)
    return ops.pack_resblock(weights) if isinstance(spec, ResBlockSpec) else ops.pack_lstm(weights)


def layer_weights(model: EncodecModel, spec: LayerSpec) -> tuple[Tensor, ...]:
    """The plain weights of a layer, weight norm folded, in the order that ``Ops`` packs them."""
    layer = model.get_submodule(spec.name)
    if isinstance(layer, EncodecLSTM):
        depths = range(layer.lstm.num_layers)
        names = [f"{kind}_l{depth}" for depth in depths for kind in _LSTM_PARTS]
        return tuple(getattr(layer.lstm, name).detach() for name in names)
    if isinstance(layer, EncodecResnetBlock):
        convs: Sequence[nn.Conv1d | nn.ConvTranspose1d] = block_convs(layer)
    else:
        assert isinstance(layer, (EncodecConv1d, EncodecConvTranspose1d))
        convs = [layer.conv]
    return tuple(part.detach() for conv in convs for part in (conv.weight, _bias(conv)))


def _bias(conv: nn.Conv1d | nn.ConvTranspose1d) -> Tensor:
    assert conv.bias is not None, "every convolution of the graph has a bias"
    return conv.bias


_LSTM_PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def check_weights(weights: object, opener: str) -> None:
    """Raise ConfigError, naming the method that opens it, unless these are a codec's weights."""
    if not isinstance(weights, CodecWeights):
        raise ConfigError(f"weights of type {type(weights).__name__}; call {opener}")
