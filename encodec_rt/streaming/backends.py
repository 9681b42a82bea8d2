"""The choice of a backend: by argument, once, and never silently another one."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from encodec_rt.errors import BackendUnavailable
from encodec_rt.streaming.cpu import CPU
from encodec_rt.streaming.ops import TORCH, Ops

BackendName = Literal["auto", "torch", "cpu"]


def select(name: str, device: torch.device) -> Ops:
    """The table of rows for ``name`` on ``device``; "auto" takes the fastest that fits.

    Raises BackendUnavailable for a name that is unknown or cannot run on this device.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            f"device {str(device)!r}: this torch sees no CUDA device; use device='cpu'"
        )
    if name == "cpu" and device.type != "cpu":
        raise BackendUnavailable(
            f"backend 'cpu' on device {str(device)!r}; use device='cpu', or backend='auto'"
        )
    if name == "cpu" or (name == "auto" and device.type == "cpu"):
        return CPU
    if name in ("auto", "torch"):
        return TORCH
    raise BackendUnavailable(f"backend {name!r}; there are {', '.join(get_args(BackendName))}")
