"""One step through the layers of the encoder or the decoder, and the two edges of a stream.

In the middle of a stream a step is just the layers' ops. At its start every layer first sees the
offline model's left padding, at its end the right padding: both are made here, from the layer's own
input, so that no op and no state knows of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Flag, auto

import torch
from torch import Tensor
from torch.nn.functional import elu

from encodec_rt.model.conv import pad1d
from encodec_rt.streaming.clip_bounds import ClipBounds
from encodec_rt.streaming.ops import Ops, Packed
from encodec_rt.streaming.plan import (
    ConvSpec,
    ConvTransposeSpec,
    LayerSpec,
    LstmSpec,
    Plan,
    ResBlockSpec,
)
from encodec_rt.streaming.state import StreamState


class Edge(Flag):
    """Which ends of the stream a step touches."""

    NONE = 0
    LEFT = auto()
    RIGHT = auto()


@dataclass(frozen=True, slots=True)
class PackedLayers:
    """The layers of one direction, packed for the ops that run them."""

    plan: Plan
    packed: Mapping[str, Packed]
    ops: Ops
    pad_mode: str


def run(
    net: PackedLayers,
    now: StreamState,
    proposed: StreamState,
    x: Tensor,
    edge: Edge = Edge.NONE,
    bounds: ClipBounds | None = None,
) -> Tensor:
    """x [S, T, C] -> [S, T', C'], from the state ``now``; writes ``proposed`` and not ``now``.

    T is a whole number of frames, except at the right edge, where it may be anything, including 0.
    With ``Edge.LEFT`` the stream begins here: ``now`` must be zero. With ``bounds`` some rows begin
    or end within a step of whole frames: ``now`` is then padded where they begin.
    """
    for spec in net.plan:
        if bounds is not None and not isinstance(spec, LstmSpec):
            net.ops.edit(bounds.pad, spec, x, now.views[spec.name])
        x = _layer(net, spec, now.views, proposed.views, x, edge)
    return x


def _layer(
    net: PackedLayers,
    spec: LayerSpec,
    now: Mapping[str, Tensor],
    proposed: Mapping[str, Tensor],
    x: Tensor,
    edge: Edge,
) -> Tensor:
    ops, packed = net.ops, net.packed[spec.name]
    if isinstance(spec, LstmSpec):
        hidden, cell = f"{spec.name}.h", f"{spec.name}.c"
        if not x.shape[1]:
            return x
        return ops.lstm(x, now[hidden], now[cell], proposed[hidden], proposed[cell], packed)
    state, following = now[spec.name], proposed[spec.name]
    if isinstance(spec, ConvTransposeSpec):
        if edge:
            return _transpose_at_edge(ops, spec, state, following, packed, x, edge)
        return ops.conv_transpose1d(
            x, state, following, packed, kernel=spec.kernel, stride=spec.stride
        )
    if edge and not x.shape[1]:
        return x[:, :, :1].expand(-1, -1, _out_channels(spec))
    if isinstance(spec, ResBlockSpec):
        if edge & Edge.LEFT:
            state, _ = _padded(elu(x), state, 1, net.pad_mode, edge)
        return ops.resblock(x, state, following, packed, kernel=spec.kernel, dilation=spec.dilation)
    if edge:
        state, x = _padded(elu(x) if spec.elu else x, state, spec.stride, net.pad_mode, edge)
    return ops.conv1d(
        x,
        state,
        following,
        packed,
        kernel=spec.kernel,
        stride=spec.stride,
        dilation=spec.dilation,
        elu=spec.elu and not edge,
    )


def _out_channels(spec: ConvSpec | ResBlockSpec) -> int:
    return spec.out_channels if isinstance(spec, ConvSpec) else spec.channels


def _padded(
    x: Tensor, context: Tensor, stride: int, pad_mode: str, edge: Edge
) -> tuple[Tensor, Tensor]:
    """The context and input that an offline layer has at the edges of a clip."""
    extra = -x.shape[1] % stride if edge & Edge.RIGHT else 0
    past = context.shape[1]
    if edge & Edge.LEFT:
        full = pad1d(x.transpose(1, 2), past, extra, mode=pad_mode)
    else:
        full = pad1d(torch.cat([context, x], dim=1).transpose(1, 2), 0, extra, mode=pad_mode)
    # Ops may read a context by its slot's stride alone, so its steps must be contiguous.
    full = full.transpose(1, 2).contiguous()
    return full[:, :past], full[:, past:]


def _transpose_at_edge(
    ops: Ops,
    spec: ConvTransposeSpec,
    tail: Tensor,
    tail_next: Tensor,
    packed: Packed,
    x: Tensor,
    edge: Edge,
) -> Tensor:
    """The op's output without the part trimmed on the left, plus what is still held at the end."""
    ready = x.shape[1] * spec.stride
    if edge & Edge.RIGHT:
        # Another input of zeros adds nothing and flushes the overlap.
        ready += spec.trim_left
        x = torch.nn.functional.pad(x, (0, 0, 0, 1))
    y = ops.conv_transpose1d(x, tail, tail_next, packed, kernel=spec.kernel, stride=spec.stride)
    return y[:, spec.trim_left if edge & Edge.LEFT else 0 : ready]
