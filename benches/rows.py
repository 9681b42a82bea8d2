"""The ways to run the codec that the GPU bench compares, each with the same two methods.

The rows with state compute the same: the Triton kernels by different rules, and plain torch, eager,
under a CUDA graph, and compiled. One row has no state: transformers' model, frame by frame, whose
codes are not those of a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from benches.environment import Json
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.backends.select import select
from encodec_rt.streaming.backends.triton import triton_ops
from encodec_rt.streaming.cuda_graph import Tick
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.ops import Precision, Step
from encodec_rt.streaming.runner import Runner
from encodec_rt.streaming.weights import pack


def bandwidth_kbps(model: EncodecModel) -> float:
    """The third bandwidth of a model: 6 kbps for the 24 kHz one."""
    return model.config.target_bandwidths[2]


class Contender(Protocol):
    """A batch of streams that takes frame after frame, on the host or on the device."""

    def encode(self, pcm: Tensor) -> Tensor:
        """Audio [S, hop] -> codes [S, Q], readable where the audio is."""

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [S, Q] -> audio [S, hop], readable where the codes are."""

    @property
    def ticks(self) -> Mapping[str, Step]:
        """The steps "encode" and "decode" without the host; empty if there are none."""


Make = Callable[[EncodecModel, int, torch.device], Contender]


@dataclass(frozen=True)
class Row:
    """One way to run the codec, and how exact it is.

    ``stateless`` rows code each frame by itself. ``live`` rows are also timed at the pace of a
    microphone and with a cold cache, which takes time.
    """

    name: str
    make: Make
    precision: Precision = "exact"
    stateless: bool = False
    live: bool = False

    @property
    def case(self) -> dict[str, Json]:
        """The description for a record."""
        return {"row": self.name, "precision": self.precision, "has_state": not self.stateless}


def triton_engine(
    model: EncodecModel,
    slots: int,
    device: torch.device,
    *,
    precision: Precision = "exact",
    few: bool = False,
    chained: bool = False,
    graph: bool | None = True,
) -> Engine:
    """An engine of Triton kernels by these rules; with ``graph`` True, no graph is an error."""
    ops = triton_ops(device, precision, few=few, chained=chained)
    kbps = bandwidth_kbps(model)
    return Engine(pack(model, ops, device), slots, kbps, start="zero", graph=graph)


def torch_engine(
    model: EncodecModel, slots: int, device: torch.device, *, graph: bool | None
) -> Engine:
    """An engine of plain torch ops, in float32."""
    packed, kbps = pack(model, select("torch", device), device), bandwidth_kbps(model)
    return Engine(packed, slots, kbps, start="zero", graph=graph)


