from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from encodec_rt.cli.call_panel import CallMeter, CallStatus, call_line, call_panel
from encodec_rt.cli.live_panel import Display
from encodec_rt.voice.statistics import InboundStatistics

LATENCY = {"frame": 13.3, "encode": 2.0, "network": 40.0, "jitterBuffer": 26.7, "decode": 3.0}


def statistics(
    seconds: float = 0.0, *, devices: bool = True, **inbound: int
) -> dict[str, dict[str, Any]]:
    """A call that sends 6 kbps and receives 3, with a jitter buffer of 25 ms that aims at 40."""
    counts = InboundStatistics(
        packetsReceived=int(75 * seconds),
        bytesReceived=int(375 * seconds),
        totalSamplesReceived=int(24_000 * seconds),
        jitterBufferDelay=600 * seconds,
        jitterBufferTargetDelay=960 * seconds,
        jitterBufferEmittedCount=int(24_000 * seconds),
        **inbound,
    )
    report: dict[str, dict[str, Any]] = {
        "inbound": counts.as_dict(),
        "outbound": {"packetsSent": int(75 * seconds), "bytesSent": int(750 * seconds)},
        "remote": {"packetsLost": 4, "roundTripTime": 0.081},
        "encodecRt": {
            "framesPerPacket": 2,
            "codebooks": 8,
            "redundantFrames": 1,
            "encodeMs": {"p50": 2.0, "p99": 4.5},
            "decodeMs": {"p50": 3.0, "p99": 6.5},
            "latencyMs": {**LATENCY, "sum": 85.0},
        },
    }
    if devices:
        report["devices"] = {
            "microphone": {"name": "Desk Microphone", "inputOverflows": 0, "clockPpm": -41.7},
            "speaker": {"name": "Desk Speaker", "starvations": 3, "clockPpm": None},
            "latencyMs": {
                "inputBuffer": 10.0,
                "inputQueue": 5.0,
                "voiceProcessing": 9.3,
                "playbackQueue": 41.0,
                "sum": 65.3,
            },
        }
    return report


def status(*, devices: bool = True, **changes: int) -> CallStatus:
    meter = CallMeter()
    for second in range(10):
        last = meter.look(
            statistics(second, devices=devices, **changes),
            float(second),
            sent_db=-20.0,
            heard_db=-26.0,
        )
    return last


def shown(last: CallStatus, *, terminal: bool) -> str:
    text = io.StringIO()
    console = Console(
        file=text, force_terminal=terminal, width=190, color_system=None, soft_wrap=not terminal
    )
    with Display(console, call_panel, call_line) as display:
        display.show(last)
    return text.getvalue()


def test_rates_and_the_delay_of_the_buffer_are_those_of_the_last_seconds() -> None:
    meter = CallMeter()
    for second in range(20):
        fast = statistics(second)
        fast["outbound"]["bytesSent"] += max(0, second - 10) * 750
        last = meter.look(fast, float(second), sent_db=-20.0, heard_db=-26.0)
    assert last.sent_kbps == pytest.approx(12.0)
    assert last.received_kbps == pytest.approx(3.0)
    assert last.buffer_ms == pytest.approx(25.0)
    assert last.target_ms == pytest.approx(40.0)


def test_the_panel_shows_both_directions_and_every_term_and_counter() -> None:
    text = shown(status(packetsLost=7, concealmentEvents=2), terminal=True)
    for name in (*LATENCY, "inputBuffer", "voiceProcessing", "playbackQueue"):
        assert name in text
    rows = {
        "bandwidth": "6.0 kbps",
        "frames per packet": "2",
        "redundant frames": "1",
        "roundTripTime": "81 ms",
        "encode p50/p99": "2.0 / 4.5 ms",
        "decode p50/p99": "3.0 / 6.5 ms",
        "jitterBufferDelay": "25 ms",
        "jitterBufferTargetDelay": "40 ms",
        "concealmentEvents": "2",
        "microphone clock": "-42 ppm",
        "speaker clock": "-",
        "speaker starvations": "3",
        "sum": "150.3",
    }
    for name, value in rows.items():
        assert re.search(f"{re.escape(name)} +{re.escape(value)}( |$)", text, re.MULTILINE), name
    assert "Desk Microphone, Desk Speaker" in text


def test_elsewhere_than_on_a_terminal_a_line_names_the_faults_of_the_devices() -> None:
    (line,) = shown(status(packetsLost=7), terminal=False).splitlines()
    for part in ("lost 7", "8 codebooks x 2, 1 again", "round trip 81 ms", "latency 150 ms"):
        assert part in line
    assert line.endswith("speaker starvations 3")
    assert "\x1b" not in line


def test_a_call_between_files_has_no_devices_to_show() -> None:
    last = status(devices=False)
    assert call_line(last).endswith("no device faults")
    assert "clock" not in shown(last, terminal=True)


def test_a_call_that_has_not_begun_is_shown_without_dividing_by_zero() -> None:
    first = CallMeter().look(
        statistics(devices=False) | {"remote": {}, "outbound": {}},
        0.0,
        sent_db=-90.0,
        heard_db=-90.0,
    )
    assert (first.sent_kbps, first.buffer_ms) == (0.0, 0.0)
    assert "round trip -" in call_line(first)
