"""Backends, precisions and graphs that cannot be had are refused, in words, where asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import triton

from encodec_rt.errors import BackendUnavailable
from encodec_rt.streaming import cuda_graph
from encodec_rt.streaming.backends.cpu.ops import CPU
from encodec_rt.streaming.backends.select import device_of, select
from encodec_rt.streaming.backends.torch import TORCH
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.cuda_graph import Tick
from tests.support.models import random_model, tiny_config

CPU_DEVICE = torch.device("cpu")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")


def test_auto_takes_the_rows_made_for_the_device() -> None:
    assert select("auto", CPU_DEVICE) is CPU
    assert select("auto", torch.device("meta")) is TORCH


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="'cuda'; accepted: auto, torch, cpu, triton"):
        select("cuda", CPU_DEVICE)


@without_cuda
@pytest.mark.parametrize("backend", ["auto", "torch", "triton"])
def test_cuda_device_is_refused_where_there_is_none(backend: str) -> None:
    with pytest.raises(BackendUnavailable, match="sees no CUDA device"):
        select(backend, torch.device("cuda"))


def test_triton_on_a_cpu_is_refused_without_the_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Imported first: what Triton decorates while the switch is off is never interpreted.
    import encodec_rt_kernels  # noqa: F401

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(BackendUnavailable, match="need a CUDA device, not cpu"):
        select("triton", CPU_DEVICE)


@without_cuda
def test_triton_on_a_cpu_runs_in_the_interpreter() -> None:
    assert select("triton", CPU_DEVICE).name == "triton"
    assert select("triton", CPU_DEVICE, "fast").name == "triton, fast"
    few = select("triton", CPU_DEVICE, tuned_for="latency")
    assert few.name == "triton, few slots, chained"


def test_fast_precision_is_refused_by_a_backend_that_has_none() -> None:
    with pytest.raises(BackendUnavailable, match="only 'cpu' and 'triton' support it"):
        Codec(random_model(tiny_config()), backend="torch", precision="fast")


def test_tuning_is_refused_by_a_backend_that_has_none() -> None:
    with pytest.raises(BackendUnavailable, match="'latency' with backend 'cpu'; only 'triton'"):
        Codec(random_model(tiny_config()), tuned_for="latency")
    with pytest.raises(BackendUnavailable, match="'both'; accepted: throughput, latency"):
        select("auto", CPU_DEVICE, tuned_for="both")  # type: ignore[arg-type]


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="'bf16'; accepted: exact, fast"):
        select("auto", CPU_DEVICE, "bf16")  # type: ignore[arg-type]


def test_graph_on_a_cpu_is_an_error_only_where_asked_for() -> None:
    codec = Codec(random_model(tiny_config()))
    bandwidth = codec.config.target_bandwidths[0]
    with pytest.raises(BackendUnavailable, match="graph=True: device 'cpu' has no CUDA graphs"):
        codec.engine(2, bandwidth, graph=True)
    graphs = codec.engine(2, bandwidth).describe().graphs
    assert graphs == dict.fromkeys(["encode", "decode"], "device 'cpu' has no CUDA graphs")
    assert codec.engine(2, bandwidth, graph=False).describe().graphs["encode"] == "graph=False"


def test_a_capture_that_fails_is_an_error_only_where_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(device: torch.device, *runs: Callable[[], None]) -> tuple[Callable[[], None], ...]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "capture", refuse)
    with pytest.raises(BackendUnavailable, match="not permitted when stream is capturing; use"):
        Tick(lambda x, active: x, torch.zeros(2, 3), graph=True)
    tick = Tick(lambda x, active: x + 1, torch.zeros(2, 3), graph=None)
    assert tick.eager_because == "operation not permitted when stream is capturing"
    assert torch.equal(tick(torch.zeros(2, 3), None), torch.ones(2, 3))


def test_a_captured_tick_replays_over_its_own_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def step(x: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        seen.append((x.data_ptr(), active.data_ptr()))
        return x * active[:, None]

    monkeypatch.setattr(cuda_graph, "capture", lambda device, *runs: runs)
    tick = Tick(step, torch.zeros(2, 3), graph=True)
    assert tick.eager_because is None
    first = tick(torch.ones(2, 3), torch.tensor([True, False])).clone()
    second = tick(torch.full((2, 3), 2.0), None)
    assert torch.equal(first, torch.tensor([[1.0] * 3, [0.0] * 3]))
    assert torch.equal(second, torch.full((2, 3), 2.0))
    assert len(set(seen)) == 1


@pytest.mark.parametrize("block_frames", [1, 3])
def test_a_stream_of_captured_blocks_equals_an_eager_one(
    monkeypatch: pytest.MonkeyPatch, block_frames: int
) -> None:
    monkeypatch.setattr(cuda_graph, "capture", lambda device, *runs: runs)
    codec = Codec(random_model(tiny_config()), backend="torch")
    graphed = copy.copy(codec.packed)
    object.__setattr__(graphed, "ops", replace(TORCH, capture=cuda_graph.capture_graph))
    bandwidth = codec.config.target_bandwidths[-1]
    audio = torch.rand(11 * codec.config.hop_length) - 0.5

    def heard(captured: bool | None) -> list[np.ndarray]:
        monkeypatch.setattr(codec, "_packed", graphed if captured else codec.packed)
        encoder = codec.stream_encoder(bandwidth, block_frames=block_frames, graph=captured)
        decoder = codec.stream_decoder(bandwidth, block_frames=block_frames, graph=captured)
        assert (encoder.eager_because is None) == (decoder.eager_because is None) == bool(captured)
        begun = encoder.push(audio[:100])
        kept = encoder.snapshot()
        codes = encoder.push(audio[100:])
        encoder.restore(kept)
        assert np.array_equal(encoder.push(audio[100:]), codes)
        whole = np.concatenate([begun, codes, encoder.flush()])
        return [whole, *(decoder.push(part) for part in (whole[:5], None, whole[5:]))]

    for eager, captured in zip(heard(None), heard(True), strict=True):
        assert np.array_equal(eager, captured)


def test_a_stream_on_a_cpu_says_that_it_has_no_graph() -> None:
    codec = Codec(random_model(tiny_config()))
    bandwidth = codec.config.target_bandwidths[-1]
    assert codec.stream_encoder(bandwidth).eager_because == "device 'cpu' has no CUDA graphs"
    for open_stream in (codec.stream_encoder, codec.stream_decoder):
        with pytest.raises(BackendUnavailable, match="no CUDA graphs; use graph=None"):
            open_stream(bandwidth, graph=True)


def test_a_tick_prepares_itself_with_no_slot_active() -> None:
    asked: list[list[bool]] = []

    def step(x: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        asked.append(active.tolist())
        return 2 * x

    tick = Tick(step, torch.zeros(2, 3), graph=None)
    assert asked == [[False, False]]
    tick(torch.ones(2, 3), None)
    tick(torch.ones(2, 3), torch.tensor([False, True]))
    assert asked[1:] == [[True, True], [False, True]]


def test_a_tick_gives_one_buffer() -> None:
    tick = Tick(lambda x, active: x + 1, torch.zeros(2, 3), graph=None)
    first = tick(torch.ones(2, 3), None)
    assert tick(torch.zeros(2, 3), None).data_ptr() == first.data_ptr()
    assert torch.equal(first, torch.ones(2, 3))


def test_torch_on_a_gpu_is_refused_while_it_would_round_to_tf32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    try:
        torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
        with pytest.raises(BackendUnavailable, match="fp32_precision = 'ieee'"):
            select("torch", torch.device("cuda"))
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        chosen = select("torch", torch.device("cuda"))
        assert chosen == replace(TORCH, capture=cuda_graph.capture_graph)
    finally:
        torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]


@pytest.mark.parametrize("device", ["foo", "cuda:x", None, "", "cpu cpu"])
def test_a_device_that_torch_does_not_know_is_refused(device: Any) -> None:
    with pytest.raises(BackendUnavailable, match="accepted: 'cpu'"):
        device_of(device)
