"""Choosing a backend: by argument, once, and without silent fallback."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch

from encodec_rt.errors import BackendUnavailable
from encodec_rt.streaming.backends.cpu.ops import CPU, CPU_FAST
from encodec_rt.streaming.backends.torch import TORCH
from encodec_rt.streaming.backends.triton import triton_ops
from encodec_rt.streaming.cuda_graph import capture_graph
from encodec_rt.streaming.ops import Ops, Precision, Tuning

BackendName = Literal["auto", "torch", "cpu", "triton"]


def device_of(name: str | torch.device) -> torch.device:
    """The device of that name. Raises BackendUnavailable if torch has no such device."""
    try:
        return torch.device(name)
    except (RuntimeError, TypeError):
        raise BackendUnavailable(
            f"device {name!r}; accepted: 'cpu', 'cuda' or 'cuda:N', or a torch.device"
        ) from None


def select(
    name: str,
    device: torch.device,
    precision: Precision = "exact",
    tuned_for: Tuning = "throughput",
) -> Ops:
    """The table of ops for ``name`` on ``device``; "auto" takes the one made for the device.

    Raises BackendUnavailable for an unknown name, and for a backend that cannot run on this device,
    in this precision or with this tuning.
    """
    if name not in get_args(BackendName):
        raise BackendUnavailable(f"backend {name!r}; accepted: {', '.join(get_args(BackendName))}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            f"device {str(device)!r}: this torch sees no CUDA device; use device='cpu'"
        )
    if name == "auto":
        name = {"cpu": "cpu", "cuda": "triton"}.get(device.type, "torch")
    if name == "cpu" and device.type != "cpu":
        raise BackendUnavailable(
            f"backend 'cpu' on device {str(device)!r}; use device='cpu', or backend='auto'"
        )
    if precision not in get_args(Precision):
        raise BackendUnavailable(
            f"precision {precision!r}; accepted: {', '.join(get_args(Precision))}"
        )
    if tuned_for not in get_args(Tuning):
        raise BackendUnavailable(
            f"tuned_for {tuned_for!r}; accepted: {', '.join(get_args(Tuning))}"
        )
    if name == "triton":
        latency = tuned_for == "latency"
        return triton_ops(device, precision, few=latency, chained=latency)
    if tuned_for != "throughput":
        raise BackendUnavailable(
            f"tuned_for {tuned_for!r} with backend {name!r}; only 'triton' supports it"
        )
    if name == "cpu":
        return CPU if precision == "exact" else CPU_FAST
    if precision != "exact":
        raise BackendUnavailable(
            f"precision {precision!r} with backend {name!r}; only 'cpu' and 'triton' support it"
        )
    if device.type == "cuda" and torch.backends.cudnn.conv.fp32_precision != "ieee":  # type: ignore[attr-defined]
        raise BackendUnavailable(
            f"backend 'torch' on device {str(device)!r}: torch would round convolutions to TF32, "
            "which changes codes; set torch.backends.cudnn.conv.fp32_precision = 'ieee', or use "
            "backend='triton'"
        )
    return TORCH if device.type != "cuda" else replace(TORCH, capture=capture_graph)
