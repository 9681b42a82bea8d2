"""The codebook search in tables of products between the codebooks.

With r_q = x - sum_{i<q} e_i,code_i the score of a vector is

    |e_qv|^2 - 2 r_q . e_qv = |e_qv|^2 - 2 x . e_qv + sum_{i<q} 2 e_i,code_i . e_qv

One launch computes the products with x for all codebooks at once. In a second launch, one program
per frame keeps these scores in registers; each stage takes the minimum of its own scores and adds
one row of a table, 4 KiB for each later codebook. So no codebook is read between stages: one slot's
search is limited by the latency of these rows, and many slots' by one matrix product.

For many slots that product reads transposed codebooks, [Q, D, V]. Untransposed, neighbouring
vectors lie 128 bytes apart in shared memory, which spans all of its 32 banks exactly, so eight
lanes read from the same bank.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from encodec_rt_kernels import configs
from encodec_rt_kernels.device import Arguments, follow, launch_metadata, load_tile, moved_once


def products(arguments: Arguments) -> int:
    """Number of products of the latents with the vectors of all codebooks searched."""
    vectors = arguments["books"] * arguments["SIZE"]
    return int(arguments["frames"] * vectors * arguments["WIDTH"])


def moved(arguments: Arguments) -> int:
    """Bytes that a search moves; codebooks that are passed but not searched are left out."""
    unread = 0
    for name, width in (("vectors_ptr", arguments["WIDTH"]), ("norms_ptr", 1)):
        unread += (arguments[name].shape[0] - arguments["books"]) * width
    return moved_once(arguments) - int(4 * unread * arguments["SIZE"])


def _rows_read(arguments: Arguments) -> int:
    """Bytes that a search in tables moves: scores, codes, and per frame one row of each table."""
    scores, codes, size = (arguments[name] for name in ("scores_ptr", "codes_ptr", "SIZE"))
    pairs = (codes.shape[-1] - 1) * codes.numel() // 2
    return int(4 * scores.numel() + 8 * codes.numel() + 4 * pairs * size)


@triton.jit(do_not_specialize=["frames", "books"], launch_metadata=launch_metadata(products, moved))
def _rvq_score_kernel(
    latents_ptr,
    vectors_ptr,
    norms_ptr,
    scores_ptr,
    frames,
    books,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    TURNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    frame = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    book = tl.program_id(1).to(tl.int64)
    v = tl.program_id(2) * COLS + tl.arange(0, COLS)
    v_valid = v < SIZE
    vectors_ptr += book * SIZE * WIDTH
    acc = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, WIDTH, DEPTH):
        d = start + tl.arange(0, DEPTH)
        d_valid = d < WIDTH
        latent = load_tile(latents_ptr, frame, frame < frames, d, d_valid, WIDTH)
        if TURNED:
            vector = load_tile(vectors_ptr, d, d_valid, v, v_valid, SIZE)
        else:
            vector = tl.trans(load_tile(vectors_ptr, v, v_valid, d, d_valid, WIDTH))
        acc = tl.dot(latent, vector, acc, input_precision=DOT)
    norm = tl.load(norms_ptr + book * SIZE + v, mask=v_valid, other=0.0)
    score = norm[None, :] - 2.0 * acc
    tl.store(
        scores_ptr + (frame * books + book)[:, None] * SIZE + v[None, :],
        score,
        mask=(frame < frames)[:, None] & v_valid[None, :],
    )


@triton.jit(do_not_specialize=["frames", "books"], launch_metadata=launch_metadata(products, moved))
def _rvq_score_vector_kernel(
    latents_ptr,
    vectors_ptr,
    norms_ptr,
    scores_ptr,
    frames,
    books,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHAINED: tl.constexpr,
):
    book = tl.program_id(1).to(tl.int64)
    v = tl.program_id(0) * COLS + tl.arange(0, COLS)
    v_valid = v < SIZE
    d = tl.arange(0, DEPTH)
    d_valid = d < WIDTH
    # [COLS, DEPTH], kept in registers for all frames, and read before the frames are ready.
    vector = load_tile(vectors_ptr + book * SIZE * WIDTH, v, v_valid, d, d_valid, WIDTH)
    norm = tl.load(norms_ptr + book * SIZE + v, mask=v_valid, other=0.0)
    follow(CHAINED)
    for index in range(0, frames):
        frame = tl.cast(index, tl.int64)
        latent = tl.load(latents_ptr + frame * WIDTH + d, mask=d_valid, other=0.0)
        score = norm - 2.0 * tl.sum(vector * latent[None, :], axis=1)
        tl.store(scores_ptr + (frame * books + book) * SIZE + v, score, mask=v_valid)


@triton.jit(
    do_not_specialize=["books"], launch_metadata=launch_metadata(lambda arguments: 0, _rows_read)
)
def _rvq_choose_kernel(
    scores_ptr,
    tables_ptr,
    codes_ptr,
    books,
    SIZE: tl.constexpr,
    BOOKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    frame = tl.program_id(0).to(tl.int64)
    stage = tl.arange(0, ROWS)
    v = tl.arange(0, COLS)
    valid = (stage < books)[:, None] & (v < SIZE)[None, :]
    place = stage[:, None] * SIZE + v[None, :]
    scores = tl.load(scores_ptr + frame * books * SIZE + place, mask=valid, other=float("inf"))
    for book in range(books):
        own = tl.sum(tl.where((stage == book)[:, None], scores, 0.0), axis=0)
        code = tl.min(own, axis=0, return_indices=True)[1]
        # An idle slot's scores may be NaN, and its minimum any column: read no row past the end.
        code = tl.minimum(code, SIZE - 1)
        tl.store(codes_ptr + frame * books + book, code.to(tl.int64))
        later = BOOKS - 1 - book
        row = tables_ptr + code * later * SIZE - (book + 1) * SIZE
        scores += tl.load(row + place, mask=valid & (stage > book)[:, None], other=0.0)
        tables_ptr += SIZE * later * SIZE


def codebook_tables(vectors: Tensor) -> Tensor:
    """Vectors [Q, V, D] -> the tables of the first codebooks, flat, rounded once from float64.

    For each codebook i in turn: 2 e_i,v . e_j,w in the order [v, j, w], j > i. With 8 codebooks or
    more, of 1024 vectors each, they take 112 MiB.
    """
    books = vectors[: configs.TABLE_BOOKS].double()
    tables = (2 * book @ books[i + 1 :].flatten(0, 1).t() for i, book in enumerate(books))
    return torch.cat([table.to(vectors.dtype).flatten() for table in tables])


def score_vectors(vectors: Tensor, rules: configs.Rules) -> Tensor:
    """The first codebooks of vectors [Q, V, D], as the scores read them: [Q, D, V] or [Q, V, D]."""
    books = vectors[: configs.TABLE_BOOKS]
    return books.transpose(1, 2).contiguous() if configs.transposes_codebooks(rules) else books


def search_tables(
    latents: Tensor,
    vectors: Tensor,
    norms: Tensor,
    tables: Tensor,
    codes: Tensor,
    rules: configs.Rules,
) -> None:
    """Write the codes [S, T, Q] of latents [S, T, D]; Q is at most configs.TABLE_BOOKS.

    ``vectors`` come from ``score_vectors``, ``tables`` from ``codebook_tables``.
    """
    slots, steps, books = codes.shape
    transposed, width = configs.transposes_codebooks(rules), latents.shape[-1]
    frames, table_books, size = slots * steps, len(vectors), norms.shape[1]
    arch = configs.architecture(latents.device)
    tile = configs.rvq_score(arch, rules, width, size)
    col_tiles = triton.cdiv(size, tile.cols)
    grid: tuple[int, ...] = (triton.cdiv(frames, tile.rows), books, col_tiles)
    launch = _rvq_score_kernel
    sizes: dict[str, int | str] = {"ROWS": tile.rows, "DOT": tile.dot, "TURNED": transposed}
    if rules.few:
        launch, grid, sizes = _rvq_score_vector_kernel, (col_tiles, books), {}
    scores = torch.empty(frames, books, size, device=latents.device)
    launch[grid](
        latents,
        vectors,
        norms,
        scores,
        frames,
        books,
        WIDTH=width,
        SIZE=size,
        COLS=tile.cols,
        DEPTH=tile.depth,
        **sizes,
        **tile.options,
    )
    _rvq_choose_kernel[(frames,)](
        scores,
        tables,
        codes,
        books,
        SIZE=size,
        BOOKS=table_books,
        ROWS=triton.next_power_of_2(table_books),
        COLS=triton.next_power_of_2(size),
        **configs.rvq_choose(arch, rules),
    )
