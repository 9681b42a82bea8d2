from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encodec_rt.bitstream.range_coder import TOTAL
from encodec_rt.errors import InputError, PacketError, WeightsError
from encodec_rt.lm.coding import LmCoder
from encodec_rt.lm.integer import IntegerLm, Product, to_probabilities
from encodec_rt.lm.stepping import LmStepper
from encodec_rt.lm.tensors import LmConfig
from encodec_rt.types import Codes, Floats
from tests.support.lms import SMALL, likely_codes, random_lm

ROOT = Path(__file__).resolve().parents[2]
FULL = LmConfig((2, 2, 4), 64, (96, 64, 64), (1, 3, 16))
"""As wide as a model of the package, so that sums come near the largest."""


def in_double(x: Floats, weight: Floats) -> NDArray[np.float64]:
    product: NDArray[np.float64] = np.matmul(x.astype(np.float64), weight.astype(np.float64))
    return product


def in_integers(x: Floats, weight: Floats) -> NDArray[np.int64]:
    product: NDArray[np.int64] = np.matmul(x.astype(np.int64), weight.astype(np.int64))
    return product


def permuted(x: Floats, weight: Floats) -> Floats:
    order = np.random.default_rng(x.shape[1]).permutation(x.shape[1])
    product: Floats = np.matmul(x[:, order], weight[order])
    return product


def one_by_one(x: Floats, weight: Floats) -> Floats:
    return np.stack([np.matmul(row, weight) for row in x])


def in_halves(x: Floats, weight: Floats) -> Floats:
    half = x.shape[1] // 2
    halves = np.matmul(x[:, :half], weight[:half]), np.matmul(x[:, half:], weight[half:])
    product: Floats = halves[0] + halves[1]
    return product


def by_torch(threads: int) -> Product:
    def product(x: Floats, weight: Floats) -> Floats:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return (torch.from_numpy(x) @ torch.from_numpy(weight)).numpy()
        finally:
            torch.set_num_threads(before)

    return product


PRODUCTS: dict[str, Product] = {
    "float32": np.matmul, "float64": in_double, "integers": in_integers, "permuted": permuted,
    "one by one": one_by_one, "in halves": in_halves, "torch": by_torch(1),
    "torch, two threads": by_torch(2),
}  # fmt: skip


def predicted(
    model: IntegerLm, codes: Codes, product: Product, depth: int | None = None
) -> NDArray[np.int64]:
    """Counts [T, Q, size] of all codes at once."""
    depth = depth or len(model.config.layers)
    books = sum(model.config.layers[:depth])
    contexts = model.contexts(codes[:-1, :books], model.start(), depth, product)
    below = np.zeros((len(codes), model.config.width))
    found = []
    for book in range(books):
        found.append(model.counts(contexts, below, book, product))
        below += model.embed(codes[:, book], book)
    return np.stack(found, axis=1)


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_every_way_to_multiply_gives_the_same_counts(name: str, extreme: bool) -> None:
    model = random_lm(FULL, extreme=extreme)
    codes = np.random.default_rng(1).integers(0, 64, (40, 8), dtype=np.uint16)
    wanted = predicted(model, codes, in_integers)
    assert np.array_equal(predicted(model, codes, PRODUCTS[name]), wanted)
    assert wanted.min() >= 1
    assert (wanted.sum(axis=2) == TOTAL).all()


