"""The offline model as ONNX graphs: a whole clip of any length to codes, and codes to audio."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from encodec_rt.export.graph import Graph
from encodec_rt.export.onnx_step import look_up, search
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.plan import (
    ConvSpec,
    ConvTransposeSpec,
    LayerSpec,
    LstmSpec,
    Plan,
    plan,
)
from encodec_rt.streaming.weights import layer_weights

_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
_TO_END = (1 << 63) - 1
_GATES = (0, 3, 1, 2)
"""torch's gates i, f, g, o in ONNX's order: i, o, f, g (there called i, o, f, c)."""


def clip_encoder(model: EncodecModel, codebooks: int, meta: dict[str, str], *, half: bool) -> Any:
    """pcm [channels, n], n >= 1 -> codes int64 [frames, codebooks]."""
    clip = _Clip(model, half=half)
    x = clip.graph.node("Unsqueeze", "pcm", clip.graph.integers(0))
    latents = clip.run(x, plan(model.encoder, "encoder"))
    rows = clip.graph.node("Transpose", clip.graph.node("Squeeze", latents, clip.zero), perm=[1, 0])
    clip.graph.rename(search(clip.graph, model, rows, codebooks), "codes")
    return clip.graph.model(
        {"pcm": (np.float32, (model.config.audio_channels, "samples"))},
        {"codes": (np.int64, ("frames", codebooks))},
        meta,
    )


def clip_decoder(model: EncodecModel, meta: dict[str, str], *, half: bool) -> Any:
    """Codes int64 [frames, books], -1 for one that is absent -> pcm [channels, frames * hop]."""
    clip = _Clip(model, half=half)
    latents = clip.graph.node("Transpose", look_up(clip.graph, model, "codes"), perm=[1, 0])
    x = clip.graph.node("Unsqueeze", latents, clip.zero)
    audio = clip.run(x, plan(model.decoder, "decoder"))
    clip.graph.rename(clip.graph.node("Squeeze", audio, clip.zero), "pcm")
    return clip.graph.model(
        {"codes": (np.int64, ("frames", "books"))},
        {"pcm": (np.float32, (model.config.audio_channels, "samples"))},
        meta,
    )


class _Clip:
    """The layers of one direction over a clip; ``x`` is always [1, C, T]."""

    def __init__(self, model: EncodecModel, *, half: bool) -> None:
        self.graph = Graph(half=half)
        self.zero = self.graph.integers(0)
        self._model = model

    def run(self, x: str, specs: Plan) -> str:
        for spec in specs:
            weights = [part.float() for part in layer_weights(self._model, spec)]
            x = self._layer(spec, x, weights)
        return x

    def _layer(self, spec: LayerSpec, x: str, weights: list[Tensor]) -> str:
        graph = self.graph
        if isinstance(spec, LstmSpec):
            return self._lstm(spec, x, weights)
        if isinstance(spec, ConvTransposeSpec):
            spread = self._weighted("ConvTranspose", graph.node("Elu", x), weights, spec.stride)
            kept = spec.kernel - spec.stride
            end = spec.trim_left - kept
            return graph.slice(spread, spec.trim_left, end if end else _TO_END, axis=2)
        if isinstance(spec, ConvSpec):
            x = graph.node("Elu", x) if spec.elu else x
            padded = self._pad(x, spec.context, spec.stride)
            return self._weighted("Conv", padded, weights, spec.stride, spec.dilation)
        padded = self._pad(graph.node("Elu", x), spec.context, 1)
        hidden = self._weighted("Conv", padded, weights[:2], 1, spec.dilation)
        y = self._weighted("Conv", graph.node("Elu", hidden), weights[2:4])
        straight = self._weighted("Conv", x, weights[4:]) if spec.conv_shortcut else x
        return str(graph.node("Add", straight, y))

    def _weighted(
        self, operator: str, x: str, weights: list[Tensor], stride: int = 1, dilation: int = 1
    ) -> str:
        weight = self.graph.weight(weights[0].contiguous().numpy())
        bias = self.graph.constant(weights[1].numpy())
        return str(
            self.graph.node(operator, x, weight, bias, strides=[stride], dilations=[dilation])
        )

    def _pad(self, x: str, left: int, stride: int) -> str:
        """As model/conv.py pads: ``left``, and on the right what a stride lacks.

        A reflection wider than the clip reflects the clip extended with zeros, which are then
        removed.
        """
        graph, mode = self.graph, self._model.config.pad_mode
        length = graph.node("Gather", graph.node("Shape", x), graph.integers(2), axis=0)
        right = graph.node("Mod", graph.node("Neg", length), graph.integers(stride))
        if mode != "reflect":
            return self._padded(x, graph.integers(left), right, mode)
        widest = graph.node("Max", graph.integers(left), right)
        lacking = graph.node("Sub", graph.node("Add", widest, graph.integers(1)), length)
        missing = graph.node("Max", lacking, self.zero)
        longer = self._padded(x, self.zero, missing, "constant")
        padded = self._padded(longer, graph.integers(left), right, mode)
        total = graph.node("Gather", graph.node("Shape", padded), graph.integers(2), axis=0)
        end = graph.node("Sub", total, missing)
        return str(graph.node("Slice", padded, self.zero, end, graph.integers(2)))

    def _padded(self, x: str, left: str, right: str, mode: str) -> str:
        none = self.graph.integers(0, 0)
        pads = self.graph.concat([none, left, none, right], 0)
        return str(self.graph.node("Pad", x, pads, mode=_MODES[mode]))

    def _lstm(self, spec: LstmSpec, x: str, weights: list[Tensor]) -> str:
        graph = self.graph
        steps = above = graph.node("Transpose", x, perm=[2, 0, 1])
        for layer in range(spec.layers):
            from_input, from_hidden, bias, bias_hidden = (
                np.concatenate([np.split(part.numpy(), 4)[gate] for gate in _GATES])
                for part in weights[4 * layer : 4 * layer + 4]
            )
            out = graph.node(
                "LSTM", above, graph.weight(from_input[None]), graph.weight(from_hidden[None]),
                graph.constant(np.concatenate([bias, bias_hidden])[None]),
                hidden_size=spec.channels,
            )  # fmt: skip
            above = graph.node("Squeeze", out, graph.integers(1))
        return str(graph.node("Transpose", graph.node("Add", steps, above), perm=[1, 2, 0]))
