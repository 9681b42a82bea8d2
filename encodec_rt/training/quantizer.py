"""Training of the residual vector quantiser: the codebooks follow the latents, not a gradient.

Works on the buffers of ``EncodecModel.quantizer`` (cluster_size, embed_avg, embed), as upstream
does. Paper section 3.2: exponential moving averages, k-means start, dead entries replaced,
straight-through gradient, commitment, and a number of codebooks drawn for each item.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from encodec_rt.model.quantizer import EncodecEuclideanCodebook, EncodecResidualVectorQuantizer

_ENTRIES = ".codebook.embed"


@dataclass(frozen=True, slots=True)
class Quantised:
    """``latents`` [B, D, T] carry a straight-through gradient; ``used`` [Q] counts live entries."""

    latents: Tensor
    commitment: Tensor
    used: Tensor


def codebooks_of(quantizer: EncodecResidualVectorQuantizer) -> list[EncodecEuclideanCodebook]:
    """The codebooks, first to last."""
    return [layer.codebook for layer in quantizer.layers]  # type: ignore[misc]


def nearest(rows: Tensor, book: EncodecEuclideanCodebook) -> Tensor:
    """[N, D] -> the index [N] of the nearest entry."""
    return (2 * rows @ book.embed.t() - book.embed.square().sum(1)).argmax(1)


def draw_replacements(
    books: Tensor, frames: int, levels: int, entries: int, generator: torch.Generator
) -> Tensor:
    """[levels, entries] rows of a batch that may replace dead entries, of items that use the level.

    ``books`` [B] is on the CPU, and rows count through items and their ``frames``. Drawing on the
    CPU, before the step, makes every device draw the same and lets none wait for the other.
    """
    rows = torch.zeros(levels, entries, dtype=torch.int64)
    for level in range(levels):
        items = (books > level).nonzero().squeeze(1)
        if len(items):
            drawn = torch.randint(len(items) * frames, (entries,), generator=generator)
            rows[level] = items[drawn // frames] * frames + drawn % frames
    return rows


def quantise(
    quantizer: EncodecResidualVectorQuantizer,
    latents: Tensor,
    books: Tensor,
    replacements: Tensor,
    *,
    decay: float = 0.99,
    dead_share: float = 0.1,
    frozen: bool = False,
) -> Quantised:
    """Quantise latents [B, D, T] with ``books`` [B] codebooks per item, and move the codebooks.

    ``frozen`` codebooks stay as they are.

    An entry whose mean use falls below ``dead_share`` of an even share becomes the residual of the
    row that ``replacements`` (see ``draw_replacements``) names for it. Nothing here waits for a
    value from the device.
    """
    batch, width, frames = latents.shape
    rows = latents.permute(0, 2, 1).reshape(-1, width)
    wanted = books.repeat_interleave(frames, output_size=batch * frames)
    residual = rows
    total = torch.zeros_like(rows)
    commitment = rows.new_zeros(())
    used = []
    for level, book in enumerate(codebooks_of(quantizer)[: len(replacements)]):
        active = (wanted > level).to(rows.dtype)[:, None]
        with torch.no_grad():
            indices = nearest(residual, book)
            entries = book.embed[indices]
            if not frozen:
                _follow(book, residual, indices, active, replacements[level], decay, dead_share)
            used.append((book.cluster_size > dead_share * book.cluster_size.mean()).sum())
        error = ((residual - entries).square() * active).sum()
        commitment = commitment + error / (active.sum().clamp(min=1) * width)
        total = total + entries * active
        residual = residual - entries
    through = rows + (total - rows).detach()
    return Quantised(
        through.view(batch, frames, width).permute(0, 2, 1),
        commitment / len(quantizer.layers),
        torch.stack(used),
    )


def _follow(
    book: EncodecEuclideanCodebook,
    rows: Tensor,
    indices: Tensor,
    active: Tensor,
    replacements: Tensor,
    decay: float,
    dead_share: float,
) -> None:
    """Move ``book`` towards the ``active`` [N, 1] rows [N, D] of ``indices`` [N], if there are any.

    Written without a branch on a value, so that a CUDA graph can hold it.
    """
    counts = torch.zeros_like(book.cluster_size).index_add_(0, indices, active[:, 0])
    sums = torch.zeros_like(book.embed).index_add_(0, indices, rows * active)
    size = book.cluster_size * decay + counts * (1 - decay)
    average = book.embed_avg * decay + sums * (1 - decay)
    even = size.sum() / len(size)
    dead = size < dead_share * even
    average = torch.where(dead[:, None], rows[replacements] * even, average)
    size = torch.where(dead, even, size)
    any_active = active.sum() > 0
    for old, new in (
        (book.cluster_size, size),
        (book.embed_avg, average),
        (book.embed, _entries(average, size)),
    ):
        old.copy_(torch.where(any_active, new, old))


def _entries(embed_avg: Tensor, cluster_size: Tensor) -> Tensor:
    return embed_avg / cluster_size.clamp(min=1e-5)[:, None]


def without_entries(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors but the entries of its codebooks, which the moving averages determine."""
    return {name: value for name, value in tensors.items() if not name.endswith(_ENTRIES)}


def with_entries(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``without_entries`` was given, bit for bit."""
    found = dict(tensors)
    for name, averages in tensors.items():
        if name.endswith(f"{_ENTRIES}_avg"):
            size = tensors[f"{name.removesuffix('embed_avg')}cluster_size"]
            found[name.removesuffix("_avg")] = _entries(averages, size)
    return found


@torch.no_grad()
def start_codebooks(
    quantizer: EncodecResidualVectorQuantizer,
    latents: Tensor,
    generator: torch.Generator,
    *,
    iterations: int = 15,
) -> None:
    """Set every codebook by k-means on what the ones before left of latents [N, D]."""
    residual = latents.clone()
    for book in codebooks_of(quantizer):
        entries = len(book.embed)
        chosen = torch.randint(len(residual), (entries,), generator=generator)
        if len(residual) >= entries:
            chosen = torch.randperm(len(residual), generator=generator)[:entries]
        book.embed.copy_(residual[chosen.to(residual.device)])
        for _ in range(iterations):
            indices = nearest(residual, book)
            counts = torch.bincount(indices, minlength=entries).to(residual.dtype)[:, None]
            sums = torch.zeros_like(book.embed).index_add_(0, indices, residual)
            spare = torch.randint(len(residual), (entries,), generator=generator)
            fresh = residual[spare.to(residual.device)]
            book.embed.copy_(torch.where(counts > 0, sums / counts.clamp(min=1), fresh))
        indices = nearest(residual, book)
        # About one use per step: small enough that the moving averages soon outweigh the start.
        book.cluster_size.fill_(1)
        book.embed_avg.copy_(book.embed)
        book.inited.fill_(1)
        residual = residual - book.embed[indices]
