from __future__ import annotations

import torch
from torch import Tensor

from encodec_rt.config import EncodecConfig
from encodec_rt.model.quantizer import EncodecResidualVectorQuantizer
from encodec_rt.training.quantizer import (
    Quantised,
    codebooks_of,
    draw_replacements,
    quantise,
    start_codebooks,
)

CONFIG = EncodecConfig(
    target_bandwidths=(0.5, 1.0, 2.0), hidden_size=4, num_filters=4, codebook_size=16
)


def started(rows: Tensor) -> EncodecResidualVectorQuantizer:
    quantizer = EncodecResidualVectorQuantizer(CONFIG)
    start_codebooks(quantizer, rows, torch.Generator().manual_seed(0))
    return quantizer


def latents(seed: int, items: int = 3, frames: int = 50) -> Tensor:
    return torch.randn(items, 4, frames, generator=torch.Generator().manual_seed(seed))


def quantised(
    quantizer: EncodecResidualVectorQuantizer,
    values: Tensor,
    books: list[int],
    *,
    decay: float = 0.99,
) -> Quantised:
    wanted = torch.tensor(books)
    generator = torch.Generator().manual_seed(0)
    rows = draw_replacements(wanted, values.shape[-1], 3, CONFIG.codebook_size, generator)
    return quantise(quantizer, values, wanted, rows, decay=decay)


def rows_of(values: Tensor) -> Tensor:
    return values.permute(0, 2, 1).reshape(-1, values.shape[1])


def test_k_means_ends_with_entries_that_are_the_means_of_what_they_quantise() -> None:
    generator = torch.Generator().manual_seed(1)
    centres = 100 * torch.randn(16, 4, generator=generator)
    rows = centres.repeat(40, 1) + 0.01 * torch.randn(640, 4, generator=generator)
    book = codebooks_of(started(rows))[0]
    codes = book.encode(rows)
    used = codes.unique()
    means = torch.stack([rows[codes == entry].mean(0) for entry in used])
    assert torch.allclose(book.embed[used], means, atol=0.05)
    assert len(used) > 8


def test_each_codebook_lowers_the_error_that_the_ones_before_left() -> None:
    values = latents(2, frames=400)
    quantizer = started(rows_of(values))
    codes = quantizer.encode(values)
    errors = [
        float((values - quantizer.decode(codes[:books])).square().mean())
        for books in range(1, len(codes) + 1)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_the_gradient_passes_straight_through() -> None:
    values = latents(3).requires_grad_()
    quantizer = started(rows_of(values.detach()))
    out = quantised(quantizer, values, [1, 2, 3])
    weight = latents(4)
    (out.latents * weight).sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, weight)


def test_items_are_quantised_with_their_own_number_of_codebooks() -> None:
    values = latents(5)
    quantizer = started(rows_of(values))
    codes = quantizer.encode(values)
    out = quantised(quantizer, values, [1, 2, 3], decay=1.0)
    for item, books in enumerate((1, 2, 3)):
        wanted = quantizer.decode(codes[:books])[item]
        assert torch.allclose(out.latents[item], wanted, atol=1e-5)


def test_commitment_pulls_the_latents_towards_their_entries() -> None:
    values = latents(6).requires_grad_()
    quantizer = started(rows_of(values.detach()))
    books = [3, 3, 3]
    out = quantised(quantizer, values, books, decay=1.0)
    out.commitment.backward()
    assert values.grad is not None
    closer = values.detach() - 5 * values.grad
    moved = quantised(quantizer, closer, books, decay=1.0)
    assert float(moved.commitment) < float(out.commitment.detach())


def test_an_entry_follows_the_mean_of_what_it_is_given() -> None:
    values = latents(7)
    quantizer = started(rows_of(values))
    book = codebooks_of(quantizer)[0]
    shifted = values + 0.05
    for _ in range(300):
        quantised(quantizer, shifted, [1, 1, 1])
    codes = book.encode(rows_of(shifted))
    for entry in codes.unique():
        mean = rows_of(shifted)[codes == entry].mean(0)
        assert torch.allclose(book.embed[entry], mean, atol=0.05)


def test_a_dead_entry_is_replaced_by_a_residual_of_the_batch() -> None:
    values = latents(8)
    quantizer = started(rows_of(values))
    book = codebooks_of(quantizer)[0]
    book.embed[3] = 1e6
    book.embed_avg[3] = 1e6
    for _ in range(300):
        quantised(quantizer, values, [1, 1, 1])
    assert float(book.embed[3].abs().max()) < 10


def test_codebooks_beyond_the_batchs_largest_number_stay_untouched() -> None:
    values = latents(9)
    quantizer = started(rows_of(values))
    last = codebooks_of(quantizer)[2].embed.clone()
    quantised(quantizer, values, [1, 2, 2])
    assert torch.equal(codebooks_of(quantizer)[2].embed, last)
