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
from torch.nn.functional import mse_loss

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


def quantise(
    quantizer: EncodecResidualVectorQuantizer,
    latents: Tensor,
    books: Tensor,
    generator: torch.Generator,
    *,
    decay: float = 0.99,
    dead_share: float = 0.1,
    frozen: bool = False,
) -> Quantised:
    """Quantise latents [B, D, T] with ``books`` [B] codebooks per item, and move the codebooks.

    ``frozen`` codebooks stay as they are.

    An entry whose mean use falls below ``dead_share`` of an even share becomes one of this batch's
    residuals, drawn with ``generator`` (on the CPU, so that every device draws the same).
    """
    batch, width, frames = latents.shape
    rows = latents.permute(0, 2, 1).reshape(-1, width)
    wanted = books.to(latents.device).repeat_interleave(frames)
    residual = rows
    total = torch.zeros_like(rows)
    commitment = rows.new_zeros(())
    used = []
    for level, book in enumerate(codebooks_of(quantizer)[: int(books.max())]):
        active = wanted > level
        with torch.no_grad():
            indices = nearest(residual, book)
            entries = book.embed[indices]
            if not frozen:
                _follow(book, residual[active], indices[active], generator, decay, dead_share)
            used.append((book.cluster_size > dead_share * book.cluster_size.mean()).sum())
        commitment = commitment + mse_loss(residual[active], entries[active]) / len(
            quantizer.layers
        )
        total = total + entries * active[:, None]
        residual = residual - entries
    through = rows + (total - rows).detach()
    return Quantised(
        through.view(batch, frames, width).permute(0, 2, 1), commitment, torch.stack(used)
    )


def _follow(
    book: EncodecEuclideanCodebook,
    rows: Tensor,
    indices: Tensor,
    generator: torch.Generator,
    decay: float,
    dead_share: float,
) -> None:
    entries = len(book.embed)
    counts = torch.bincount(indices, minlength=entries).to(rows.dtype)
    sums = torch.zeros_like(book.embed).index_add_(0, indices, rows)
    book.cluster_size.mul_(decay).add_(counts, alpha=1 - decay)
    book.embed_avg.mul_(decay).add_(sums, alpha=1 - decay)
    even = book.cluster_size.sum() / entries
    dead = (book.cluster_size < dead_share * even).nonzero().squeeze(1)
    if len(dead):
        chosen = torch.randint(len(rows), (len(dead),), generator=generator).to(rows.device)
        book.embed_avg[dead] = rows[chosen] * even
        book.cluster_size[dead] = even
    book.embed.copy_(_entries(book.embed_avg, book.cluster_size))


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
