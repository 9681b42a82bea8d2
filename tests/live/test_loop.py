from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from encodec_rt.audio import AudioRecording
from encodec_rt.container_audio import ContainerAudio, coder_of, header_for
from encodec_rt.live.loop import CodecLoop, Loopback, loop_back
from encodec_rt.live.recording import ContainerRecording
from encodec_rt.pcm import to_int16
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.weights import Start
from tests.support.models import SPEECH, random_model, speech, tiny_config

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


def test_what_was_recorded_is_what_decoding_gives_to_the_sample(tmp_path: Path) -> None:
    # In blocks, as other files are decoded, some 50 samples come out a step of 16 bits away.
    codec = Codec.load("default")
    header = header_for(codec, codec.config.codebooks_for(6.0), start="primed")
    loop = CodecLoop(codec, 6.0)
    loop.record(
        wav=AudioRecording(tmp_path / "x.wav", rate_hz=loop.rate_hz),
        codes=ContainerRecording(tmp_path / "x.encodec", header, coder_of(header, None)),
    )
    said, _ = soundfile.read(SPEECH, dtype="float32")
    for piece in np.array_split(said, 500):
        loop.push(piece)
    loop.finish()
    recorded, _ = soundfile.read(tmp_path / "x.wav", dtype="int16")
    with (tmp_path / "x.encodec").open("rb") as file:
        decoded = np.concatenate(list(ContainerAudio(codec, file)), axis=1)[0]
    np.testing.assert_array_equal(recorded, to_int16(decoded))
