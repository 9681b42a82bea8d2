from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encodec_rt.bitstream.coding import to_counts
from encodec_rt.bitstream.range_coder import TOTAL, Distribution, SymbolDecoder, SymbolEncoder
from encodec_rt.errors import InputError, PacketError

ROOT = Path(__file__).resolve().parents[2]


def random_counts(size: int, seed: int, *, skew: float = 3.0) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return to_counts((rng.random(size) ** skew * 1000).astype(np.int64))


def draw(counts: NDArray[np.int64], number: int, seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return rng.choice(len(counts), number, p=counts / counts.sum())


def encoded(symbols: NDArray[np.int64], counts: NDArray[np.int64]) -> bytes:
    encoder = SymbolEncoder()
    encoder.encode(symbols, Distribution(counts))
    return encoder.finish()


def decoded_by_the_page(data: bytes, counts: NDArray[np.int64], number: int) -> list[int] | None:
    """The decoder of docs/format.md, in whole numbers; None for bytes that were never encoded."""
    size = len(counts)
    below = np.concatenate([[0], np.cumsum(counts)]).tolist()
    edges = [c * (2**24 - size) // 2**16 + i for i, c in enumerate(below[:-1])] + [2**24]
    words = iter(data[i : i + 4].ljust(4, b"\0") for i in range(0, len(data), 4))

    def word() -> int:
        return int.from_bytes(next(words, b""), "big")

    offset, width = word() << 32 | word(), 2**64 - 1
    symbols = []
    for _ in range(number):
        unit = width >> 24
        if offset // unit >= 2**24:
            return None
        symbol = max(i for i in range(size) if edges[i] <= offset // unit)
        symbols.append(symbol)
        offset -= unit * edges[symbol]
        width = unit * (edges[symbol + 1] - edges[symbol])
        if width < 2**32:
            offset, width = offset << 32 | word(), width << 32
    return symbols


@given(st.integers(2, 1024), st.integers(0, 400), st.integers(0, 10**6), st.floats(0, 60))
@settings(max_examples=150, deadline=None)
def test_symbols_survive_and_take_their_entropy_and_ten_bits(
    size: int, number: int, seed: int, skew: float
) -> None:
    counts = random_counts(size, seed, skew=skew)
    symbols = draw(counts, number, seed)
    data = encoded(symbols, counts)
    found = SymbolDecoder(data).decode(Distribution(counts), number) if number else symbols
    assert np.array_equal(found, symbols)
    ideal = -np.log2(counts[symbols] / TOTAL).sum()
    # Leaving every symbol a possibility costs up to 2^-24 of the range for each one in the book.
    assert 8 * len(data) <= ideal * (1 + 1e-3) + number * 1e-3 + 10


@given(st.integers(2, 40), st.integers(1, 60), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_the_arithmetic_is_that_of_the_page(size: int, number: int, seed: int) -> None:
    counts = random_counts(size, seed, skew=20)
    symbols = draw(counts, number, seed)
    assert decoded_by_the_page(encoded(symbols, counts), counts, number) == symbols.tolist()


@given(st.binary(max_size=40), st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_the_symbols_that_the_page_says(data: bytes, seed: int) -> None:
    counts = random_counts(16, seed)
    wanted = decoded_by_the_page(data, counts, 50)
    decoder = SymbolDecoder(data)
    if wanted is None:
        with pytest.raises(PacketError, match="damaged"):
            decoder.decode(Distribution(counts), 50)
    else:
        assert decoder.decode(Distribution(counts), 50).tolist() == wanted


def test_bytes_that_no_encoder_gives_are_refused() -> None:
    with pytest.raises(PacketError, match="damaged"):
        SymbolDecoder(b"\xff" * 8).decode(Distribution(random_counts(16, 0)), 50)


def test_a_carry_that_runs_through_many_words_is_right() -> None:
    # The middle symbol keeps the interval astride a word's edge, so that carries stay undecided.
    counts = np.array([TOTAL // 2 - 1, 2, TOTAL // 2 - 1])
    for tail in ([0], [2], [1] * 9 + [0], [1] * 9 + [2], []):
        symbols = np.array([1] * 40 + tail)
        data = encoded(symbols, counts)
        assert SymbolDecoder(data).decode(Distribution(counts), len(symbols)).tolist() == (
            symbols.tolist()
        )


def test_distributions_of_their_own_give_the_bytes_of_fixed_ones() -> None:
    rows = np.stack([random_counts(64, seed) for seed in range(30)])
    symbols = np.array([draw(row, 1, seed)[0] for seed, row in enumerate(rows)])
    one_by_one, together = SymbolEncoder(), SymbolEncoder()
    for symbol, row in zip(symbols, rows, strict=True):
        one_by_one.encode(np.array([symbol]), Distribution(row))
    together.encode_each(symbols, rows)
    data = together.finish()
    assert data == one_by_one.finish()
    decoder = SymbolDecoder(data)
    found = [decoder.decode_each(row[None])[0] for row in rows[:10]]
    assert [*found, *decoder.decode_each(rows[10:])] == symbols.tolist()


PROCESS = """
import hashlib, sys, numpy as np
from encodec_rt.bitstream.coding import to_counts
from encodec_rt.bitstream.range_coder import Distribution, SymbolDecoder, SymbolEncoder
state, digest = 1, hashlib.sha256()
for book in range(8):
    values = []
    for _ in range(2048):
        state = state * 6364136223846793005 + 1442695040888963407 & 2**64 - 1
        values.append(state >> 33)
    counts = to_counts(np.array(values[:1024]) % 1000 ** 2)
    symbols = np.array(values[1024:]) % 1024
    encoder = SymbolEncoder()
    encoder.encode(symbols, Distribution(counts))
    data = encoder.finish()
    assert np.array_equal(SymbolDecoder(data).decode(Distribution(counts), 1024), symbols)
    digest.update(data)
print(digest.hexdigest())
"""
SHA256 = "deeae4065275471bab03bc582d36131402b457a69443b42837e5ef927f90d608"


@pytest.mark.parametrize("kernel", ["Haswell", "Prescott"])
def test_bytes_are_those_of_every_process_and_version_so_far(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", kernel)
    printed = subprocess.run(
        [sys.executable, "-c", PROCESS], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert printed.stdout.strip() == SHA256


@pytest.mark.parametrize("counts", [[TOTAL], [0, TOTAL], [1, 1], [TOTAL, 1]])
def test_counts_that_are_no_distribution_are_refused(counts: list[int]) -> None:
    with pytest.raises(InputError, match="add up to 65536"):
        Distribution(np.array(counts))
