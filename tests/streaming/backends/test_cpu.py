"""The CPU's rows against float64 and against plain torch, and blocks of many frames."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import BackendUnavailable, ConfigError
from encodec_rt.streaming.backends.cpu.hugepages import in_huge_pages
from encodec_rt.streaming.backends.cpu.ops import CPU, CPU_FAST
from encodec_rt.streaming.backends.select import select
from encodec_rt.streaming.backends.torch import TORCH
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.ops import Ops, Packed
from encodec_rt.streaming.weights import Start
from tests.support.contract import assert_codes_agree, offline_audio, offline_codes, pieces
from tests.support.models import random_model, snr_db, speech
from tests.support.tolerances import bound

SLOTS = (1, 2, 5)
FRAMES = (1, 2, 4)

CONVS = [
    # kernel, stride, dilation, inputs, outputs
    (7, 1, 1, 1, 32),
    (7, 1, 1, 32, 1),
    (7, 1, 3, 16, 4),
    (1, 1, 1, 5, 6),
    (3, 1, 4, 18, 9),
    (12, 1, 1, 20, 7),
    (4, 2, 1, 24, 40),
    (16, 8, 1, 256, 24),
    (9, 3, 1, 17, 5),
    (5, 2, 1, 16, 6),
    (3, 3, 1, 16, 8),
    (2, 1, 1, 3, 2),
    (5, 2, 3, 4, 4),
]
TRANSPOSED = [
    # kernel, stride, inputs, outputs
    (16, 8, 64, 32),
    (4, 2, 7, 3),
    (2, 1, 5, 4),
    (5, 2, 6, 3),
    (9, 3, 4, 8),
    (3, 3, 4, 5),
    (1, 1, 4, 5),
    # A megabyte, which few rows go through in panels.
    (2, 1, 256, 512),
]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        yield


def assert_near(given: Tensor, wanted: Tensor, op: str) -> None:
    assert given.shape == wanted.shape
    assert given.dtype == torch.float32
    error = (given.double() - wanted).norm() / wanted.norm().clamp(min=1e-30)
    assert error <= bound(op, "float32"), f"{op}: {float(error):.2e}"


def assert_row_is_exact(
    op: str,
    call: Callable[[Ops, list[Tensor], list[Tensor]], Tensor],
    given: list[Tensor],
    states: int,
) -> None:
    """``call`` makes the same of ``given`` with CPU as with TORCH in float64.

    The last ``states`` of ``given`` are states, whose followers are compared too; what is given
    has to stay as it was.
    """
    before = [tensor.clone() for tensor in given]
    after = [torch.full_like(state, torch.nan) for state in given[len(given) - states :]]
    result = call(CPU, given, after)
    exact = [tensor.double() for tensor in given]
    exact_after = [state.double() for state in after]
    wanted = call(TORCH, exact, exact_after)
    assert_near(result, wanted, op)
    for state, wanted_state in zip(after, exact_after, strict=True):
        if state.numel():
            assert_near(state, wanted_state, op)
    for tensor, kept in zip(given, before, strict=True):
        assert torch.equal(tensor, kept)


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_convolution_is_exact(conv: tuple[int, ...]) -> None:
    kernel, stride, dilation, inputs, outputs = conv
    weight, bias = torch.randn(outputs, inputs, kernel), torch.randn(outputs)
    past = (kernel - 1) * dilation + 1 - stride

    elu = False

    def call(ops: Ops, tensors: list[Tensor], after: list[Tensor]) -> Tensor:
        x, context = tensors
        packed = ops.pack_conv1d(
            weight.to(x.dtype), bias.to(x.dtype), stride=stride, dilation=dilation
        )
        return ops.conv1d(
            x, context, after[0], packed, kernel=kernel, stride=stride, dilation=dilation, elu=elu
        )

    # 3000 steps are beyond what is copied out as windows.
    for slots, steps in [*itertools.product(SLOTS, FRAMES), (1, 3000), (2, 3000)]:
        elu = not elu
        x = torch.randn(slots, steps * stride, inputs)
        assert_row_is_exact("cpu conv1d", call, [x, torch.randn(slots, past, inputs)], 1)


@pytest.mark.parametrize("conv", TRANSPOSED, ids=str)
def test_transposed_convolution_is_exact(conv: tuple[int, ...]) -> None:
    kernel, stride, inputs, outputs = conv
    weight, bias = torch.randn(inputs, outputs, kernel), torch.randn(outputs)

    def call(ops: Ops, tensors: list[Tensor], after: list[Tensor]) -> Tensor:
        x, tail = tensors
        packed = ops.pack_conv_transpose1d(
            weight.to(x.dtype), bias.to(x.dtype), stride=stride, dilation=1
        )
        return ops.conv_transpose1d(x, tail, after[0], packed, kernel=kernel, stride=stride)

    for slots, steps in itertools.product(SLOTS, FRAMES):
        tail = torch.randn(slots, kernel - stride, outputs)
        given = [torch.randn(slots, steps, inputs), tail]
        assert_row_is_exact("conv_transpose1d", call, given, 1)


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("shape", [(3, 1, 32, 16), (3, 9, 8, 3), (5, 2, 24, 24), (1, 1, 6, 2)])
def test_residual_block_is_exact(shape: tuple[int, ...], shortcut: bool) -> None:
    kernel, dilation, channels, hidden = shape
    weights: Packed = (
        torch.randn(hidden, channels, kernel),
        torch.randn(hidden),
        torch.randn(channels, hidden, 1),
        torch.randn(channels),
    )
    if shortcut:
        weights += (torch.randn(channels, channels, 1), torch.randn(channels))

    def call(ops: Ops, tensors: list[Tensor], after: list[Tensor]) -> Tensor:
        x, context = tensors
        packed = ops.pack_resblock(tuple(weight.to(x.dtype) for weight in weights))
        return ops.resblock(x, context, after[0], packed, kernel=kernel, dilation=dilation)

    for slots, steps in [*itertools.product(SLOTS, (1, 3, 40)), (1, 1500), (3, 1500)]:
        context = torch.randn(slots, (kernel - 1) * dilation, channels)
        given = [torch.randn(slots, steps, channels), context]
        assert_row_is_exact("resblock", call, given, 1)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_lstm_is_exact(layers: int) -> None:
    width = 24
    shapes = ((4 * width, width), (4 * width, width), (4 * width,), (4 * width,))
    weights = tuple(torch.randn(shape) * width**-0.5 for _ in range(layers) for shape in shapes)

    def call(ops: Ops, tensors: list[Tensor], after: list[Tensor]) -> Tensor:
        packed = ops.pack_lstm(tuple(weight.to(tensors[0].dtype) for weight in weights))
        (x, hidden, cell), (hidden_next, cell_next) = tensors, after
        return ops.lstm(x, hidden, cell, hidden_next, cell_next, packed)

    for slots, steps in itertools.product(SLOTS, (*FRAMES, 40)):
        states = [torch.randn(slots, layers, width) for _ in range(2)]
        assert_row_is_exact("lstm", call, [torch.randn(slots, steps, width), *states], 2)


def test_codes_are_those_of_float64_but_for_near_ties() -> None:
    books = torch.randn(6, 64, 16)
    latents = torch.randn(3, 500, 16)
    given = CPU.rvq_encode(latents, CPU.pack_codebooks((books,)), codebooks=5)
    exact = TORCH.rvq_encode(latents.double(), TORCH.pack_codebooks((books.double(),)), codebooks=5)
    assert given.shape == (3, 500, 5)
    assert given.dtype == torch.int64
    parted = (given != exact).any(-1)
    assert parted.float().mean() <= bound("near tie", "share")
    plain = TORCH.rvq_encode(latents, TORCH.pack_codebooks((books,)), codebooks=5)
    assert (given != plain).any(-1).float().mean() <= bound("near tie", "share")


def test_lowest_index_wins_a_tie() -> None:
    books = torch.randn(3, 40, 16)
    doubled = torch.cat([books, books], dim=1)
    latents = torch.randn(2, 200, 16)
    codes = CPU.rvq_encode(latents, CPU.pack_codebooks((doubled,)), codebooks=3)
    assert bool((codes < 40).all())


def test_decoded_latents_are_the_sums_of_the_named_vectors() -> None:
    books = torch.randn(6, 64, 16)
    codes = torch.randint(64, (3, 7, 4))
    before = codes.clone()
    given = CPU.rvq_decode(codes, CPU.pack_codebooks((books,)))
    wanted = TORCH.rvq_decode(codes, TORCH.pack_codebooks((books.double(),)))
    assert_near(given, wanted, "rvq_decode")
    assert torch.equal(codes, before)


def test_commit_moves_the_active_rows_alone() -> None:
    for active in ([True], [False], [True, False, True]):
        now, proposed = torch.randn(len(active), 5), torch.randn(len(active), 5)
        kept, mask = now.clone(), torch.tensor(active)
        CPU.commit(now, proposed, mask)
        assert torch.equal(now[mask], proposed[mask])
        assert torch.equal(now[~mask], kept[~mask])


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (7, 1), (4, 2)])
def test_garbage_in_a_slot_reaches_no_other_one(kernel: int, stride: int) -> None:
    weight, bias = torch.randn(20, 32, kernel), torch.randn(20)
    packed = CPU.pack_conv1d(weight, bias, stride=stride, dilation=1)
    x, context = torch.randn(3, 800, 32), torch.randn(3, kernel - stride, 32)

    def middle() -> tuple[Tensor, Tensor]:
        after = torch.empty_like(context)
        y = CPU.conv1d(
            x, context, after, packed, kernel=kernel, stride=stride, dilation=1, elu=True
        )
        return y[1].clone(), after[1]

    clean = middle()
    x[[0, 2]], context[[0, 2]] = torch.nan, torch.inf
    for given, wanted in zip(middle(), clean, strict=True):
        assert torch.equal(given, wanted)


def test_a_tensor_in_huge_pages_is_the_same_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    given = torch.randn(700, 300)
    for tensor in (given, given.t(), given.half()):
        moved = in_huge_pages(tensor)
        assert torch.equal(moved, tensor)
        assert moved.stride() == tensor.stride()
    assert in_huge_pages(given).data_ptr() % (2 << 20) == 0
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert in_huge_pages(given) is given


@pytest.fixture(scope="module", params=["reflect", "constant"])
def codec(request: pytest.FixtureRequest) -> Codec:
    config = EncodecConfig(
        num_filters=4,
        hidden_size=16,
        codebook_size=64,
        target_bandwidths=(1.0, 2.0),
        pad_mode=request.param,
    )
    return Codec(random_model(config), backend="cpu")


@pytest.mark.parametrize("block_frames", [2, 5, 64])
@pytest.mark.parametrize("length", [100, 6400, 24_001])
def test_blocks_of_frames_equal_offline(codec: Codec, length: int, block_frames: int) -> None:
    audio = speech(1, length, seed=length)
    encoder = codec.stream_encoder(2.0, start="exact", block_frames=block_frames)
    decoder = codec.stream_decoder(2.0, start="exact", block_frames=block_frames)
    codes = np.concatenate([encoder.push(audio[0]), encoder.flush()])
    assert_codes_agree(codec.model, audio, codes, offline_codes(codec.model, audio))
    heard = np.concatenate([decoder.push(codes), decoder.flush()])
    wanted = offline_audio(codec.model, codes)[0]
    assert heard.shape == wanted.shape
    assert snr_db(wanted, heard) >= -20 * np.log10(bound("stream audio", "float32"))


@pytest.mark.parametrize("start", ["exact", "primed"])
def test_blocks_are_bitwise_the_same_however_pushed(codec: Codec, start: Start) -> None:
    audio = speech(9999)

    def made(sizes: list[int], frames: list[int]) -> tuple[np.ndarray, np.ndarray]:
        encoder = codec.stream_encoder(2.0, start=start, block_frames=4)
        decoder = codec.stream_decoder(2.0, start=start, block_frames=3)
        codes = [encoder.push(audio[piece]) for piece in pieces(len(audio), sizes)]
        joined = np.concatenate([*codes, encoder.flush()])
        heard = [decoder.push(joined[piece]) for piece in pieces(len(joined), frames)]
        return joined, np.concatenate([*heard, decoder.flush()])

    whole = made([9999], [100])
    for other in (made([320], [1]), made([1, 4000, 77], [2, 0, 5])):
        for given, wanted in zip(other, whole, strict=True):
            assert np.array_equal(given, wanted)


def test_a_block_of_no_frames_is_refused(codec: Codec) -> None:
    with pytest.raises(ConfigError, match="block_frames=0"):
        codec.stream_encoder(2.0, block_frames=0)


def test_fast_precision_is_near() -> None:
    # Wide enough for weights of a megabyte, which alone are halved.
    config = EncodecConfig(num_filters=16, codebook_size=64, target_bandwidths=(1.0, 2.0))
    model, audio = random_model(config), speech(24_000)
    exact, fast = Codec(model, backend="cpu"), Codec(model, backend="cpu", precision="fast")
    codes, flipped = (codec.stream_encoder(2.0).push(audio) for codec in (exact, fast))
    assert (codes != flipped).any(1).mean() <= bound("code flips", "float16")
    sound, heard = (codec.stream_decoder(2.0).push(codes) for codec in (exact, fast))
    assert snr_db(sound, heard) >= -20 * np.log10(bound("stream audio", "float16"))
    assert not np.array_equal(heard, sound)


def test_cpu_is_what_a_cpu_gets_by_itself() -> None:
    assert select("auto", torch.device("cpu")) is CPU
    assert select("cpu", torch.device("cpu")) is CPU
    assert select("auto", torch.device("cpu"), "fast") is CPU_FAST
    with pytest.raises(BackendUnavailable, match="device='cpu'"):
        select("cpu", torch.device("meta"))
