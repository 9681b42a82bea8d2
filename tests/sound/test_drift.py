from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from encodec_rt.sound.drift import (
    CALM_S,
    MAX_CORRECTION,
    MAX_TARGET_MS,
    SLACK_MS,
    START_MS,
    Converter,
    DriftLoop,
    Playout,
)
from encodec_rt.sound.streams import BLOCK_S, OutputStream
from encodec_rt.types import Audio
from tests.support.tolerances import bound
from tests.support.virtual_audio import flags

RATE = 24_000
BLOCK = 320


class Speaker:
    """A sink whose clock is this test's: ``play_until`` calls back when blocks are due."""

    def __init__(self, rate_hz: int = RATE, ppm: float = 0.0) -> None:
        self.sink = OutputStream("speaker", rate_hz, 1)
        self.heard: list[NDArray[np.int16]] = []
        self._block = round(BLOCK_S * rate_hz)
        self._block_s = self._block / (rate_hz * (1 + 1e-6 * ppm))
        self._blocks = 0

    def play_until(self, now_s: float) -> None:
        while (self._blocks + 1) * self._block_s <= now_s:
            self._blocks += 1
            data = bytearray(2 * self._block)
            self.sink.callback(memoryview(data), self._block, None, flags())
            self.heard.append(np.frombuffer(data, np.int16))

    def sound(self) -> NDArray[np.float64]:
        return np.concatenate(self.heard).astype(float) / 32768


