"""Residual vector quantisation: the search for the nearest vector, stage by stage, and decoding.

    code_q = argmin_v |e_qv|^2 - 2 r_q . e_qv     lowest v on a tie;  r_{q+1} = r_q - e_q,code_q

|r|^2 is the same for every v and is left out; the norms are computed in float64 and rounded once.
Both precisions search in float32: TF32 would pick other vectors in some frames.

Up to configs.TABLE_BOOKS codebooks are searched in tables, rvq_tables.py. More are searched here,
in one launch: a program keeps the residual of its frames and their scores on chip through all
stages and reads each codebook in tiles. One slot is then limited by reading a codebook of 512 KiB
per stage through one multiprocessor, many slots by the multiplications.

Decoding gathers and sums, in the order of the codebooks; it reads Q * 512 bytes per frame.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from encodec_rt_kernels import configs
from encodec_rt_kernels.device import Arguments, follow, launch_metadata, load_tile
from encodec_rt_kernels.rvq_tables import (
    codebook_tables,
    moved,
    products,
    score_vectors,
    search_tables,
)

Packed = tuple[Tensor, ...]


def _gathered(arguments: Arguments) -> int:
    """Bytes that decoding moves: the codes, the vector that each of them names, and the latents."""
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
            # Strictly less: on a tie between tiles, the earlier one wins.
            better = low < best
            best = tl.where(better, low, best)
            code = tl.where(better, at + start, code)
        residual -= tl.load(
            vectors_ptr + code[:, None] * WIDTH + d[None, :], mask=d_valid[None, :], other=0.0
        )
        tl.store(codes_ptr + frame * books + book, code.to(tl.int64), mask=frame_valid)
        # The pointers advance because an index into all codebooks could exceed 32 bits.
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
        # Codes are checked on entry, but an idle slot may hold anything: never read out of bounds.
        valid = (d < WIDTH) & (code >= 0) & (code < SIZE)
        acc += tl.load(vectors_ptr + code * WIDTH + d, mask=valid, other=0.0)
        vectors_ptr += SIZE * WIDTH
    tl.store(latents_ptr + frame * WIDTH + d, acc, mask=d < WIDTH)


def pack_codebooks(weights: Packed, *, rules: configs.Rules = configs.MANY) -> Packed:
    """Pack (vectors [Q, V, D],) as (vectors, norms, tables, vectors for the scores).

    ``norms`` [Q, V] are squared and rounded once from float64. The last two cover the first
    configs.TABLE_BOOKS codebooks: see ``rvq_tables.codebook_tables`` and ``score_vectors``.
    """
    (vectors,) = weights
    vectors = vectors.contiguous()
    norms = vectors.double().square().sum(-1).to(vectors.dtype)
    return vectors, norms.contiguous(), codebook_tables(vectors), score_vectors(vectors, rules)


def rvq_encode(
    latents: Tensor, packed: Packed, *, codebooks: int, rules: configs.Rules = configs.MANY
) -> Tensor:
    """Latents [S, T, D] -> codes [S, T, codebooks] int64; the lowest index wins a tie.

    Up to configs.TABLE_BOOKS codebooks are searched in tables.
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

    A code outside its codebook, such as -1, adds nothing.
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
