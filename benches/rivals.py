"""The same weights in other packages, and timing in turns for a fair comparison."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from encodec_rt.config import EncodecConfig
from encodec_rt.model.encodec import EncodecModel

BANDWIDTH = 6.0
"""In kbps: 8 codebooks."""
FRAME_MS = 1000 * 320 / 24_000

Work = Callable[[], object]


def model_for(source: str | None) -> EncodecModel:
    """The model to time: ``source`` as for from_pretrained, or random weights if None."""
    if source is not None:
        return EncodecModel.from_pretrained(source).eval()
    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig()).eval()
    for stage in model.quantizer.stages:
        stage.codebook.embed.normal_()
    return model


def upstreams(model: EncodecModel) -> tuple[Any, Any]:
    """The same weights in the ``encodec`` package and in transformers."""
    from tests.support.models import hf_twin
    from tests.support.upstream import upstream_twin

    reference = upstream_twin(model)
    reference.set_target_bandwidth(BANDWIDTH)
    return reference, hf_twin(model)


def interleaved(
    works: dict[str, Work], rounds: int, run: int, warm: int = 3
) -> dict[str, list[float]]:
    """The ms of each call. In each round all take turns: ``warm`` calls untimed, ``run`` timed."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            for index in range(warm + run):
                begin = time.perf_counter()
                work()
                if index >= warm:
                    taken[name].append(1000 * (time.perf_counter() - begin))
    return taken
