"""The Triton kernels as a table of ops, for one device."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from encodec_rt.errors import BackendUnavailable
from encodec_rt.streaming.backends.torch import TORCH, capture_eagerly
from encodec_rt.streaming.cuda_graph import capture_graph
from encodec_rt.streaming.ops import Ops, Precision


def triton_ops(
    device: torch.device,
    precision: Precision = "exact",
    *,
    few: bool = False,
    chained: bool = False,
) -> Ops:
    """The Triton table for ``device``; ``few`` and ``chained`` are the fields of its ``Rules``.

    Raises BackendUnavailable.
    """
    # Imported here, since Triton is not available everywhere and takes a second to import.
    try:
        import encodec_rt_kernels as kernels
    except ImportError as error:
        raise BackendUnavailable(
            f"backend 'triton': the kernels cannot be imported ({error}); run: pip install "
            "'encodec-rt[gpu]', or use backend='torch'"
        ) from error
    reason = kernels.why_unavailable(device)
    if reason is not None:
        raise BackendUnavailable(f"backend 'triton': {reason}; use backend='auto'")
    rules = kernels.Rules(precision, few, chained)
    switches = {precision: precision != "exact", "few slots": few, "chained": chained}
    return replace(
        TORCH,
        name=", ".join(["triton", *(name for name, on in switches.items() if on)]),
        pack_conv1d=partial(kernels.pack_conv1d, rules=rules),
        pack_conv_transpose1d=partial(kernels.pack_conv_transpose1d, rules=rules),
        pack_resblock=partial(kernels.pack_resblock, rules=rules),
        pack_lstm=partial(kernels.pack_lstm, rules=rules),
        pack_codebooks=partial(kernels.pack_codebooks, rules=rules),
        conv1d=partial(kernels.conv1d, rules=rules),
        conv_transpose1d=partial(kernels.conv_transpose1d, rules=rules),
        resblock=partial(kernels.resblock, rules=rules),
        lstm=partial(kernels.lstm, rules=rules),
        rvq_encode=partial(kernels.rvq_encode, rules=rules),
        rvq_decode=partial(kernels.rvq_decode, rules=rules),
        commit=partial(kernels.commit, rules=rules),
        capture=capture_graph if device.type == "cuda" else capture_eagerly,
    )
