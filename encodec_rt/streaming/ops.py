"""The seam between the codec and its backends: a table of functions, and its plain-torch rows.

Activations are channels-last, [S, T, C]. A row reads the state it is given, writes ``*_next``
completely, and returns a new tensor; no row knows that slots are streams. ``pack_*`` turns the
plain weights of a layer into whatever its row wants, once, when a codec is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from encodec_rt.streaming.backends.cpu.replay import Tape

Packed = tuple[Tensor, ...]


class PackConv(Protocol):
    """Packs the weight and bias of a (transposed) convolution of that stride and dilation."""

    def __call__(self, weight: Tensor, bias: Tensor, *, stride: int, dilation: int) -> Packed: ...


class Pack(Protocol):
    """Packs the plain weights of a layer, in the order of ``plan.layer_weights``."""

    def __call__(self, weights: Packed) -> Packed: ...


class Conv1d(Protocol):
    """ELU of x if ``elu``, then a causal convolution over context and x.

    x [S, T, C], context [S, P, C] (after the ELU), P = (kernel - 1) * dilation + 1 - stride
    -> [S, T / stride, C']. Writes context_next, the last P of both.
    """

    def __call__(
        self,
        x: Tensor,
        context: Tensor,
        context_next: Tensor,
        packed: Packed,
        *,
        kernel: int,
        stride: int,
        dilation: int,
        elu: bool,
    ) -> Tensor: ...


class ConvTranspose1d(Protocol):
    """ELU of x, then a transposed convolution whose overlap is carried.

    x [S, T, C], tail [S, kernel - stride, C'] -> [S, T * stride, C']. Writes tail_next. The tail
    is without bias: the bias is added once, when a sample leaves the overlap.
    """

    def __call__(
        self,
        x: Tensor,
        tail: Tensor,
        tail_next: Tensor,
        packed: Packed,
        *,
        kernel: int,
        stride: int,
    ) -> Tensor: ...


class ResBlock(Protocol):
    """shortcut(x) + conv_1x1(ELU(conv_dilated(ELU(x)))); the shortcut is a 1x1 conv or x itself.

    x [S, T, C], context [S, P, C] (after the ELU), P = (kernel - 1) * dilation -> [S, T, C].
    Writes context_next.
    """

    def __call__(
        self,
        x: Tensor,
        context: Tensor,
        context_next: Tensor,
        packed: Packed,
        *,
        kernel: int,
        dilation: int,
    ) -> Tensor: ...


class Lstm(Protocol):
    """A stack of LSTM layers over time, plus x.

    x [S, T, D], hidden and cell [S, layers, D] -> [S, T, D]. Writes both ``*_next``.
    """

    def __call__(
        self,
        x: Tensor,
        hidden: Tensor,
        cell: Tensor,
        hidden_next: Tensor,
        cell_next: Tensor,
        packed: Packed,
    ) -> Tensor: ...


class RvqEncode(Protocol):
    """Latents [S, T, D] -> codes [S, T, codebooks] int64; the lowest index wins a tie."""

    def __call__(self, latents: Tensor, packed: Packed, *, codebooks: int) -> Tensor: ...


class RvqDecode(Protocol):
    """Codes [S, T, Q] int64 -> latents [S, T, D], summed in the order of the codebooks."""

    def __call__(self, codes: Tensor, packed: Packed) -> Tensor: ...


class Commit(Protocol):
    """Rows of ``now`` [S, N] become those of ``proposed`` where ``active`` [S] bool is true."""

    def __call__(self, now: Tensor, proposed: Tensor, active: Tensor) -> None: ...


@dataclass(frozen=True, slots=True)
class Ops:
    """One backend: the functions a step calls, and the packing of the weights they read.

    ``on_tape``, of a backend that has it, gives the same rows with every call of theirs on a tape.
    """

    name: str
    pack_conv1d: PackConv
    pack_conv_transpose1d: PackConv
    pack_resblock: Pack
    pack_lstm: Pack
    pack_codebooks: Pack
    conv1d: Conv1d
    conv_transpose1d: ConvTranspose1d
    resblock: ResBlock
    lstm: Lstm
    rvq_encode: RvqEncode
    rvq_decode: RvqDecode
    commit: Commit
    on_tape: Callable[[Tape], Ops] | None = None


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
    """(vectors [Q, V, D],) -> those and their squared norms [Q, V], rounded once from float64."""
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
            take, keep, new, show = gates.chunk(4, dim=-1)
            c = keep.sigmoid() * c + take.sigmoid() * new.tanh()
            h = show.sigmoid() * c.tanh()
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
        # |x|^2 is the same for every vector of the book; adding it would only round the rest.
        indices = (norm - 2 * residual @ book.t()).argmin(-1)
        residual = residual - book[indices]
        codes.append(indices)
    return torch.stack(codes, dim=-1)


def _rvq_decode(codes: Tensor, packed: Packed) -> Tensor:
    books = packed[0]
    latents = books[0][codes[..., 0]]
    for stage in range(1, codes.shape[-1]):
        latents = latents + books[stage][codes[..., stage]]
    return latents


def _commit(now: Tensor, proposed: Tensor, active: Tensor) -> None:
    torch.where(active[:, None], proposed, now, out=now)


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
)
"""Every row in plain torch: complete, on any device, and the reference of the other tables."""