@given(st.integers(1, 60), st.integers(0, 10**6), st.lists(st.integers(1, 20), max_size=8))
@settings(max_examples=30, deadline=None)
def test_pieces_of_any_size_give_the_bits_of_the_whole(
    frames: int, seed: int, sizes: list[int]
) -> None:
    model = random_lm(seed=seed % 7)
    codes = np.random.default_rng(seed).integers(0, 16, (frames, 4), dtype=np.uint16)
    wanted = predicted(model, codes, np.matmul)
    state, start = model.start(), 0
    for size in [*sizes, frames]:
        piece = codes[start : start + size]
        if not len(piece):
            break
        contexts = model.contexts(piece[:-1], state, 3)
        state.last = model.embedded(piece[-1:])
        below = np.zeros((len(piece), model.config.width))
        for book in range(4):
            counts = model.counts(contexts, below, book)
            assert np.array_equal(counts, wanted[start : start + size, book])
            below += model.embed(piece[:, book], book)
        start += size
    assert [past.shape[0] for past in state.past] == [1, 2, 5]


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_one_frame_after_the_other_gives_the_counts_of_all(name: str, extreme: bool) -> None:
    model = random_lm(FULL, extreme=extreme)
    codes = np.random.default_rng(1).integers(0, 64, (40, 8), dtype=np.uint16)
    wanted = predicted(model, codes, in_integers)
    stepper, state = LmStepper(model, 3, PRODUCTS[name]), model.start()
    for frame, counts in zip(codes, wanted, strict=True):
        stepper.begin(state)
        for code, row in zip(frame, counts, strict=True):
            assert np.array_equal(stepper.probabilities()[0] * TOTAL, row)
            stepper.take(int(code))
        stepper.end(state)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_layer_sees_nothing_of_those_above(depth: int) -> None:
    model = random_lm()
    codes = likely_codes(model, 50)
    books = sum(model.config.layers[:depth])
    whole = predicted(model, codes, np.matmul)[:, :books]
    assert np.array_equal(predicted(model, codes, np.matmul, depth), whole)
    other = codes.copy()
    other[:, books:] = 15 - other[:, books:]
    assert np.array_equal(predicted(model, other, np.matmul)[:, :books], whole)


@pytest.mark.parametrize("writer", PRODUCTS)
@pytest.mark.parametrize("reader", ["float32", "integers", "torch, two threads"])
def test_a_stream_of_one_is_decoded_by_every_other(writer: str, reader: str) -> None:
    model = random_lm()
    codes = likely_codes(model, 120)
    encoder, decoder = LmCoder(model, PRODUCTS[writer]), LmCoder(model, PRODUCTS[reader])
    given, packed = 0, 0
    for start in range(0, 120, 40):
        part, restart = codes[start : start + 40], start == 0
        payloads = encoder.encode(part, model.config.layers, restart=restart)
        given += sum(len(payload.data) for payload in payloads)
        packed += sum(payload.raw for payload in payloads)
        found = decoder.decode(payloads, model.config.layers, 40, restart=restart)
        assert np.array_equal(found, part)
    assert packed == 0
    assert given < 120 * 4 / 2 * 0.9


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 3), st.booleans()), min_size=1, max_size=8
    )
)
@settings(max_examples=25, deadline=None)
def test_packets_with_fewer_layers_and_restarts_anywhere_are_decoded(
    packets: list[tuple[int, int, bool]],
) -> None:
    model = random_lm()
    encoder, decoder, lower = LmCoder(model), LmCoder(model), LmCoder(model)
    layers = model.config.layers
    for index, (frames, depth, restart) in enumerate(packets):
        codes = likely_codes(model, frames, seed=index)[:, : sum(layers[:depth])]
        restart = restart or index == 0
        payloads = encoder.encode(codes, layers, restart=restart)
        assert np.array_equal(decoder.decode(payloads, layers, frames, restart=restart), codes)
        # What was scaled down is decoded from what is left.
        found = lower.decode(payloads[:1], layers[:1], frames, restart=restart)
        assert np.array_equal(found, codes[:, :1])


def test_codes_that_surprise_the_model_are_packed_and_remembered() -> None:
    model = random_lm()
    rng = np.random.default_rng(0)
    likely = likely_codes(model, 80)
    codes = np.concatenate([likely[:40], 15 - likely[40:60], likely[60:]])
    codes[40:60] = rng.integers(0, 16, (20, 4))
    encoder, decoder = LmCoder(model), LmCoder(model)
    kinds = []
    for start in range(0, 80, 20):
        part = codes[start : start + 20]
        payloads = encoder.encode(part, model.config.layers, restart=start == 0)
        kinds += [payload.raw for payload in payloads]
        found = decoder.decode(payloads, model.config.layers, 20, restart=start == 0)
        assert np.array_equal(found, part)
    assert {True, False} == set(kinds)


