"""Training of the residual vector quantiser: codebooks follow the latents instead of a gradient.

Updates the buffers of ``EncodecModel.quantizer`` (cluster_size, embed_avg, embed) in place, as the
original package does. Paper, section 3.2: exponential moving averages, initialisation by k-means,
replacement of dead entries, straight-through gradient, commitment loss, and a random number of
codebooks, here for each item rather than each batch.
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
    """Quantised ``latents`` [B, D, T] with a straight-through gradient, and the commitment loss.

    ``used`` [Q] counts the live entries of each codebook.
    """

    latents: Tensor
    commitment: Tensor
    used: Tensor


def codebooks_of(quantizer: EncodecResidualVectorQuantizer) -> list[EncodecEuclideanCodebook]:
    """The codebooks of a quantiser, in order."""
    return [layer.codebook for layer in quantizer.layers]  # type: ignore[misc]


def nearest(rows: Tensor, book: EncodecEuclideanCodebook) -> Tensor:
    """Rows [N, D] -> the index [N] of the nearest entry of ``book``."""
    return (2 * rows @ book.embed.t() - book.embed.square().sum(1)).argmax(1)


def draw_replacements(
    books: Tensor, frames: int, levels: int, entries: int, generator: torch.Generator
) -> Tensor:
    """Draw a row of the batch for each entry, to replace it if it is dead -> [levels, entries].

    Rows are numbered through all items and their ``frames``. For each level (codebook) they come
    from items that use it, as ``books`` [B], on the CPU, says. Drawing on the CPU, before the step,
    gives the same rows on every device and makes neither wait for the other.
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
    """Quantise latents [B, D, T] with ``books`` [B] codebooks per item, and update the codebooks.

    ``decay`` is that of the moving averages. An entry used less than ``dead_share`` of an even
    share is replaced by the residual of the row that ``replacements`` names for it (see
    ``draw_replacements``). ``frozen`` codebooks are not updated. Nothing here waits for a value
    from the device.
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
                _update(book, residual, indices, active, replacements[level], decay, dead_share)
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


def _update(
    book: EncodecEuclideanCodebook,
    rows: Tensor,
    indices: Tensor,
    active: Tensor,
    replacements: Tensor,
    decay: float,
    dead_share: float,
) -> None:
    """Move the entries ``indices`` [N] of ``book`` towards ``rows`` [N, D] that are ``active``.

    Nothing changes if no row is active. There is no branch on a value, so a CUDA graph can contain
    this.
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
    """A model's tensors except codebook entries, which follow from the moving averages."""
    return {name: value for name, value in tensors.items() if not name.endswith(_ENTRIES)}


def with_entries(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``without_entries``, bit for bit."""
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
    """Initialise each codebook by k-means on the residuals of those before it, of latents [N, D].

    ``generator`` is on the CPU.
    """
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
        # A weight of about one use per step, which the moving averages soon outweigh.
        book.cluster_size.fill_(1)
        book.embed_avg.copy_(book.embed)
        book.inited.fill_(1)
        residual = residual - book.embed[indices]
