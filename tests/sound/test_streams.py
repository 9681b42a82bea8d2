from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from encodec_rt.sound.streams import FIFO_S, InputStream, OutputStream
from tests.support.virtual_audio import FLAGS, flags

BLOCK = 320


def source(channels: int = 1) -> InputStream:
    return InputStream("microphone", 24_000, channels)


def sink(channels: int = 1) -> OutputStream:
    return OutputStream("speaker", 24_000, channels)


def capture(
    end: InputStream, samples: NDArray[np.int16], status: SimpleNamespace | None = None
) -> None:
    block = memoryview(np.ascontiguousarray(samples).tobytes())
    end.callback(block, len(samples), None, status or flags())


def play(
    end: OutputStream, frames: int = BLOCK, channels: int = 1, status: SimpleNamespace | None = None
) -> NDArray[np.int16]:
    data = bytearray(b"\x55" * (2 * frames * channels))
    end.callback(memoryview(data), frames, None, status or flags())
    return np.frombuffer(data, np.int16).reshape(frames, channels)


def test_captured_blocks_are_read_in_order_as_floats_of_full_scale_one() -> None:
    end, samples = source(), np.arange(-400, 400, dtype=np.int16) * 80
    capture(end, samples[:320])
    capture(end, samples[320:])
    got = np.concatenate([end.read(500), end.read(500)])
    assert np.array_equal(got, samples / np.float32(32768))
    assert len(end.read(500)) == 0


def test_several_channels_are_averaged() -> None:
    end = source(channels=2)
    capture(end, np.array([[100, 300], [-50, 50]], np.int16))
    assert end.waiting == 2
    assert np.allclose(end.read(9) * 32768, [200, 0])


def test_an_input_that_nobody_reads_is_bounded_and_counts_what_it_lost() -> None:
    end = source()
    for _ in range(200):
        capture(end, np.zeros(BLOCK, np.int16))
    assert end.waiting == FIFO_S * 24_000
    assert end.counts.samples == 200 * BLOCK
    assert end.counts.lost_samples == 200 * BLOCK - end.waiting


def test_the_oldest_input_can_be_let_go() -> None:
    end = source(channels=2)
    capture(end, np.repeat(np.arange(10, dtype=np.int16)[:, None], 2, 1))
    assert end.skip(7) == 7
    assert np.array_equal(end.read(9) * 32768, [7, 8, 9])


@pytest.mark.parametrize("name", FLAGS)
def test_each_kind_of_xrun_has_its_own_counter(name: str) -> None:
    status, microphone, speaker = flags(name), source(), sink()
    capture(microphone, np.zeros(4, np.int16), status)
    play(speaker, status=status)
    for end in (microphone, speaker):
        assert {kind for kind in FLAGS if getattr(end.counts, kind)} == {name}


def test_the_whole_block_is_filled_and_what_is_missing_is_silence() -> None:
    end = sink()
    end.write(np.full(100, 7, np.int16))
    block = play(end)[:, 0]
    assert block.tolist() == [7] * 100 + [0] * 220


def test_silence_before_the_first_audio_or_in_a_pause_is_no_starvation() -> None:
    end = sink()
    play(end)
    end.write(np.zeros(BLOCK, np.int16))
    play(end)
    end.pause()
    play(end)
    assert (end.counts.starvations, end.counts.lost_samples) == (0, 0)


def test_a_run_of_empty_blocks_is_one_starvation_and_all_of_its_samples_count() -> None:
    end = sink()
    end.write(np.zeros(BLOCK + 20, np.int16))
    for _ in range(4):
        play(end)
    assert (end.counts.starvations, end.counts.lost_samples) == (1, 3 * BLOCK - 20)
    end.write(np.zeros(BLOCK, np.int16))
    play(end)
    play(end)
    assert (end.counts.starvations, end.counts.lost_samples) == (2, 4 * BLOCK - 20)


def test_every_channel_of_the_speaker_gets_the_audio() -> None:
    end = sink(channels=2)
    end.write(np.array([1, 2, 3], np.int16))
    assert play(end, 3, 2).tolist() == [[1, 1], [2, 2], [3, 3]]


def test_what_finds_no_room_in_the_queue_is_told() -> None:
    end = sink()
    assert end.write(np.zeros(50_000, np.int16)) == 2_000
    assert end.fill == 48_000


def test_an_end_is_as_active_as_its_stream_and_closing_gives_the_device_back() -> None:
    closed: list[InputStream | OutputStream] = []
    for end in (source(), sink()):
        end.attach(SimpleNamespace(active=True, latency=0.0125), partial(closed.append, end))
        assert end.active
        assert end.latency_ms == 12.5
        end.close()
        assert closed[-1] is end
