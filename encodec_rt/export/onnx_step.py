"""The streaming step as an ONNX graph, with the state as one flat tensor in and out.

Every product is a 2-D Gemm with a constant right side, which runtimes pack once; windows are
concatenated slices. The state is a row of ``streaming.state``'s arena.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from encodec_rt.export.graph import Graph
from encodec_rt.export.products import products
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.plan import (
    ConvSpec,
    ConvTransposeSpec,
    LayerSpec,
    LstmSpec,
    Plan,
    ResBlockSpec,
    plan,
)
from encodec_rt.streaming.weights import layer_weights

ALIGN_FLOATS = 32
"""As ``streaming.state`` has it."""


def encoder_step(model: EncodecModel, codebooks: int, meta: dict[str, str], *, half: bool) -> Any:
    """pcm [channels, hop], state [N] -> codes int64 [1, codebooks], state_next [N]."""
    config = model.config
    step = _Step(model, plan(model.encoder, "encoder"), half=half)
    x = step.graph.node("Transpose", "pcm", perm=[1, 0])
    latents = step.run(x, config.hop_length)
    step.graph.rename(search(step.graph, model, latents, codebooks), "codes")
    return step.model(
        {"pcm": (np.float32, (config.audio_channels, config.hop_length))},
        {"codes": (np.int64, (1, codebooks))},
        meta,
    )


def decoder_step(model: EncodecModel, meta: dict[str, str], *, half: bool) -> Any:
    """codes int64 [1, books], state [N] -> pcm [channels, hop], state_next [N].

    Any number of codebooks is accepted; a code of -1 leaves its codebook out.
    """
    config = model.config
    step = _Step(model, plan(model.decoder, "decoder"), half=half)
    audio = step.run(look_up(step.graph, model, "codes"), 1)
    step.graph.rename(step.graph.node("Transpose", audio, perm=[1, 0]), "pcm")
    return step.model(
        {"codes": (np.int64, (1, "books"))},
        {"pcm": (np.float32, (config.audio_channels, config.hop_length))},
        meta,
    )


def search(graph: Graph, model: EncodecModel, residual: str, codebooks: int) -> str:
    """Latents [T, D] -> codes [T, codebooks]; the lowest index wins a tie."""
    codes = []
    for stage in model.quantizer.stages[:codebooks]:
        book = graph.rounded(stage.codebook.embed)
        norms = book.double().pow(2).sum(-1).float().numpy()
        vectors = graph.weight(book.numpy())
        double = graph.weight((-2 * book.t()).contiguous().numpy())
        distances = graph.node("Gemm", residual, double, graph.constant(norms))
        index = graph.node("ArgMin", distances, axis=1, keepdims=0, select_last_index=0)
        codes.append(graph.node("Unsqueeze", index, graph.integers(1)))
        residual = graph.node("Sub", residual, graph.node("Gather", vectors, index, axis=0))
    return graph.concat(codes, 1)


def look_up(graph: Graph, model: EncodecModel, codes: str) -> str:
    """Codes [T, books], -1 for one that is absent -> latents [T, D]."""
    size = model.config.codebook_size
    books = [graph.rounded(stage.codebook.embed).numpy() for stage in model.quantizer.stages]
    # The row of zeros before the vectors is for absent codebooks.
    zeros = np.zeros((1, books[0].shape[1]), np.float32)
    table = graph.weight(np.concatenate([zeros, *books]))
    count = graph.node("Gather", graph.node("Shape", codes), graph.scalar(1), axis=0)
    firsts = graph.node("Range", graph.scalar(0), count, graph.scalar(1))
    firsts = graph.node("Mul", firsts, graph.scalar(size))
    rows = graph.node("Add", graph.node("Add", codes, firsts), graph.scalar(1))
    absent = graph.node("Less", codes, graph.scalar(0))
    rows = graph.node("Where", absent, graph.scalar(0), rows)
    vectors = graph.node("Gather", table, rows, axis=0)
    return str(graph.node("ReduceSum", vectors, graph.integers(1), keepdims=0))


class _Step:
    """The layers of one direction over one frame; ``x`` is always [T, C]."""

    def __init__(self, model: EncodecModel, specs: Plan, *, half: bool) -> None:
        self.graph = Graph(half=half)
        self._model = model
        self._plan = specs
        self._next: list[str] = []
        self._at = 0

    def run(self, x: str, steps: int) -> str:
        for spec in self._plan:
            weights = products(spec, layer_weights(self._model, spec))
            pairs = [
                (self.graph.weight(matrix.float().contiguous().numpy()), bias.float().numpy())
                for matrix, bias in weights
            ]
            x, steps = self._layer(spec, x, steps, pairs)
        self.graph.rename(self.graph.concat(self._next, 0), "state_next")
        return x

    def model(self, inputs: dict[str, Any], outputs: dict[str, Any], meta: dict[str, str]) -> Any:
        state = (np.float32, (self._at,))
        return self.graph.model({**inputs, "state": state}, {**outputs, "state_next": state}, meta)

    def _layer(self, spec: LayerSpec, x: str, steps: int, pairs: list[Any]) -> tuple[str, int]:
        graph = self.graph
        if isinstance(spec, LstmSpec):
            assert steps == 1, "a step is one frame"
            return self._lstm(spec, x, pairs), 1
        if isinstance(spec, ConvTransposeSpec):
            return self._transposed(spec, x, steps, *pairs[0]), steps * spec.stride
        weight, bias = pairs[0]
        activated = graph.node("Elu", x) if isinstance(spec, ResBlockSpec) or spec.elu else x
        shape = (spec.context, spec.in_channels if isinstance(spec, ConvSpec) else spec.channels)
        full = activated
        if spec.context:
            full = graph.concat([self._state(shape), activated], 0)
            self._keep(graph.slice(full, steps, steps + spec.context), math.prod(shape))
        if isinstance(spec, ConvSpec):
            windows = self._windows(full, spec.kernel, spec.stride, spec.dilation, steps)
            y = graph.node("Gemm", windows, weight, graph.constant(bias))
            return y, steps // spec.stride
        windows = self._windows(full, spec.kernel, 1, spec.dilation, steps)
        hidden = graph.node("Elu", graph.node("Gemm", windows, weight, graph.constant(bias)))
        joined = graph.concat([hidden, x], 1) if spec.conv_shortcut else hidden
        y = graph.node("Gemm", joined, pairs[1][0], graph.constant(pairs[1][1]))
        return (y if spec.conv_shortcut else graph.node("Add", x, y)), steps

    def _windows(self, full: str, kernel: int, stride: int, dilation: int, steps: int) -> str:
        """[L, C] -> [steps / stride, kernel * C]"""
        graph, out = self.graph, steps // stride
        if kernel == 1 and stride == 1:
            return full
        last = (out - 1) * stride + 1
        return graph.concat(
            [
                graph.slice(full, k * dilation, k * dilation + last, step=stride)
                for k in range(kernel)
            ],
            1,
        )

    def _transposed(
        self, spec: ConvTransposeSpec, x: str, steps: int, weight: str, bias: Any
    ) -> str:
        graph, stride, channels = self.graph, spec.stride, spec.out_channels
        assert spec.kernel == 2 * stride, "every transposed convolution of a config is so"
        width = stride * channels
        # The bias is added once, when a sample leaves the overlap: to the first half only.
        biases = np.concatenate([np.tile(bias, stride), np.zeros(width, np.float32)])
        spread = graph.node("Gemm", graph.node("Elu", x), weight, graph.constant(biases))
        early = graph.slice(spread, 0, width, axis=1)
        late = graph.slice(spread, width, 2 * width, axis=1)
        late = graph.concat([self._state((1, width)), late], 0)
        self._keep(graph.slice(late, steps, steps + 1), width)
        y = graph.node("Add", early, graph.slice(late, 0, steps))
        return graph.reshape(y, steps * stride, channels)

    def _lstm(self, spec: LstmSpec, x: str, pairs: list[Any]) -> str:
        graph, channels = self.graph, spec.channels
        shape = (spec.layers, channels)
        hidden, cell = self._state(shape), self._state(shape, behind=math.prod(shape))
        above, hiddens, cells = x, [], []
        for layer, (weight, bias) in enumerate(pairs):
            h, c = (graph.slice(part, layer, layer + 1) for part in (hidden, cell))
            gates = graph.node("Gemm", graph.concat([above, h], 1), weight, graph.constant(bias))
            i, f, g, o = (
                graph.slice(gates, k * channels, (k + 1) * channels, axis=1) for k in range(4)
            )
            taken = graph.node("Mul", graph.node("Sigmoid", i), graph.node("Tanh", g))
            c = graph.node("Add", graph.node("Mul", graph.node("Sigmoid", f), c), taken)
            above = graph.node("Mul", graph.node("Sigmoid", o), graph.node("Tanh", c))
            hiddens.append(above)
            cells.append(c)
        for parts in (hiddens, cells):
            self._keep(graph.concat(parts, 0), math.prod(shape))
        return str(graph.node("Add", x, above))

    def _state(self, shape: tuple[int, int], *, behind: int = 0) -> str:
        """The next piece of the arena that has not been kept yet, or the one behind it."""
        start = self._at + (_aligned(behind) if behind else 0)
        return self.graph.reshape(
            self.graph.slice("state", start, start + math.prod(shape)), *shape
        )

    def _keep(self, value: str, floats: int) -> None:
        """Make ``value`` the next piece of the new arena."""
        self._next.append(self.graph.reshape(value, floats))
        missing = _aligned(floats) - floats
        if missing:
            self._next.append(self.graph.constant(np.zeros(missing, np.float32)))
        self._at += floats + missing


def _aligned(floats: int) -> int:
    return -(-floats // ALIGN_FLOATS) * ALIGN_FLOATS
