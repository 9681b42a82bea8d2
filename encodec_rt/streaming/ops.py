"""The interface between the codec and its backends: a table of functions.

Activations are channels-last, [S, T, C]. An op reads the state it is given, writes ``*_next``
completely, and returns a new tensor; no op knows that slots are streams. ``pack_*`` converts the
plain weights of a layer into the form that its op needs, once, when a codec is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Packed = tuple[Tensor, ...]

Precision = Literal["exact", "fast"]
"""``exact`` computes in float32. ``fast`` rounds the operands of products to 11 bits, which changes
some codes: to TF32 on a GPU's tensor cores, to float16 in a single stream's largest products on a
CPU. Sums and the codebook search stay in float32."""

Tuning = Literal["throughput", "latency"]
"""Whether a GPU's tiles suit many slots, or one or a few. It may change codes at near-ties."""


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
    excludes the bias, which is added once, when a sample leaves the overlap.
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
    """Codes [S, T, Q] int64 -> latents [S, T, D], summed in the order of the codebooks.

    A code of -1 stands for an absent codebook and adds nothing, so that every slot has its own
    bandwidth and losses.
    """

    def __call__(self, codes: Tensor, packed: Packed) -> Tensor: ...


class Commit(Protocol):
    """Rows of ``now`` [S, N] become those of ``proposed`` where ``active`` [S] bool is true."""

    def __call__(self, now: Tensor, proposed: Tensor, active: Tensor) -> None: ...


class Edit(Protocol):
    """Calls ``function`` with the arguments as part of a step; it writes into tensors in place.

    In a CUDA graph it is not called again, but what it launched is.
    """

    def __call__(self, function: Callable[..., None], /, *args: object) -> None: ...


Work = Callable[["Ops", Tensor, Tensor], Tensor]
"""(ops, x [S, ...], active [S] bool) -> y [S, ...]: one step of a network over its own state.

It only calls ops and makes views, and advances only the active slots.
"""


class Step(Protocol):
    """A piece of work for inputs of one shape, however its backend repeats it.

    ``eager_because`` is None where one CUDA graph holds all of it, else why none does.
    """

    eager_because: str | None

    def __call__(self, x: Tensor, active: Tensor | None) -> Tensor:
        """The result for ``x``, on its device; valid until the next call. None means all slots."""

    def again(self) -> None:
        """Step again on the last input, on the device and without waiting for it."""


class Capture(Protocol):
    """Makes a ``Step`` of work, for inputs shaped like ``x``, which is on the device.

    ``graph`` True raises BackendUnavailable if there can be no CUDA graph, False uses none.
    ``live`` is False for long steps, where a recording gains nothing and would hold memory.
    """

    def __call__(
        self, ops: Ops, work: Work, x: Tensor, *, graph: bool | None, live: bool
    ) -> Step: ...


@dataclass(frozen=True, slots=True)
class Ops:
    """One backend: the functions a step calls, and the packing of the weights they read.

    ``capture`` is how the backend repeats a step: by a CUDA graph, a replay of calls, or not at
    all.
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
    edit: Edit
    capture: Capture
