"""Clips that begin or end inside a batch's step: the offline model's padding, row by row.

A step of whole frames gives the offline model's values except at a clip's two ends, where each
convolution pads its own input. At a start the padding is a row's context. At an end it follows the
last input of a strided convolution whose inputs are not a whole number of strides; what comes after
it is not used. Both are written here, before the layer, for the rows that need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import elu

from encodec_rt.streaming.plan import ConvSpec, LayerSpec, Plan, ResBlockSpec


@dataclass(frozen=True)
class _Ending:
    """For a strided layer: each row's inputs ``at`` [S, stride - 1] become ``keep`` * ``source``.

    Where nothing is to be padded, the first input is overwritten with itself.
    """

    at: Tensor
    source: Tensor
    keep: Tensor


class ClipBounds:
    """Which rows of a batch begin or end in the next step, in tensors that the step reads.

    On a CPU a step without such rows does nothing here; a CUDA graph does the same every time.
    """

    def __init__(self, specs: Plan, pad_mode: str, slots: int, device: torch.device) -> None:
        """For a step through the layers of ``specs``; nothing begins or ends yet."""
        self._specs, self._mode = specs, pad_mode
        self._rows = torch.arange(slots, device=device)[:, None]
        self._begins = torch.zeros(slots, 1, 1, dtype=torch.bool, device=device)
        self._endings = {
            spec.name: _Ending(
                torch.zeros(slots, spec.stride - 1, dtype=torch.int64, device=device),
                torch.zeros(slots, spec.stride - 1, dtype=torch.int64, device=device),
                torch.ones(slots, spec.stride - 1, 1, dtype=torch.float32, device=device),
            )
            for spec in specs
            if isinstance(spec, ConvSpec) and spec.stride > 1
        }
        self._always = device.type != "cpu"
        self._some_begin = self._some_end = self._always

    def set(self, begins: Sequence[bool], lengths: Sequence[int]) -> None:
        """Say of each row whether its clip begins here, and how many inputs are the clip's.

        The rest of the inputs follow them. A reflection needs ``start_frames`` frames to begin, and
        one to end.
        """
        self._begins.copy_(torch.tensor(begins)[:, None, None])
        self._some_begin = self._always or any(begins)
        left = np.asarray(lengths, np.int64)[:, None]
        some_end = False
        for spec in self._specs:
            if not isinstance(spec, ConvSpec) or spec.stride == 1:
                continue
            step = np.arange(spec.stride - 1)[None]
            padded = step < -left % spec.stride
            some_end |= bool(padded.any())
            sources = {"reflect": left - 2 - step, "replicate": left - 1, "constant": 0 * left}
            ending = self._endings[spec.name]
            ending.at.copy_(torch.from_numpy(np.where(padded, left + step, 0)))
            ending.source.copy_(torch.from_numpy(np.where(padded, sources[self._mode], 0)))
            keep = np.where(padded, self._mode != "constant", True)
            ending.keep.copy_(torch.from_numpy(keep)[:, :, None])
            left = -(-left // spec.stride)
        self._some_end = self._always or some_end

    def pad(self, spec: LayerSpec, x: Tensor, context: Tensor) -> None:
        """Pad x [S, T, C], the input of ``spec`` before its ELU, and context [S, P, C] after it.

        With zero padding, the context of a row that begins is already zero.
        """
        if not isinstance(spec, (ConvSpec, ResBlockSpec)):
            return
        past = context.shape[1]
        if past and self._some_begin and self._mode != "constant":
            first = x[:, :1].expand(-1, past, -1)
            if self._mode == "reflect":
                first = x[:, 1 : past + 1].flip(1)
            if isinstance(spec, ResBlockSpec) or spec.elu:
                first = elu(first)
            context.copy_(torch.where(self._begins, first, context))
        if self._some_end and spec.name in self._endings:
            ending = self._endings[spec.name]
            x[self._rows, ending.at] = x[self._rows, ending.source] * ending.keep
