"""The effect of tensor-core arithmetic on the codes of speech, emulated without a tensor core.

    python -m benches.emulation

TF32 keeps 11 bits of each operand. A tensor core truncates the rest; the kernels of ``fast`` round
to nearest first. 3xTF32 splits an operand into two such parts and adds up three products. Here
operands are truncated or rounded in this way, and products and sums are computed in float32 on this
machine; the search is always in float32. Codes are compared with those of float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from benches.record import RESULTS, Record
from benches.rows import bandwidth_kbps
from benches.workload import speech
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.backends.torch import TORCH
from encodec_rt.streaming.plan import plan
from encodec_rt.streaming.state import StreamState
from encodec_rt.streaming.steps import PackedLayers, run
from encodec_rt.streaming.weights import layer_weights

CPU = torch.device("cpu")
DROPPED_BITS = 13


Parts = tuple[tuple[Tensor, Tensor], ...]
"""Pairs of operands whose products are added up, the smallest first."""


def cut(values: Tensor) -> Tensor:
    """float32 truncated to TF32."""
    return (values.contiguous().view(torch.int32) & -(1 << DROPPED_BITS)).view(torch.float32)


def nearest(values: Tensor) -> Tensor:
    """float32 rounded to the nearest TF32 number."""
    bits = values.contiguous().view(torch.int32) + (1 << (DROPPED_BITS - 1))
    return (bits & -(1 << DROPPED_BITS)).view(torch.float32)


def three(x: Tensor, weight: Tensor) -> Parts:
    """The operands of the three products of 3xTF32."""
    large, heavy = cut(x), cut(weight)
    small, light = cut(x - large), cut(weight - heavy)
    return (small, heavy), (large, light), (large, heavy)


ARITHMETIC: Mapping[str, Callable[[Tensor, Tensor], Parts]] = {
    "float32": lambda x, weight: ((x, weight),),
    "TF32, cut": lambda x, weight: ((cut(x), cut(weight)),),
    "TF32, rounded": lambda x, weight: ((nearest(x), nearest(weight)),),
    "3xTF32": three,
}


class Products(TorchFunctionMode):
    """Replaces every matrix product by the sum of the products of ``parts`` of its operands."""

    MULTIPLYING = (functional.conv1d, functional.conv_transpose1d, functional.linear)

    def __init__(self, parts: Callable[[Tensor, Tensor], Parts]) -> None:
        super().__init__()
        self._parts = parts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self.MULTIPLYING:
            return func(*args, **(kwargs or {}))
        x, weight, bias, *rest = (*args, None)[: max(3, len(args))]
        *small, last = self._parts(x, weight)
        y = func(*last, bias, *rest, **(kwargs or {}))
        for pair in small:
            y = y + func(*pair, None, *rest, **(kwargs or {}))
        return y


def latents_of(model: EncodecModel, audio: Tensor) -> Tensor:
    """Latents [S, frames, D] of [S, n] audio in one step from a zero state, in the same dtype."""
    specs, dtype = plan(model.encoder, "encoder"), audio.dtype
    now, proposed = (
        StreamState(state.arena, {name: view.to(dtype) for name, view in state.views.items()})
        for state in (StreamState.allocate(specs, len(audio), CPU) for _ in range(2))
    )
    packed = {
        spec.name: tuple(part.to(dtype) for part in layer_weights(model, spec)) for spec in specs
    }
    net = PackedLayers(specs, packed, TORCH, model.config.pad_mode)
    return run(net, now, proposed, audio[..., None])


def codes_of(model: EncodecModel, latents: Tensor) -> Tensor:
    """Codes [S, frames, Q] of latents, by the same search for every precision."""
    books = model.config.codebooks_for(bandwidth_kbps(model))
    vectors = torch.stack([stage.codebook.embed for stage in model.quantizer.stages[:books]])
    packed = TORCH.pack_codebooks((vectors.to(latents.dtype),))
    return TORCH.rvq_encode(latents, packed, codebooks=books)


def compared(model: EncodecModel, audio: Tensor) -> Iterator[tuple[str, dict[str, float]]]:
    """For each arithmetic: the error of its latents, and shares of codes that are not float64's."""
    with torch.inference_mode():
        wanted = latents_of(model, audio.double())
        codes = codes_of(model, wanted)
        for name, parts in ARITHMETIC.items():
            with Products(parts):
                latents = latents_of(model, audio)
            differing = codes_of(model, latents) != codes
            yield (
                name,
                {
                    "latent_error": float((latents - wanted).norm() / wanted.norm()),
                    "frames": differing[..., 0].numel(),
                    "frames_that_differ": float(differing.any(-1).double().mean()),
                    "codes_that_differ": float(differing.double().mean()),
                },
            )


def main() -> None:
    """Compare them on speech with the embedded model, and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--slots", type=int, default=8, help="streams of four seconds each")
    parser.add_argument("--out", default=RESULTS, help="folder for the record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = EncodecModel.from_pretrained("default").eval()
    record = Record("emulation", device="cpu", folder=options.out)
    for name, values in compared(model, speech(options.slots)):
        record.add({"arithmetic": name, "model": "default"}, values=dict(values))
        print(name, values, flush=True)
    print(record.write().name)


if __name__ == "__main__":
    main()
