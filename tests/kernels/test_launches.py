"""What the launches of a whole step say of themselves, and that none depends on the slots."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from encodec_rt.config import EncodecConfig
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.plan import plan
from encodec_rt.streaming.state import StreamState
from encodec_rt_kernels import conv1d
from tests.aot.gate import launch_all

SLOTS = 2


def described(kernel: Any, names: list[str], args: tuple[Any, ...], options: Any) -> dict[str, Any]:
    """What a profiler is told of one launch; the interpreter keeps the function elsewhere."""
    tell = getattr(kernel, "launch_metadata", None) or kernel.kwargs["launch_metadata"]
    arguments = {**dict(zip(names, args, strict=False)), **options}
    found: dict[str, Any] = tell((1,), SimpleNamespace(name=kernel.__name__), arguments)
    return found


@pytest.fixture(scope="module")
def launches() -> Iterator[list[dict[str, Any]]]:
    """Of one step of each direction of the 24 kHz model by all rules, nothing run."""
    found = []
    kind = type(conv1d.__globals__["_conv1d_kernel"])

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append(described(kernel, kernel.arg_names, args, options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "run", record)
        launch_all(SLOTS)
        yield found


def test_a_profiler_is_told_the_products_of_the_paper_model(
    launches: list[dict[str, Any]],
) -> None:
    directions, rules, flops = 2, 4, 2
    layers = directions * 19_863_552
    # By tables, and of all codebooks in the books.
    search = (8 + 32) * 1024 * 128
    told = sum(launch["flops32"] for launch in launches)
    assert told == flops * SLOTS * rules * (layers + search)


def test_a_profiler_is_told_the_bytes_of_a_layer(launches: list[dict[str, Any]]) -> None:
    told, *_ = (one for one in launches if one["name"] == "_conv1d_kernel 256x512x16x8")
    # Two programs share out the depth, and each writes a part.
    weights, moved = 512 * (256 * 16 + 1), 8 * 256 + 2 * 512 + 2 * 8 * 256
    assert told["bytes"] == 4 * (weights + SLOTS * moved)
    told, *_ = (one for one in launches if one["name"] == "_rvq_encode_kernel 128x1024")
    assert told["bytes"] == 4 * (32 * 1024 * (128 + 1) + SLOTS * 128) + 8 * SLOTS * 32
    told, *_ = (one for one in launches if one["name"] == "_rvq_decode_kernel 128x1024")
    assert told["bytes"] == 4 * SLOTS * (8 + 1) * 128 + 8 * SLOTS * 8
    told, *_ = (one for one in launches if one["name"] == "_rvq_choose_kernel 1024")
    assert told["bytes"] == 4 * SLOTS * 1024 * (8 + 28) + 8 * SLOTS * 8


def test_every_launch_has_a_name_with_its_layers_sizes(launches: list[dict[str, Any]]) -> None:
    assert {one["name"].split("_kernel")[0] for one in launches} == {
        "_commit",
        "_conv1d",
        "_conv1d_single",
        "_conv1d_vector",
        "_conv_transpose1d",
        "_conv_transpose1d_vector",
        "_join",
        "_lstm",
        "_lstm_vector",
        "_resblock",
        "_rvq_choose",
        "_rvq_decode",
        "_rvq_encode",
        "_rvq_score",
        "_rvq_score_vector",
        "_sum",
    }


def test_a_state_has_the_same_strides_for_one_slot_as_for_many() -> None:
    model = EncodecModel(EncodecConfig()).to("meta")
    for part in (model.encoder, model.decoder):
        one, many = (
            StreamState.allocate(plan(part, "part"), slots, torch.device("meta"))
            for slots in (1, 3)
        )
        for name, view in one.views.items():
            assert view.stride() == many.views[name].stride()