def test_probabilities_are_powers_of_two_in_whole_numbers() -> None:
    logits = np.array([[0, -64, -128, -6400, 0.0], [5, 5, 5, 5, 5]])
    counts = to_probabilities(logits)
    assert counts.tolist() == [[23832, 11915, 5958, 1, 23830], [13108, 13107, 13107, 13107, 13107]]


PROCESS = """
import hashlib, numpy as np
from tests.support.lms import random_lm, likely_codes
from encodec_rt.lm.coding import LmCoder
model = random_lm()
codes = likely_codes(model, 300)
payloads = LmCoder(model).encode(codes, model.config.layers, restart=True)
digest = hashlib.sha256(model.sha256 + codes.tobytes())
for payload in payloads:
    digest.update(payload.data)
print(digest.hexdigest())
"""
SHA256 = "2891a3eb2e6a71aa7954a4ea108d9839a71825862e01c9b3ffd9bd7cf0303faf"


@pytest.mark.parametrize("kernel", ["Haswell", "Nehalem", "Prescott"])
def test_every_blas_and_process_gives_the_bytes_of_the_first(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", kernel)
    printed = subprocess.run(
        [sys.executable, "-c", PROCESS], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert printed.stdout.strip() == SHA256


def test_a_model_survives_its_file(tmp_path: Path) -> None:
    model = random_lm()
    model.save(tmp_path / "lm.safetensors")
    again = IntegerLm.load(tmp_path / "lm.safetensors")
    assert again.sha256 == model.sha256
    assert again.config == model.config
    assert (
        hashlib.sha256(again.sha256).digest() != hashlib.sha256(random_lm(seed=1).sha256).digest()
    )
    codes = likely_codes(model, 20)
    assert np.array_equal(predicted(model, codes, np.matmul), predicted(again, codes, np.matmul))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("block.0.mix.weight", lambda t: np.full_like(t, -128), "-128"),
        ("block.0.mix.weight", lambda t: t.astype(np.int16), "int16"),
        ("head.0.bias", lambda t: np.full_like(t, 2**30), r"below 2\^30"),
        ("head.0.multiplier", lambda t: np.full_like(t, 2**16), "0 to 65535"),
        ("head.0.multiplier", lambda t: -t, "0 to 65535"),
        ("project.shift", lambda t: np.full_like(t, 41), "40"),
        ("embedding.0", lambda t: t[1:], "is needed"),
        ("project.weight", lambda t: np.ones_like(t), "codes of those above"),
    ],
)
def test_weights_that_could_not_be_exact_are_refused(
    name: str, change: Callable[[NDArray[Any]], NDArray[Any]], message: str
) -> None:
    tensors = dict(random_lm().tensors)
    tensors[name] = change(tensors[name])
    with pytest.raises(WeightsError, match=message):
        IntegerLm(tensors, SMALL)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not hold a language model"):
        IntegerLm.load(tmp_path / "none")
    (tmp_path / "x").write_bytes(b"x" * 100)
    with pytest.raises(WeightsError, match="does not hold a language model"):
        IntegerLm.load(tmp_path / "x")
    with pytest.raises(WeightsError, match="520"):
        LmConfig((2,), 16, (521,), (1,))
    with pytest.raises(WeightsError, match="not those"):
        IntegerLm({}, SMALL)


def test_a_stream_of_other_layers_is_refused() -> None:
    coder = LmCoder(random_lm())
    with pytest.raises(InputError, match="the language model has"):
        coder.encode(np.zeros((3, 4), np.uint16), (2, 2), restart=True)
    with pytest.raises(PacketError, match="the language model has"):
        coder.decode([], (2, 2), 3, restart=True)


def test_predicting_needs_no_torch() -> None:
    code = "import encodec_rt.lm.coding, sys; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == "False"
