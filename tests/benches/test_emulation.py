"""The arithmetic of a tensor core, emulated."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benches.emulation import ARITHMETIC, Products, compared, cut, latents_of, nearest, three
from benches.workload import noise
from encodec_rt.model.encodec import EncodecModel
from tests.support.models import random_model, tiny_config


def product(name: str, x: Tensor, weight: Tensor) -> Tensor:
    with Products(ARITHMETIC[name]):
        return functional.linear(x, weight)


def test_a_factor_keeps_eleven_bits() -> None:
    one = torch.tensor([1.0, -1.0])
    for step in (2.0**-11, 3 * 2.0**-11):
        values = one * (1 + step)
        assert torch.equal(cut(values), one * (1 + (step - 2.0**-11)))
        assert torch.equal(nearest(values), one * (1 + step + 2.0**-11))
    assert torch.equal(cut(one * (1 + 2.0**-10)), one * (1 + 2.0**-10))


def test_three_products_miss_only_that_of_both_rests() -> None:
    x, weight = torch.randn(2, 400, generator=torch.Generator().manual_seed(0)).abs() + 1.0
    total = sum(a.double() * b.double() for a, b in three(x, weight))
    assert isinstance(total, Tensor)
    missing = (x.double() * weight.double() - total) / (x.double() * weight.double())
    assert float(missing.min()) >= 0
    assert float(missing.max()) < 3 * 2.0**-20


def test_each_arithmetic_is_nearer_than_the_one_before() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(8, 64, generator=generator), torch.randn(8, 64, generator=generator)
    wanted = x.double() @ weight.double().t()
    errors = [
        float((product(name, x, weight) - wanted).norm() / wanted.norm())
        for name in ("TF32, cut", "TF32, rounded", "3xTF32")
    ]
    assert errors[0] > 2 * errors[1] > 100 * errors[2]
    assert torch.equal(product("float32", x, weight), functional.linear(x, weight))


def test_every_product_of_the_encoder_is_emulated() -> None:
    model: EncodecModel = random_model(tiny_config(pad_mode="constant"))
    audio = noise(2, 6 * model.config.hop_length)
    found = dict(compared(model, audio))
    assert list(found) == list(ARITHMETIC)
    assert found["float32"]["latent_error"] < 1e-5 < found["TF32, rounded"]["latent_error"]
    assert found["3xTF32"]["frames"] == 12
    with torch.inference_mode(), Products(lambda x, weight: ((0 * x, weight),)):
        # Biases are all that is left, and the same in every frame of both streams.
        latents = latents_of(model, audio)
    assert torch.allclose(latents, latents[:1, -1:].expand_as(latents), atol=1e-6)
