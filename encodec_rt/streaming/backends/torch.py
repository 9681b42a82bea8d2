"""Every op in plain torch: complete, on any device, and the reference of the other backends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from encodec_rt.errors import BackendUnavailable
from encodec_rt.streaming.ops import Ops, Packed, Step, Work


def with_context(x: Tensor, context: Tensor, context_next: Tensor) -> Tensor:
    """[S, P + T, C], the context and x; what the next step needs is written to context_next."""
    full = torch.cat([context, x], dim=1)
    context_next.copy_(full[:, x.shape[1] :])
    return full


def _pack_conv(weight: Tensor, bias: Tensor, *, stride: int, dilation: int) -> Packed:
    return weight.contiguous(), bias.contiguous()


def _pack_plain(weights: Packed) -> Packed:
    return tuple(weight.contiguous() for weight in weights)


def pack_codebooks(weights: Packed) -> Packed:
    """(vectors [Q, V, D],) -> these and their squared norms [Q, V], rounded once from float64."""
    (books,) = weights
    norms = books.double().pow(2).sum(-1).to(books.dtype)
    return books.contiguous(), norms.contiguous()


def _conv(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    y = functional.conv1d(x.transpose(1, 2), weight, bias, stride, dilation=dilation)
    return y.transpose(1, 2)


def _conv1d(
    x: Tensor,
    context: Tensor,
    context_next: Tensor,
    packed: Packed,
    *,
    kernel: int,
    stride: int,
    dilation: int,
    elu: bool,
) -> Tensor:
    weight, bias = packed
    full = with_context(functional.elu(x) if elu else x, context, context_next)
    return _conv(full, weight, bias, stride, dilation)


def _conv_transpose1d(
    x: Tensor, tail: Tensor, tail_next: Tensor, packed: Packed, *, kernel: int, stride: int
) -> Tensor:
    weight, bias = packed
    spread = functional.conv_transpose1d(functional.elu(x).transpose(1, 2), weight, None, stride)
    full = spread.transpose(1, 2).contiguous()
    full[:, : kernel - stride] += tail
    ready = x.shape[1] * stride
    tail_next.copy_(full[:, ready:])
    return full[:, :ready] + bias


def _resblock(
    x: Tensor,
    context: Tensor,
    context_next: Tensor,
    packed: Packed,
    *,
    kernel: int,
    dilation: int,
) -> Tensor:
    weight, bias, weight_out, bias_out, *shortcut = packed
    full = with_context(functional.elu(x), context, context_next)
    hidden = functional.elu(_conv(full, weight, bias, dilation=dilation))
    straight = _conv(x, shortcut[0], shortcut[1]) if shortcut else x
    return straight + _conv(hidden, weight_out, bias_out)


def _lstm(
    x: Tensor,
    hidden: Tensor,
    cell: Tensor,
    hidden_next: Tensor,
    cell_next: Tensor,
    packed: Packed,
) -> Tensor:
    y = x
    for layer in range(hidden.shape[1]):
        weight_ih, weight_hh, bias_ih, bias_hh = packed[4 * layer : 4 * layer + 4]
        h, c = hidden[:, layer], cell[:, layer]
        outputs = []
        for step in y.unbind(1):
            gates = functional.linear(step, weight_ih, bias_ih)
            gates = gates + functional.linear(h, weight_hh, bias_hh)
            i, f, g, o = gates.chunk(4, dim=-1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        y = torch.stack(outputs, dim=1)
        hidden_next[:, layer] = h
        cell_next[:, layer] = c
    return x + y


def _rvq_encode(latents: Tensor, packed: Packed, *, codebooks: int) -> Tensor:
    books, norms = packed
    residual = latents
    codes = []
    for book, norm in zip(books[:codebooks], norms, strict=False):
        # |x|^2 is the same for every vector of the codebook; adding it would only add rounding.
        indices = (norm - 2 * residual @ book.t()).argmin(-1)
        residual = residual - book[indices]
        codes.append(indices)
    return torch.stack(codes, dim=-1)


def _rvq_decode(codes: Tensor, packed: Packed) -> Tensor:
    latents = torch.zeros((), dtype=packed[0].dtype, device=codes.device)
    for book, indices in zip(packed[0], codes.unbind(-1), strict=False):
        absent = (indices < 0)[..., None]
        latents = latents + book[indices.clamp(min=0)].masked_fill(absent, 0.0)
    return latents


def _commit(now: Tensor, proposed: Tensor, active: Tensor) -> None:
    torch.where(active[:, None], proposed, now, out=now)


def _edit(function: Callable[..., None], *args: object) -> None:
    function(*args)


class EagerStep:
    """Runs its work every time, on the device; the result goes back to where the input was."""

    def __init__(self, ops: Ops, work: Work, x: Tensor, eager_because: str) -> None:
        """For inputs shaped like ``x``, which is on the device."""
        self._ops, self._work, self._x = ops, work, x
        self._all = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self._active = self._all
        self.eager_because: str | None = eager_because

    def __call__(self, x: Tensor, active: Tensor | None) -> Tensor:
        """The result for ``x``; ``active`` None means all."""
        self._x = x.to(self._all.device)
        self._active = self._all if active is None else active.to(self._all.device)
        return self._work(self._ops, self._x, self._active).to(x.device)

    def again(self) -> None:
        """Step once more on the last input."""
        self._work(self._ops, self._x, self._active)


def why_no_graph(device: torch.device, graph: bool | None) -> str:
    """Why a step is not a CUDA graph, on a device without graphs; raises if one was required."""
    if graph is False:
        return "graph=False"
    reason = f"device {str(device)!r} has no CUDA graphs"
    if graph:
        raise BackendUnavailable(f"graph=True: {reason}; use graph=None")
    return reason


def capture_eagerly(ops: Ops, work: Work, x: Tensor, *, graph: bool | None, live: bool) -> Step:
    """``Ops.capture`` for a device without graphs."""
    return EagerStep(ops, work, x, why_no_graph(x.device, graph))


TORCH = Ops(
    name="torch",
    pack_conv1d=_pack_conv,
    pack_conv_transpose1d=_pack_conv,
    pack_resblock=_pack_plain,
    pack_lstm=_pack_plain,
    pack_codebooks=pack_codebooks,
    conv1d=_conv1d,
    conv_transpose1d=_conv_transpose1d,
    resblock=_resblock,
    lstm=_lstm,
    rvq_encode=_rvq_encode,
    rvq_decode=_rvq_decode,
    commit=_commit,
    edit=_edit,
    capture=capture_eagerly,
)
"""Every op in plain torch: complete, on any device, and the reference of the other tables."""
