"""Make the proposed state current in the slots that took part in a step.

    now[s] = proposed[s] where active[s]

One launch. Idle slots are neither read nor written. It moves 8 bytes per float of state.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from encodec_rt_kernels import configs
from encodec_rt_kernels.device import follow, launch_metadata


@triton.jit(do_not_specialize=["size"], launch_metadata=launch_metadata(lambda arguments: 0))
def _commit_kernel(
    now_ptr,
    proposed_ptr,
    active_ptr,
    now_stride,
    proposed_stride,
    size,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    slot = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = (index < size) & (tl.load(active_ptr + slot) != 0)
    value = tl.load(proposed_ptr + slot * proposed_stride + index, mask=valid, other=0.0)
    tl.store(now_ptr + slot * now_stride + index, value, mask=valid)


def commit(
    now: Tensor, proposed: Tensor, active: Tensor, *, rules: configs.Rules = configs.MANY
) -> None:
    """Copy ``proposed`` [S, N] into ``now`` [S, N] in rows where ``active`` [S] bool is true."""
    slots, size = now.shape
    grid = (slots, triton.cdiv(size, configs.COPY_BLOCK))
    _commit_kernel[grid](
        now,
        proposed,
        active.view(torch.uint8),
        now.stride(0),
        proposed.stride(0),
        size,
        BLOCK=configs.COPY_BLOCK,
        **configs.copy(configs.architecture(now.device), rules),
    )