def tone(seconds: float, rate: int = RATE, hz: float = 440.0, gain: float = 0.25) -> Audio:
    return (gain * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(
        np.float32
    )


def session(
    audio: Audio,
    *,
    writer_ppm: float = 0.0,
    speaker: Speaker | None = None,
    stalls: list[tuple[float, float]] | tuple[()] = (),
    target_ms: float = START_MS,
) -> tuple[Playout, Speaker, NDArray[np.float64]]:
    """Write ``audio`` block by block at the writer's pace; a stall holds blocks back for a while.

    Gives the playout, the speaker, and the queue's fill in ms after each block.
    """
    speaker = speaker or Speaker()
    playout = Playout(speaker.sink, RATE, target_ms=target_ms)
    fills = []
    for number in range(len(audio) // BLOCK):
        now_s = (number + 1.5) * BLOCK_S / (1 + 1e-6 * writer_ppm)
        for begin_s, length_s in stalls:
            if begin_s <= now_s < begin_s + length_s:
                now_s = begin_s + length_s
        speaker.play_until(now_s)
        playout.write(audio[number * BLOCK : (number + 1) * BLOCK])
        fills.append(playout.fill_ms)
    return playout, speaker, np.array(fills)


@pytest.mark.parametrize(("writer_ppm", "speaker_ppm"), [(500, 0), (-500, 0), (-50, 100)])
def test_drift_for_minutes_neither_starves_nor_floods_the_queue(
    writer_ppm: int, speaker_ppm: int
) -> None:
    playout, speaker, fills = session(
        np.zeros(240 * RATE, np.float32), writer_ppm=writer_ppm, speaker=Speaker(ppm=speaker_ppm)
    )
    assert np.abs(fills - START_MS).max() <= bound("playback fill", "ms")
    counts = speaker.sink.counts
    assert (counts.starvations, counts.lost_samples) == (0, 0)
    assert (playout.inserted, playout.skipped) == (0, 0)
    drift = pytest.approx(writer_ppm - speaker_ppm, rel=bound("drift", "relative"))
    assert playout.loop.drift_ppm == drift


def test_following_drift_drops_and_repeats_nothing() -> None:
    _, speaker, _ = session(tone(20), writer_ppm=500)
    sound = speaker.sound()
    begun = np.flatnonzero(sound)[0]
    body = sound[begun + 100 :]
    steepest = 0.25 * 2 * np.pi * 440 / RATE
    assert np.abs(np.diff(body)).max() < 1.02 * steepest
    assert np.abs(np.diff(body, 2)).max() < 1.1 * steepest * 2 * np.pi * 440 / RATE + 3 / 32768


def test_the_correction_never_exceeds_half_a_per_cent() -> None:
    loop = DriftLoop()
    ratios = [loop.update(5000.0, 40.0, BLOCK_S) for _ in range(5000)]
    ratios += [loop.update(0.0, 5000.0, BLOCK_S) for _ in range(10_000)]
    assert min(ratios) == 1 - MAX_CORRECTION
    assert max(ratios) == 1 + MAX_CORRECTION


def test_a_correction_at_its_limit_does_not_wind_up_the_drift() -> None:
    loop = DriftLoop()
    for _ in range(20_000):
        loop.update(5000.0, 40.0, BLOCK_S)
    assert abs(loop.drift_ppm) < 1e6 * MAX_CORRECTION
    before = loop.drift_ppm
    for _ in range(1000):
        loop.update(5000.0, 40.0, BLOCK_S)
    assert loop.drift_ppm == before


def test_a_large_piece_counts_as_the_blocks_it_is_made_of() -> None:
    small, large = DriftLoop(), DriftLoop()
    for loop in (small, large):
        loop.rebase(40.0)
    for _ in range(8):
        small.update(60.0, 40.0, BLOCK_S)
    large.update(60.0, 40.0, 8 * BLOCK_S)
    assert large.ratio == pytest.approx(small.ratio, rel=1e-5)


@pytest.mark.parametrize("rate", [44_100, 48_000, 16_000])
def test_a_device_of_another_rate_gets_the_same_pitch(rate: int) -> None:
    _, speaker, fills = session(tone(4, hz=1000.0), speaker=Speaker(rate_hz=rate))
    sound = speaker.sound()[rate : 3 * rate]
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    assert np.argmax(spectrum) * rate / len(sound) == pytest.approx(1000, abs=2)
    assert np.abs(fills - START_MS).max() <= bound("playback fill", "ms")


def test_the_start_waits_for_the_target_and_counts_no_fault() -> None:
    playout, speaker, fills = session(tone(1))
    assert fills[0] == pytest.approx(START_MS, abs=1.5)
    assert playout.inserted == 0
    silent = np.flatnonzero(speaker.sound())[0]
    assert silent >= (START_MS - 1000 * BLOCK_S) * RATE / 1000


def test_a_stall_is_counted_and_the_audio_goes_on_in_order() -> None:
    audio = np.linspace(0.1, 0.9, 6 * RATE, dtype=np.float32)
    playout, speaker, fills = session(audio, stalls=[(2.0, 0.1)])
    counts = speaker.sink.counts
    assert counts.starvations == 1
    assert counts.lost_samples > 0
    sound = speaker.sound()
    rising = sound[np.flatnonzero(sound)[0] + 100 :]
    rising = rising[rising != 0]
    assert np.all(np.diff(rising) > -2 / 32768)
    gap = np.flatnonzero(sound[RATE : 5 * RATE] == 0)
    assert len(gap) == counts.lost_samples + playout.inserted
    assert fills[-1] < START_MS + SLACK_MS


def test_what_will_follow_at_once_makes_silence_needless() -> None:
    speaker = Speaker()
    playout = Playout(speaker.sink, RATE)
    playout.write(tone(BLOCK_S))
    speaker.play_until(0.2)
    playout.write(tone(BLOCK_S), backlog_ms=150.0)
    assert speaker.sink.counts.starvations == 1
    assert playout.inserted == 0


def test_a_burst_beyond_the_slack_is_left_out_in_one_piece_and_counted() -> None:
    speaker = Speaker()
    playout = Playout(speaker.sink, RATE)
    for _ in range(40):
        playout.write(tone(BLOCK_S))
    assert playout.fill_ms <= START_MS + SLACK_MS
    burst = playout.skipped
    assert burst > 0
    end_s, fills = 0.0, []
    for _ in range(60):
        end_s += BLOCK_S
        speaker.play_until(end_s)
        playout.write(tone(BLOCK_S))
        fills.append(playout.fill_ms)
    assert playout.skipped > burst
    assert fills[-1] == pytest.approx(START_MS + 1000 * BLOCK_S, abs=1000 * BLOCK_S)
    assert speaker.sink.counts.starvations == 0


def test_starving_again_and_again_raises_the_target_up_to_a_limit() -> None:
    stalls = [(1.5 * n, 0.08 + 0.02 * n) for n in range(1, 30)]
    playout, _, _ = session(np.zeros(50 * RATE, np.float32), stalls=stalls)
    assert START_MS < playout.target_ms <= MAX_TARGET_MS


def test_a_stall_that_starves_in_pieces_raises_the_target_once() -> None:
    speaker = Speaker()
    playout = Playout(speaker.sink, RATE)
    now_s = 0.0
    for _ in range(5):
        playout.write(tone(BLOCK_S))
        now_s += 0.1
        speaker.play_until(now_s)
    playout.write(tone(BLOCK_S))
    assert speaker.sink.counts.starvations == 5
    assert playout.target_ms == START_MS + 10


def test_calm_lowers_the_target_to_where_it_began() -> None:
    playout, _, _ = session(np.zeros(int(3 * CALM_S) * RATE, np.float32), stalls=[(1.0, 0.2)])
    assert playout.target_ms == START_MS


def test_clipping_is_counted() -> None:
    speaker = Speaker()
    playout = Playout(speaker.sink, RATE)
    playout.write(np.full(BLOCK, 1.5, np.float32))
    assert 0 < playout.clipped <= BLOCK
    assert speaker.sink.fill == RATE * START_MS / 1000


def test_the_resampler_holds_back_less_than_a_millisecond() -> None:
    converter = Converter()
    for _ in range(100):
        converter.process(tone(BLOCK_S), 1.0001)
    assert 0 < converter.held < RATE / 1000
    assert len(converter.process(np.zeros(0, np.float32), 1.0)) == 0


def test_a_new_sink_is_begun_anew_with_the_drift_known() -> None:
    playout, _, _ = session(np.zeros(60 * RATE, np.float32), writer_ppm=300)
    known = playout.loop.drift_ppm
    second = Speaker()
    playout.attach(second.sink)
    playout.write(tone(BLOCK_S))
    assert second.sink.fill == pytest.approx(RATE * playout.target_ms / 1000, abs=40)
    assert playout.loop.drift_ppm == pytest.approx(known, abs=1)
    assert playout.inserted == 0


def test_a_sink_that_asks_for_audio_itself_is_played_without_any_change_of_pitch() -> None:
    speaker = Speaker()
    playout = Playout(speaker.sink, RATE, follow=False)
    for number in range(20_000):
        speaker.play_until(number * BLOCK_S)
        while playout.fill_ms <= playout.target_ms:
            playout.write(np.zeros(BLOCK, np.float32))
    assert playout.loop.ratio == 1.0
    assert speaker.sink.counts.starvations == 0
