"""The choice of a backend: by argument, once, and never silently another one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import torch

from encodec_rt.errors import BackendUnavailable
from encodec_rt.streaming.backends.cpu.ops import CPU, CPU_FAST
from encodec_rt.streaming.ops import TORCH, Ops

BackendName = Literal["auto", "torch", "cpu", "triton"]

Precision = Literal["exact", "fast"]
"""``exact`` computes in float32. ``fast`` rounds the factors of products to 11 bits, which changes
some codes: to TF32 on a GPU's tensor cores, to float16 in a single stream's largest products on a
CPU. Sums and the search for codes stay float32."""

Tuning = Literal["throughput", "latency"]
"""What a GPU's tiles are for: many slots, or one or a few. It may change codes at near-ties."""


def select(
    name: str,
    device: torch.device,
    precision: Precision = "exact",
    tuned_for: Tuning = "throughput",
) -> Ops:
    """The table of rows for ``name`` on ``device``; "auto" takes the fastest made for the device.

    Raises BackendUnavailable for a name that is unknown or cannot run on this device, not in this
    precision, or not with this tuning.
    """
    if name not in get_args(BackendName):
        raise BackendUnavailable(f"backend {name!r}; there are {', '.join(get_args(BackendName))}")
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
            f"precision {precision!r}; there are {', '.join(get_args(Precision))}"
        )
    if tuned_for not in get_args(Tuning):
        raise BackendUnavailable(
            f"tuned_for {tuned_for!r}; there are {', '.join(get_args(Tuning))}"
        )
    if name == "triton":
        latency = tuned_for == "latency"
        return triton_ops(device, precision, few=latency, chained=latency)
    if tuned_for != "throughput":
        raise BackendUnavailable(
            f"tuned_for {tuned_for!r} with backend {name!r}; only 'triton' has it"
        )
    if name == "cpu":
        return CPU if precision == "exact" else CPU_FAST
    if precision != "exact":
        raise BackendUnavailable(
            f"precision {precision!r} with backend {name!r}; only 'cpu' and 'triton' have it"
        )
    if device.type == "cuda" and torch.backends.cudnn.conv.fp32_precision != "ieee":  # type: ignore[attr-defined]
        raise BackendUnavailable(
            f"backend 'torch' on device {str(device)!r}: torch would round convolutions to TF32, "
            "which changes codes; set torch.backends.cudnn.conv.fp32_precision = 'ieee', or use "
            "backend='triton'"
        )
    return TORCH


def triton_ops(
    device: torch.device,
    precision: Precision = "exact",
    *,
    few: bool = False,
    chained: bool = False,
) -> Ops:
    """The Triton table for ``device``; ``few`` and ``chained`` are those of its ``Rules``.

    Raises BackendUnavailable.
    """
    # Imported here: Triton is not on every platform, and takes a second where it is.
    try:
        import encodec_rt_kernels as kernels
    except ImportError as error:
        raise BackendUnavailable(
            f"backend 'triton': the kernels cannot be imported ({error}); install triton, or use "
            "backend='torch'"
        ) from error
    reason = kernels.why_unavailable(device)
    if reason is not None:
        raise BackendUnavailable(f"backend 'triton': {reason}; use backend='auto'")
    rules = kernels.Rules(precision, few, chained)
    switches = {precision: precision != "exact", "few slots": few, "chained": chained}
    return replace(
        TORCH,
        name=", ".join(["triton", *(name for name, on in switches.items() if on)]),
        pack_conv1d=kernels.pack_conv1d,
        pack_conv_transpose1d=kernels.pack_conv_transpose1d,
        pack_resblock=kernels.pack_resblock,
        pack_lstm=kernels.pack_lstm,
        pack_codebooks=partial(kernels.pack_codebooks, rules=rules),
        conv1d=partial(kernels.conv1d, rules=rules),
        conv_transpose1d=partial(kernels.conv_transpose1d, rules=rules),
        resblock=partial(kernels.resblock, rules=rules),
        lstm=partial(kernels.lstm, rules=rules),
        rvq_encode=partial(kernels.rvq_encode, rules=rules),
        rvq_decode=partial(kernels.rvq_decode, rules=rules),
        commit=partial(kernels.commit, rules=rules),
    )
