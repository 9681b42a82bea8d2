from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from encodec_rt.cli.live_panel import Display, budget_table, panel, plain_line, status_json
from encodec_rt.sound.meter import (
    SILENCE_DB,
    WINDOW_FRAMES,
    ClockRate,
    LatencyBudget,
    Level,
    QueueTime,
    Status,
    Timings,
)
from tests.support.tolerances import bound

BUDGET = LatencyBudget(10.0, 13.3, 1.0, 2.0, 3.0, 0.8, 40.0, 20.0)


def status(seconds: float = 1.0, **counts: int) -> Status:
    return Status(
        seconds=seconds,
        input_name="Desk Microphone",
        output_name="Desk Speaker",
        input_db=-20.0,
        output_db=-23.0,
        kbps=6.6,
        encode_ms=(2.0, 4.0),
        decode_ms=(3.0, 5.0),
        drift_ppm=123.0,
        target_ms=40.0,
        budget=BUDGET,
        counts={"playback starved": 0, "input overflow": 0} | counts,
    )


def test_the_sum_of_the_budget_is_that_of_all_its_terms() -> None:
    assert BUDGET.total == pytest.approx(90.1)
    assert [name for name, _ in BUDGET.terms()] == [
        "input buffer",
        "hop",
        "input queue",
        "encode",
        "decode",
        "resampler",
        "playback queue",
        "output buffer",
    ]


@pytest.mark.parametrize(("gain", "level_db"), [(1.0, -3.01), (0.1, -23.01), (0.0, SILENCE_DB)])
def test_the_level_of_a_sine_is_three_decibels_below_its_peak(gain: float, level_db: float) -> None:
    level = Level()
    level.update((gain * np.sin(np.arange(24_000) * 0.1)).astype(np.float32))
    assert level.rms_db == pytest.approx(level_db, abs=0.05)
    level.update(np.zeros(0, np.float32))


def test_the_level_falls_when_the_sound_has_ended() -> None:
    level = Level()
    level.update(np.full(320, 0.5, np.float32))
    loud = level.rms_db
    for _ in range(75):
        level.update(np.zeros(320, np.float32))
    assert level.rms_db < loud - 12


def test_percentiles_are_of_the_last_frames_only() -> None:
    times = Timings()
    assert times.p50_p99 == (0.0, 0.0)
    for _ in range(WINDOW_FRAMES):
        times.add(1.0, 1)
    for number in range(WINDOW_FRAMES):
        times.add(1e-3 * (number % 50), 1)
    median, tail = times.p50_p99
    assert median == pytest.approx(24.5, abs=1)
    assert tail == pytest.approx(49, abs=1)


def test_a_call_for_several_frames_counts_per_frame() -> None:
    times = Timings()
    times.add(0.080, 8)
    assert times.p50_p99[0] == pytest.approx(10.0)


def test_the_time_in_a_queue_is_that_of_what_passes_through_it() -> None:
    # Blocks of 13.3 ms stay for 30 ms; looked at every 2 ms, as the worker does.
    queue, block = QueueTime(), 40 / 3
    for now_ms in range(0, 30_000, 2):
        inside = sum(
            block
            for arrival in np.arange(max(0, now_ms // block - 4), now_ms / block) * block
            if arrival <= now_ms < arrival + 30
        )
        queue.update(inside, now_ms / 1000)
    assert queue.ms == pytest.approx(30, abs=1)


@pytest.mark.parametrize("ppm", [-300.0, 0.0, 40.0])
def test_the_rate_of_a_clock_is_found_under_the_comings_and_goings_of_blocks(ppm: float) -> None:
    clock, rate = ClockRate(24_000), 24_000 * (1 + 1e-6 * ppm)
    moments = np.cumsum(np.random.default_rng(0).uniform(0.2, 0.3, 1200))
    for now_s in moments[:60]:
        clock.update(int(now_s * rate) // 320 * 320, now_s)
    assert clock.ppm is None
    for now_s in moments[60:]:
        clock.update(int(now_s * rate) // 320 * 320, now_s)
    assert clock.ppm == pytest.approx(ppm, abs=bound("clock", "ppm"))


def test_a_plain_line_names_the_faults_that_happened_and_no_other() -> None:
    assert "no faults" in plain_line(status())
    line = plain_line(status(**{"playback starved": 3}))
    assert line.endswith("playback starved 3")
    assert "latency 90 ms" in line
    assert "drift +123 ppm" in line


def test_elsewhere_than_on_a_terminal_there_is_a_line_every_two_seconds() -> None:
    text = io.StringIO()
    with Display(Console(file=text, soft_wrap=True), panel, plain_line) as shown:
        for tenth in range(45):
            shown.show(status(seconds=tenth / 10))
    assert len(text.getvalue().splitlines()) == 3
    assert "\x1b" not in text.getvalue()


def test_the_panel_shows_every_term_and_every_counter() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, color_system=None)
    with Display(console, panel, plain_line) as shown:
        shown.show(status(**{"playback starved": 7}))
    assert "…" not in text.getvalue()
    for name, _ in BUDGET.terms():
        assert name in text.getvalue()
    for wanted in ("playback starved", "input overflow", "90.1", "+123 ppm", "2.0 / 4.0 ms"):
        assert wanted in text.getvalue()


def test_the_budget_stands_beside_what_was_measured() -> None:
    text = io.StringIO()
    Console(file=text, width=80).print(budget_table(BUDGET, {"measured, by microphone": 97.4}))
    rows = [line.rsplit(maxsplit=1) for line in text.getvalue().splitlines()]
    assert [row[1] for row in rows[-2:]] == ["90.1", "97.4"]


def test_the_statistics_hold_every_term_counter_and_measurement() -> None:
    session = status(**{"playback starved": 7})
    written = status_json(session, {"byDecoder": {"median_ms": 97.4}})
    given = json.loads(json.dumps(written))
    assert given == written
    assert given["counts"] == {"playbackStarved": 7, "inputOverflow": 0}
    assert given["latencyMs"]["playbackQueue"] == 40.0
    terms = [value for name, value in given["latencyMs"].items() if name != "sum"]
    assert given["latencyMs"]["sum"] == pytest.approx(sum(terms))
    assert len(terms) == len(BUDGET.terms())
    assert given["mouthToEarMs"]["byDecoder"]["median_ms"] == 97.4
