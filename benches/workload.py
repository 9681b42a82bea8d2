"""What the GPU benches and tests run: the 24 kHz architecture, its layers, noise and speech.

Nothing beyond a bare checkout is needed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from encodec_rt.config import EncodecConfig
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.backends.torch import TORCH
from encodec_rt.streaming.ops import Ops
from encodec_rt.streaming.plan import (
    ConvSpec,
    ConvTransposeSpec,
    LayerSpec,
    LstmSpec,
    Plan,
    plan,
)
from encodec_rt.streaming.state import StreamState
from encodec_rt.streaming.steps import run
from encodec_rt.streaming.weights import layer_weights, pack_layers

SPEECH = Path(__file__).parent / "speech.npy"
"""Four seconds of encodec_rt/assets/speech_en.flac, for machines that cannot read FLAC."""


def random_24khz(seed: int = 0) -> EncodecModel:
    """The architecture of the 24 kHz model with random weights, zero padding and fitted codebooks.

    The vectors of each codebook are drawn from the residuals of noise at that stage, so that every
    stage has a meaningful choice.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        model = EncodecModel(EncodecConfig(pad_mode="constant")).eval()
        frames = 2 * model.config.codebook_size
        latents = model.encoder(noise(1, frames * model.config.hop_length)[:, None])
        residual = latents[0].t()
        for layer in model.quantizer.stages:
            picks = torch.randperm(len(residual))[: model.config.codebook_size]
            layer.codebook.embed.copy_(0.7 * residual[picks])
            distance = torch.cdist(residual, layer.codebook.embed)
            residual = residual - layer.codebook.embed[distance.argmin(1)]
    return model


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Noise [..., n] whose level rises and falls, as that of speech does."""
    generator = torch.Generator().manual_seed(seed)
    swell = torch.rand(*shape[:-1], 1 + shape[-1] // 2000, generator=generator)
    envelope = swell.repeat_interleave(2000, dim=-1)[..., : shape[-1]]
    return 0.3 * envelope * torch.randn(*shape, generator=generator)


def speech(slots: int, seed: int = 4) -> Tensor:
    """Speech [S, 96000] at 24 kHz: the same recording, beginning at a different place per slot."""
    recorded = torch.from_numpy(np.load(SPEECH)).float() / (1 << 15)
    starts = torch.randint(len(recorded), (slots,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([recorded.roll(-int(start)) for start in starts])


def frames(audio: Tensor, hop: int = 320) -> list[Tensor]:
    """Audio [S, n] -> contiguous frames [S, hop], by default those of the 24 kHz model."""
    return [audio[:, at : at + hop].contiguous() for at in range(0, audio.shape[1], hop)]


def layers(model: EncodecModel) -> Plan:
    """Every layer of encoder and decoder, in the order in which a frame passes them."""
    return *plan(model.encoder, "encoder"), *plan(model.decoder, "decoder")


def steps_per_frame(model: EncodecModel, spec: LayerSpec) -> int:
    """The number of time steps that go into a layer per frame."""
    part = spec.name.split(".")[0]
    steps = model.config.hop_length if part == "encoder" else 1
    for before in layers(model):
        if before == spec:
            break
        if isinstance(before, ConvSpec) and before.name.startswith(part):
            steps //= before.stride
        if isinstance(before, ConvTransposeSpec) and before.name.startswith(part):
            steps *= before.stride
    return steps


def inputs_of(spec: LayerSpec) -> int:
    """The number of channels that go into a layer."""
    return spec.in_channels if isinstance(spec, ConvSpec | ConvTransposeSpec) else spec.channels


def op_of(spec: LayerSpec) -> str:
    """The name of the op that a layer calls."""
    if isinstance(spec, ConvSpec):
        return "conv1d"
    if isinstance(spec, ConvTransposeSpec):
        return "conv_transpose1d"
    return "lstm" if isinstance(spec, LstmSpec) else "resblock"


class OneLayer:
    """A network of one layer for S slots with a random state, and its float64 reference."""

    def __init__(
        self, model: EncodecModel, spec: LayerSpec, ops: Ops, slots: int, device: torch.device
    ) -> None:
        """Draw state and input; those of slot n do not depend on the number of slots."""
        self.spec = spec
        self.net = pack_layers(model, (spec,), ops, device)
        self.now = StreamState.allocate((spec,), slots, device)
        self.proposed = StreamState.allocate((spec,), slots, device)
        shape = (slots, steps_per_frame(model, spec), inputs_of(spec))
        generator = torch.Generator().manual_seed(2)
        self.x = torch.randn(shape, generator=generator).to(device)
        width = self.now.arena.shape[1]
        generator = torch.Generator().manual_seed(3)
        self.now.arena.copy_(0.5 * torch.randn(slots, width, generator=generator))
        self._weights = tuple(part.double().to(device) for part in layer_weights(model, spec))

    def step(self) -> Tensor:
        """The layer's output; writes the proposed state."""
        return run(self.net, self.now, self.proposed, self.x)

    def reference(self) -> Tensor:
        """The same in float64, in plain torch."""
        packed = {self.spec.name: self._weights}
        net = replace(self.net, packed=packed, ops=TORCH)
        now, proposed = (
            StreamState(state.arena, {name: view.double() for name, view in state.views.items()})
            for state in (self.now, self.proposed)
        )
        return run(net, now, proposed, self.x.double())
