"""Nothing that holds a device's graphs waits for the cyclic collector to be freed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch

from encodec_rt.streaming import cuda_graph
from encodec_rt.streaming.backends import triton
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.cuda_graph import Tick, capture_graph
from tests.support.models import random_model, tiny_config

Make = Callable[[Codec], object]
HELD: list[Make] = [
    lambda codec: codec.engine(2, 0.808, start="zero"),
    lambda codec: codec.stream_encoder(0.808, start="zero"),
    lambda codec: codec.stream_decoder(0.808, start="zero"),
]
NAMES = ["engine", "encoder", "decoder"]


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("make", HELD, ids=NAMES)
@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
def test_what_is_dropped_is_freed_at_once(
    make: Make, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The way of a CUDA device. A graph knows nothing of the run that it was captured from.
    monkeypatch.setattr(triton, "capture_eagerly", capture_graph)
    monkeypatch.setattr(cuda_graph, "capture", lambda device, *runs: (lambda: None,) * len(runs))
    codec = Codec(random_model(tiny_config(pad_mode="constant")), backend=backend)
    held = make(codec)
    # Not isinstance, which would look into objects that warn of it.
    steps = [each for each in gc.get_objects() if type(each) is Tick]
    assert bool(steps) == (backend == "triton")
    freed = [weakref.ref(each) for each in (held, *steps)]
    del held, steps
    assert [each() for each in freed] == [None] * len(freed)


def test_garbage_is_collected_before_a_capture_and_not_during_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gc.enable()
    seen: list[tuple[bool, bool]] = []

    class Ring:
        """Garbage that only the collector frees."""

        def __init__(self) -> None:
            self.me = self

    ring = weakref.ref(Ring())
    with cuda_graph._no_collection():
        seen.append((ring() is None, gc.isenabled()))
    assert seen == [(True, False)]
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="no CUDA graphs"):
        cuda_graph.capture(torch.device("cpu"))