class CompiledSteps:
    """The plain torch ops, with each direction compiled by torch as one function."""

    @torch.no_grad()
    def __init__(
        self,
        model: EncodecModel,
        slots: int,
        device: torch.device,
        *,
        graph: bool,
        **options: Any,
    ) -> None:
        """Compile with ``options`` of torch.compile; ``graph`` captures the result in a CUDA graph.

        Raises whatever torch.compile raises.
        """
        self._packed = pack(model, select("torch", device), device)
        self._codebooks = model.config.codebooks_for(bandwidth_kbps(model))
        self._encoder = Runner(self._packed.encoder, slots, device)
        self._decoder = Runner(self._packed.decoder, slots, device)
        wrap = partial(torch.compile, fullgraph=True, dynamic=False, **options)
        silence = torch.zeros(slots, model.config.hop_length, device=device)
        codes = torch.zeros(slots, self._codebooks, dtype=torch.int64, device=device)
        self.ticks = {
            "encode": Tick(wrap(self._encode_step), silence, graph=graph),
            "decode": Tick(wrap(self._decode_step), codes, graph=graph),
        }

    @torch.no_grad()
    def encode(self, pcm: Tensor) -> Tensor:
        """Audio [S, hop] -> codes [S, Q]."""
        return self.ticks["encode"](pcm, None)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [S, Q] -> audio [S, hop]."""
        return self.ticks["decode"](codes, None)

    def _encode_step(self, pcm: Tensor, active: Tensor) -> Tensor:
        latents = self._encoder.step(pcm[:, :, None], active)
        ops, books = self._packed.ops, self._packed.codebooks
        return ops.rvq_encode(latents, books, codebooks=self._codebooks)[:, 0]

    def _decode_step(self, codes: Tensor, active: Tensor) -> Tensor:
        latents = self._packed.ops.rvq_decode(codes[:, None], self._packed.codebooks)
        return self._decoder.step(latents, active)[:, :, 0]


class TransformersFrames:
    """transformers' EncodecModel with the same weights, each frame by itself, without state."""

    def __init__(self, model: EncodecModel, slots: int, device: torch.device) -> None:
        """Raises ImportError if transformers is not installed."""
        from transformers import EncodecConfig, EncodecModel

        twin: Any = EncodecModel(EncodecConfig.from_dict(model.config.to_dict()))
        twin.load_state_dict(model.state_dict())
        self._model = twin.eval().to(device)
        self._device, self._kbps = device, bandwidth_kbps(model)
        self.ticks: Mapping[str, Step] = {}

    @torch.inference_mode()
    def encode(self, pcm: Tensor) -> Tensor:
        """Audio [S, hop] -> codes [S, Q] of that frame by itself."""
        codes = self._model.encode(pcm.to(self._device)[:, None], None, self._kbps).audio_codes
        found: Tensor = codes[0, :, :, 0].to(pcm.device)
        return found

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [S, Q] -> audio [S, hop] of that frame by itself."""
        given = codes.to(self._device)[None, :, :, None]
        audio: Tensor = self._model.decode(given, [None]).audio_values
        return audio[:, 0].to(codes.device)


def _triton(
    name: str,
    precision: Precision = "exact",
    *,
    few: bool = False,
    chained: bool = False,
    live: bool = False,
) -> Row:
    make = partial(triton_engine, precision=precision, few=few, chained=chained)
    return Row(name, make, precision, live=live)


def _compiled(name: str, **options: Any) -> Row:
    return Row(name, partial(CompiledSteps, **options))


EXACT = _triton("triton")
FAST = _triton("triton, fast", "fast")
FEW = _triton("triton, few slots, chained", few=True, chained=True, live=True)
FEW_FAST = _triton("triton, few slots, chained, fast", "fast", few=True, chained=True)
TORCH_GRAPH = Row("torch, graph", partial(torch_engine, graph=True), live=True)
TORCH_EAGER = Row("torch, eager", partial(torch_engine, graph=False))

SMOKE = (FEW, TORCH_GRAPH)
"""What has to work before anything else is worth measuring."""

LATENCY = (
    FEW,
    TORCH_GRAPH,
    EXACT,
    FEW_FAST,
    _triton("triton, few slots", few=True),
    FAST,
    TORCH_EAGER,
)
"""Rows for the latency of one stream."""

RIVALS = (
    FEW,
    Row("transformers, per frame", TransformersFrames, stateless=True),
    TORCH_GRAPH,
    _compiled("torch.compile default", mode="default", graph=False),
    _compiled("torch.compile default, graph", mode="default", graph=True),
)
"""Other implementations, and our row to compare them with; the slowest to make comes last.

torch's own graphs are off where a graph captures the whole tick, since they would be inside it.
"""

MAX_AUTOTUNE = _compiled(
    "torch.compile max-autotune, graph", mode="max-autotune-no-cudagraphs", graph=True
)
"""It takes minutes to make."""

STREAMS = (EXACT, FAST)
"""Rows for many streams."""

FLIPS = (FAST, FEW_FAST, EXACT, FEW)
"""Rows whose differing codes of speech are counted; those not measured before come first."""
