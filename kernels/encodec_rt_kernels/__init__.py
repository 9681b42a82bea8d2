"""Triton kernels of the streaming codec: one function per operation.

Each function has the signature and the result of the plain-torch op of the same name, plus an
optional ``rules``. They run on CUDA devices, and on the CPU if Triton's interpreter was enabled
(``TRITON_INTERPRET=1``) before Triton was imported.
"""

from __future__ import annotations

import torch
import triton

from encodec_rt_kernels.commit import commit
from encodec_rt_kernels.configs import Precision, Rules
from encodec_rt_kernels.conv1d import conv1d, pack_conv1d
from encodec_rt_kernels.conv_transpose1d import conv_transpose1d, pack_conv_transpose1d
from encodec_rt_kernels.lstm import lstm, pack_lstm
from encodec_rt_kernels.resblock import pack_resblock, resblock
from encodec_rt_kernels.rvq import pack_codebooks, rvq_decode, rvq_encode

__all__ = [
    "Precision",
    "Rules",
    "commit",
    "conv1d",
    "conv_transpose1d",
    "lstm",
    "pack_codebooks",
    "pack_conv1d",
    "pack_conv_transpose1d",
    "pack_lstm",
    "pack_resblock",
    "resblock",
    "rvq_decode",
    "rvq_encode",
    "why_unavailable",
]


def why_unavailable(device: torch.device) -> str | None:
    """Why the kernels cannot run on ``device``, or None if they can."""
    if triton.knobs.runtime.interpret:
        return None if device.type == "cpu" else "Triton's interpreter runs on the CPU only"
    if device.type != "cuda":
        return f"Triton kernels need a CUDA device, not {device}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return None
