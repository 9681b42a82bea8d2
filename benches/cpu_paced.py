"""Frames at the pace of a microphone beside a busy core; ``python -m benches.cpu paced``."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from benches.record import Record
from benches.rivals import BANDWIDTH, FRAME_MS
from benches.stream import speech
from encodec_rt.errors import BackendUnavailable
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.sound.realtime import check_real_time, run_in_real_time
from encodec_rt.streaming.codec import Codec, warm_up


def _spin(stop: object) -> None:
    # Not a matrix product, for which numpy would start a thread on every core.
    values = np.random.default_rng(0).standard_normal((256, 256))
    while not stop.is_set():  # type: ignore[attr-defined]
        values = np.tanh(values + 1e-3)


@contextmanager
def busy_neighbours(count: int) -> Iterator[None]:
    """Run ``count`` processes beside the block that compute without pause, on a thread each."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    others = [context.Process(target=_spin, args=(stop,)) for _ in range(count)]
    for other in others:
        other.start()
    time.sleep(1.0)
    yield
    stop.set()
    for other in others:
        other.join()


def paced(record: Record, model: EncodecModel, options: argparse.Namespace) -> None:
    """Encode and decode at the pace of a microphone, beside one busy process.

    In an ordinary thread and, if the system allows it, in one with real-time scheduling.
    """
    codec = Codec(model, backend="cpu")
    with ThreadPoolExecutor(1) as ordinary:
        ordinary.submit(_pace, record, codec, options.frames, real_time=False).result()
    try:
        check_real_time()
    except BackendUnavailable as error:
        record.add({"what": "paced", "real_time": True, "skipped": str(error)})
        return
    with ThreadPoolExecutor(1, initializer=run_in_real_time) as first:
        first.submit(_pace, record, codec, options.frames, real_time=True).result()


@torch.inference_mode()
def _pace(record: Record, codec: Codec, count: int, *, real_time: bool) -> None:
    warm_up(codec, BANDWIDTH, "primed")
    encoder, decoder = codec.stream_encoder(BANDWIDTH), codec.stream_decoder(BANDWIDTH)
    pcm = speech(codec, 20.0)[0]
    frames = [pcm[at : at + 320] for at in range(0, len(pcm) - 319, 320)]
    encode_ms: list[float] = []
    decode_ms: list[float] = []
    late_ms: list[float] = []
    gc.collect()
    gc.freeze()
    with busy_neighbours(1):
        start = time.perf_counter()
        for index in range(count):
            due = start + index * FRAME_MS / 1000
            time.sleep(max(0.0, due - time.perf_counter()))
            begin = time.perf_counter()
            codes = encoder.push(frames[index % len(frames)])
            middle = time.perf_counter()
            decoder.push(codes)
            end = time.perf_counter()
            encode_ms.append(1000 * (middle - begin))
            decode_ms.append(1000 * (end - middle))
            late_ms.append(1000 * (end - due) - FRAME_MS)
    gc.unfreeze()
    record.add(
        {
            "what": "paced",
            "real_time": real_time,
            "frames": count,
            "threads": 1,
            "busy_neighbours": 1,
        },
        {"encode": encode_ms, "decode": decode_ms},
        values={"frames_late": sum(ms > 0 for ms in late_ms), "late_max_ms": max(late_ms)},
        deadline_ms=FRAME_MS,
    )
