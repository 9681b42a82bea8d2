from __future__ import annotations

import numpy as np
import pytest

from encodec_rt.live.loop import Loopback, loop_back
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.weights import Start
from tests.support.models import random_model, speech, tiny_config

CODEC = Codec(random_model(tiny_config(target_bandwidths=(1.0, 2.0))))
HOP = CODEC.config.hop_length


@pytest.mark.parametrize("start", ["primed", "exact", "zero"])
@pytest.mark.parametrize("samples", [40 * HOP, 40 * HOP + 3])
def test_what_is_heard_is_what_the_streams_give(start: Start, samples: int) -> None:
    audio = speech(1, samples).numpy()
    run = loop_back(CODEC, audio, bandwidth_kbps=2.0, start=start, paced=False)
    encoder = CODEC.stream_encoder(2.0, start=start)
    codes = np.concatenate([encoder.push(audio), encoder.flush()])
    decoder = CODEC.stream_decoder(2.0, start=start)
    wanted = np.concatenate([decoder.push(codes), decoder.flush(samples=samples)])
    assert np.array_equal(run.audio[0], wanted[:samples])
    assert len(run.encode_ms) == len(run.decode_ms) == len(run.late_ms) == 40
    assert run.packets == -(-samples // HOP)
    # One contents byte, then 5 codes of 4 bits.
    assert run.payload_bytes == 4 * run.packets


def test_a_paced_run_cannot_be_faster_than_its_audio() -> None:
    audio = speech(1, 20 * HOP).numpy()
    shown = []
    run = loop_back(
        CODEC, audio, bandwidth_kbps=1.0, on_frame=lambda so_far: shown.append(len(so_far.late_ms))
    )
    assert shown == list(range(1, 21))
    assert run.frame_ms == pytest.approx(10.0)
    assert all(late >= both for late, both in zip(run.late_ms, run.both_ms, strict=True))
    assert run.start_up_ms >= run.frame_ms


def test_a_frame_misses_its_deadline_when_it_is_late_by_more_than_a_frame() -> None:
    run = Loopback(10.0, np.zeros((1, 0), np.float32))
    run.encode_ms, run.decode_ms = [2.0, 3.0], [1.0, 4.0]
    run.late_ms = [10.0, 10.1]
    assert run.misses == 1
    assert run.both_ms == [3.0, 7.0]
    assert run.real_time_factor == pytest.approx(0.5)
