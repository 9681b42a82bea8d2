"""Range coding with integer counts, by ``constriction``; docs/format.md has the arithmetic.

``constriction`` takes probabilities in floating point and rounds them itself. Here they are always
integer multiples of 2^-16 that add up to 1, for which every operation of that rounding is exact in
float64. So the bytes depend only on the counts, never on the machine.
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from encodec_rt.errors import InputError, PacketError

TOTAL = 1 << 16
"""What the counts of one distribution add up to."""

# Submodules of an extension module cannot be imported from.
_Categorical = constriction.stream.model.Categorical
_EACH = _Categorical(perfect=False)

Counts = NDArray[np.integer[Any]]

_STATE_BITS, _WORD_BYTES = 64, 4


class Distribution:
    """A fixed distribution from its ``counts`` [symbols], each at least 1, that add up to TOTAL."""

    def __init__(self, counts: Counts) -> None:
        _check_counts(counts)
        self.counts = counts
        self.model = _Categorical(counts.astype(np.float64) / TOTAL, perfect=False)


class SymbolEncoder:
    """Symbols to bytes; the shortest bytes that decode to exactly these symbols."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def encode(self, symbols: NDArray[np.integer[Any]], distribution: Distribution) -> None:
        """Append ``symbols`` [n], all of one distribution."""
        self._coder.encode(symbols.astype(np.int32), distribution.model)

    def encode_each(self, symbols: NDArray[np.integer[Any]], counts: Counts) -> None:
        """Append ``symbols`` [n], the i-th by the distribution ``counts[i]`` of [n, symbols]."""
        _check_counts(counts)
        self._coder.encode(symbols.astype(np.int32), _EACH, counts.astype(np.float64) / TOTAL)

    def encode_one(self, symbol: int, probabilities: NDArray[np.float64]) -> None:
        """Append ``symbol`` by ``probabilities`` [1, symbols], which must be counts over TOTAL."""
        self._coder.encode(np.array([symbol], np.int32), _EACH, probabilities)

    def finish(self) -> bytes:
        """The bytes, without trailing ones that a decoder assumes to be zero anyway.

        Any number in [lower, lower + range) decodes to these symbols; of those the one with the
        most trailing zero bytes is taken. Two words of state, as the coder ends by itself, would
        cost several bytes in each short layer.
        """
        words = self._coder.get_compressed()
        if not len(words):
            return b""
        before, (lower, width) = self._coder.pos()
        size = _WORD_BYTES * before + _STATE_BITS // 8
        ended: int = int.from_bytes(words.astype(">u4").tobytes().ljust(size, b"\0"), "big")
        # The coder may still owe a carry to the words before its state; its final output includes
        # it.
        first: int = ended - (ended - lower) % (1 << _STATE_BITS)
        for zeros in range(size, 0, -1):
            point = -(-first >> 8 * zeros) << 8 * zeros
            if point < first + width:
                break
        else:
            point = first
        return point.to_bytes(size, "big").rstrip(b"\0")


class SymbolDecoder:
    """Bytes back to symbols. Bytes that were never encoded give symbols too, or PacketError."""

    def __init__(self, data: bytes) -> None:
        padded = data + bytes(-len(data) % _WORD_BYTES)
        self._coder = constriction.stream.queue.RangeDecoder(
            np.frombuffer(padded, ">u4").astype(np.uint32)
        )

    def decode(self, distribution: Distribution, count: int) -> NDArray[np.int32]:
        """The next ``count`` symbols, all of one distribution."""
        try:
            found: NDArray[np.int32] = self._coder.decode(distribution.model, count)
        except (AssertionError, ValueError) as error:
            raise PacketError(f"the range coder's bytes are damaged: {error}") from None
        return found

    def decode_each(self, counts: Counts) -> NDArray[np.int32]:
        """The next symbols [n], the i-th by the distribution ``counts[i]`` of [n, symbols]."""
        try:
            found: NDArray[np.int32] = self._coder.decode(_EACH, counts.astype(np.float64) / TOTAL)
        except (AssertionError, ValueError) as error:
            raise PacketError(f"the range coder's bytes are damaged: {error}") from None
        return found

    def decode_one(self, probabilities: NDArray[np.float64]) -> int:
        """The next symbol, by ``probabilities`` [1, symbols], which must be counts over TOTAL."""
        try:
            return int(self._coder.decode(_EACH, probabilities)[0])
        except (AssertionError, ValueError) as error:
            raise PacketError(f"the range coder's bytes are damaged: {error}") from None


def _check_counts(counts: Counts) -> None:
    if counts.shape[-1] < 2 or counts.min() < 1 or (counts.sum(axis=-1) != TOTAL).any():
        raise InputError(f"counts of a distribution are at least 1 each and add up to {TOTAL}")
