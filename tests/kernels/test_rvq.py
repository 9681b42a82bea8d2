"""The kernels of the quantiser and of the state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from encodec_rt_kernels import Rules, commit, configs, pack_codebooks, rvq_decode, rvq_encode
from tests.support.decisions import assert_right, judge
from tests.support.kernel_harness import DEVICE, error, in_any_order, poison_empty, randn
from tests.support.tolerances import bound


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    poison_empty(monkeypatch)


def codebooks(books: int, size: int, width: int) -> Tensor:
    """Books whose vectors shrink from stage to stage, as trained ones do."""
    return torch.stack([randn(size, width, scale=0.85**stage) for stage in range(books)])


@pytest.mark.parametrize(
    ("slots", "steps", "books", "size", "width"),
    [
        pytest.param(1, 1, 1, 16, 8, id="one frame, one book"),
        pytest.param(3, 5, 4, 16, 8, id="odd number of frames"),
        pytest.param(9, 1, 3, 70, 5, id="size and width no multiple of a tile"),
        pytest.param(2, 12, 32, 128, 16, id="32 books"),
        pytest.param(13, 1, 8, 1024, 128, id="full size"),
    ],
)
def test_codes_are_those_of_an_exact_search(
    slots: int, steps: int, books: int, size: int, width: int
) -> None:
    vectors, latents = codebooks(books, size, width), randn(slots, steps, width)
    packed = pack_codebooks((vectors,))
    (codes,) = in_any_order(lambda: (rvq_encode(latents, packed, codebooks=books),))
    assert codes.shape == (slots, steps, books)
    assert codes.dtype == torch.int64
    assert_right(latents.flatten(0, 1), vectors, codes.flatten(0, 1))


FEW = Rules(few=True)


@pytest.mark.parametrize(
    ("slots", "steps", "books", "size", "width", "codes_asked"),
    [
        pytest.param(1, 1, 1, 16, 8, 1, id="one frame, one book"),
        pytest.param(3, 5, 4, 16, 8, 4, id="odd number of frames"),
        pytest.param(9, 1, 3, 70, 5, 2, id="size and width no multiple of a tile, fewer codes"),
        pytest.param(2, 1, 12, 20, 8, 12, id="more books than tables"),
        pytest.param(3, 1, 8, 1024, 128, 8, id="full size"),
    ],
)
def test_codes_from_tables_are_those_of_an_exact_search(
    slots: int, steps: int, books: int, size: int, width: int, codes_asked: int
) -> None:
    vectors, latents = codebooks(books, size, width), randn(slots, steps, width)
    packed = pack_codebooks((vectors,), rules=FEW)
    (codes,) = in_any_order(
        lambda: (rvq_encode(latents, packed, codebooks=codes_asked, rules=FEW),)
    )
    assert codes.shape == (slots, steps, codes_asked)
    assert_right(latents.flatten(0, 1), vectors[:codes_asked], codes.flatten(0, 1))


def test_tables_take_what_is_said() -> None:
    books = torch.zeros(32, 1024, 128, device="meta")
    for rules, more in ((FEW, False), (Rules(), True)):
        vectors, _, tables, first = pack_codebooks((books,), rules=rules)
        assert tables.nbytes == 112 << 20
        assert first.nbytes == 4 << 20
        assert (first.untyped_storage() is not vectors.untyped_storage()) == more
    assert configs.TABLE_BOOKS == 8


def test_the_lowest_of_equal_vectors_wins_in_tables() -> None:
    vectors = codebooks(2, 256, 16)
    for copy in (200, 70):
        vectors[0, copy] = vectors[0, 3]
    vectors[1, 255] = vectors[1, 0]
    latents = vectors[0, [3, 70, 200]] + vectors[1, 0]
    packed = pack_codebooks((vectors,), rules=FEW)
    codes = rvq_encode(latents[:, None], packed, codebooks=2, rules=FEW)
    assert torch.equal(codes[:, 0].cpu(), torch.tensor([[3, 0]] * 3))


def test_fewer_books_give_the_first_codes() -> None:
    packed = pack_codebooks((codebooks(4, 16, 8),))
    latents = randn(3, 2, 8)
    whole = rvq_encode(latents, packed, codebooks=4)
    assert torch.equal(rvq_encode(latents, packed, codebooks=2), whole[..., :2])


def test_the_lowest_of_equal_vectors_wins_across_tiles() -> None:
    vectors = codebooks(2, 256, 16)
    for copy in (200, 70):
        vectors[0, copy] = vectors[0, 3]
    vectors[0, 129] = vectors[0, 128]
    vectors[1, 255] = vectors[1, 0]
    wanted = torch.tensor([3, 3, 3, 128, 128])
    latents = vectors[0, [3, 70, 200, 128, 129]] + vectors[1, 0]
    codes = rvq_encode(latents[:, None], pack_codebooks((vectors,)), codebooks=2)
    assert torch.equal(codes[:, 0, 0].cpu(), wanted)
    assert codes[:, 0, 1].eq(0).all()


def test_a_book_of_equal_vectors_gives_code_zero() -> None:
    vectors = torch.ones(1, 80, 8, device=DEVICE)
    assert rvq_encode(randn(3, 1, 8), pack_codebooks((vectors,)), codebooks=1).eq(0).all()


def test_a_wrong_code_is_found() -> None:
    vectors, latents = codebooks(3, 16, 8), randn(20, 8)
    codes = rvq_encode(latents[:, None], pack_codebooks((vectors,)), codebooks=3)[:, 0]
    codes[4, 1] = (codes[4, 1] + 1) % 16
    found = judge(latents, vectors, codes)
    assert found.worst_excess > bound("near tie", "float32")
    assert found.disagreeing > 0


@pytest.mark.parametrize(
    ("slots", "steps", "books", "size", "width"),
    [(1, 1, 1, 16, 8), (3, 5, 4, 16, 5), (2, 2, 32, 1024, 128)],
)
def test_decoding_sums_the_named_vectors(
    slots: int, steps: int, books: int, size: int, width: int
) -> None:
    vectors = codebooks(books, size, width)
    codes = torch.randint(size, (slots, steps, books)).to(DEVICE)
    (latents,) = in_any_order(lambda: (rvq_decode(codes, pack_codebooks((vectors,))),))
    wanted = torch.stack([vectors[book].double()[codes[..., book]] for book in range(books)]).sum(0)
    assert error(latents, wanted) <= bound("rvq_decode", "float32")


def test_a_code_outside_its_book_is_not_read() -> None:
    vectors = codebooks(2, 16, 8)
    codes = torch.tensor([[[3, 5]], [[-1, 5]], [[3, 2**40]]], device=DEVICE)
    latents = rvq_decode(codes, pack_codebooks((vectors,)))
    assert torch.equal(latents[1, 0], vectors[1, 5])
    assert torch.equal(latents[2, 0], vectors[0, 3])


@pytest.mark.parametrize("size", [1, 1024, 2500])
def test_commit_moves_the_active_rows_and_no_other(size: int) -> None:
    active = torch.tensor([True, False, True, True, False], device=DEVICE)
    before, proposed = randn(5, size), randn(5, size)
    proposed[1] = torch.nan

    def run() -> tuple[Tensor]:
        now = before.clone()
        commit(now, proposed, active)
        return (now,)

    (now,) = in_any_order(run)
    assert torch.equal(now[active], proposed[active])
    assert torch.equal(now[~active], before[~active])
