"""How many sessions a machine can carry: measured at the start, with the engine that will serve."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.slot_steps import batch_sizes

SHARE_OF_HOP = 0.75
"""The share of a frame's duration that the slowest of a hundred passes may take; the rest is for
transport and other users of the core."""
PASSES = 100
MAX_SESSIONS = 64
"""For one CPU core; none so far carried twenty."""


def step_p99_s(engine: Engine, slots: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """The 99th percentile of a pass over this many echoing sessions."""
    hop = engine.model.config.hop_length
    shape = (slots, hop) if engine.model.config.audio_channels == 1 else (slots, 2, hop)
    pcm = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    named = range(slots)
    times = []
    for index in range(PASSES + 5):
        begun_s = clock()
        codes = engine.encode_slots(named, pcm).rows
        engine.decode_slots(named, engine.dequantize(codes).rows)
        if index >= 5:
            times.append(clock() - begun_s)
    return float(np.percentile(times, 99, method="inverted_cdf"))


def measure_capacity(
    codec: Codec,
    bandwidth_kbps: float,
    most: int = MAX_SESSIONS,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Sessions whose pass fits into SHARE_OF_HOP of a frame on this CPU; 0 if not even one does."""
    limit_s = SHARE_OF_HOP / codec.config.frame_rate
    engine = codec.engine(most, bandwidth_kbps, gather=True)
    fits, over = 0, most + 1
    for slots in batch_sizes(most):
        if step_p99_s(engine, slots, clock) > limit_s:
            over = slots
            break
        fits = slots
    # Between two batch sizes the larger one is computed.
    return min(fits, over - 1)
