"""Residual vector quantisation: the nearest code vector, stage after stage, and the way back.

    code_q = argmin_v |e_qv|^2 - 2 r_q . e_qv     lowest v of equals;  r_{q+1} = r_q - e_q,code_q

Encoding is one launch: a program keeps the residual of its frames on chip through all stages and
walks the book in tiles, a score never leaves it. |r|^2 is the same for every v and is left out;
the norms are computed in float64 and rounded once. Both precisions search in float32: TF32 would
name another vector in 0.3 % of frames. At one slot it is limited by reading a book of 512 KiB per
stage through one multiprocessor, at many slots by the multiplications.

Decoding gathers and sums, in the order of the books: it moves Q * 512 bytes per frame.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from encodec_rt_kernels import configs
from encodec_rt_kernels.device import Arguments, follow, launch_metadata, load_tile
from encodec_rt_kernels.rvq_tables import (
    book_tables,
    moved,
    products,
    search_tables,
    turned,
)

Packed = tuple[Tensor, ...]


def _gathered(arguments: Arguments) -> int:
    codes, latents = arguments["codes_ptr"], arguments["latents_ptr"]
    vectors = codes.numel() * arguments["WIDTH"]
    return int(8 * codes.numel() + 4 * (vectors + latents.numel()))


@triton.jit(do_not_specialize=["frames", "books"], launch_metadata=launch_metadata(products, moved))
def _rvq_encode_kernel(
    latents_ptr,
    vectors_ptr,
    norms_ptr,
    codes_ptr,
    frames,
    books,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    frame = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    frame_valid = frame < frames
    d = tl.arange(0, DEPTH)
    d_valid = d < WIDTH
    residual = load_tile(latents_ptr, frame, frame_valid, d, d_valid, WIDTH)
    for book in range(books):
        best = tl.full((ROWS,), float("inf"), tl.float32)
        code = tl.zeros((ROWS,), tl.int32)
        for start in range(0, SIZE, COLS):
            v = start + tl.arange(0, COLS)
            v_valid = v < SIZE
            vector = tl.load(
                vectors_ptr + v[None, :] * WIDTH + d[:, None],
                mask=v_valid[None, :] & d_valid[:, None],
                other=0.0,
            )
            norm = tl.load(norms_ptr + v, mask=v_valid, other=float("inf"))
            score = norm[None, :] - 2.0 * tl.dot(residual, vector, input_precision=DOT)
            low, at = tl.min(score, axis=1, return_indices=True)
            # Strictly lower: of equals in two tiles the earlier one stays.
            better = low < best
            best = tl.where(better, low, best)
            code = tl.where(better, at + start, code)
        residual -= tl.load(
            vectors_ptr + code[:, None] * WIDTH + d[None, :], mask=d_valid[None, :], other=0.0
        )
        tl.store(codes_ptr + frame * books + book, code.to(tl.int64), mask=frame_valid)
        # Pointers advance, since an index into all books at once may pass 32 bits.
        vectors_ptr += SIZE * WIDTH
        norms_ptr += SIZE


@triton.jit(
    do_not_specialize=["books"], launch_metadata=launch_metadata(lambda arguments: 0, _gathered)
)
def _rvq_decode_kernel(
    codes_ptr,
    vectors_ptr,
    latents_ptr,
    books,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    DEPTH: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    frame = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, DEPTH)
    acc = tl.zeros((DEPTH,), tl.float32)
    for book in range(books):
        code = tl.load(codes_ptr + frame * books + book)
        # Codes are checked where they enter; an idle slot's may be anything, and must not be read.
        valid = (d < WIDTH) & (code >= 0) & (code < SIZE)
        acc += tl.load(vectors_ptr + code * WIDTH + d, mask=valid, other=0.0)
        vectors_ptr += SIZE * WIDTH
    tl.store(latents_ptr + frame * WIDTH + d, acc, mask=d < WIDTH)


def pack_codebooks(weights: Packed, *, rules: configs.Rules = configs.MANY) -> Packed:
    """(vectors [Q, V, D],) -> those and their squared norms [Q, V], rounded once from float64.

    And, of the first configs.TABLE_BOOKS books, the tables of the search in tables, and the vectors
    as its product reads them.
    """
    (vectors,) = weights
    vectors = vectors.contiguous()
    norms = vectors.double().square().sum(-1).to(vectors.dtype)
    return vectors, norms.contiguous(), book_tables(vectors), turned(vectors, rules)


def rvq_encode(
    latents: Tensor, packed: Packed, *, codebooks: int, rules: configs.Rules = configs.MANY
) -> Tensor:
    """Latents [S, T, D] -> codes [S, T, codebooks] int64; the lowest index wins a tie.

    By tables, unless there are more ``codebooks`` than those are for.
    """
    vectors, norms, tables, first_vectors = packed
    latents = latents.contiguous()
    slots, steps, width = latents.shape
    size = vectors.shape[1]
    arch = configs.architecture(latents.device)
    tile = configs.rvq_encode(arch, rules, width, size)
    codes = torch.empty(slots, steps, codebooks, dtype=torch.int64, device=latents.device)
    if codebooks <= configs.TABLE_BOOKS:
        search_tables(latents, first_vectors, norms, tables, codes, rules)
        return codes
    _rvq_encode_kernel[(triton.cdiv(slots * steps, tile.rows),)](
        latents,
        vectors,
        norms,
        codes,
        slots * steps,
        codebooks,
        WIDTH=width,
        SIZE=size,
        ROWS=tile.rows,
        COLS=tile.cols,
        DEPTH=tile.depth,
        DOT=tile.dot,
        **tile.options,
    )
    return codes


def rvq_decode(codes: Tensor, packed: Packed, *, rules: configs.Rules = configs.MANY) -> Tensor:
    """Codes [S, T, Q] int64 -> latents [S, T, D], summed in the order of the codebooks.

    A code outside its book adds nothing.
    """
    vectors = packed[0]
    codes = codes.contiguous()
    slots, steps, books = codes.shape
    _, size, width = vectors.shape
    latents = torch.empty(slots, steps, width, device=codes.device)
    _rvq_decode_kernel[(slots * steps,)](
        codes,
        vectors,
        latents,
        books,
        WIDTH=width,
        SIZE=size,
        DEPTH=triton.next_power_of_2(width),
        **configs.copy(configs.architecture(codes.device), rules),
    )
    return latents
