from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from encodec_rt.cli.call_panel import CallMeter, CallStatus, call_line, call_panel, summary
from encodec_rt.cli.live_panel import Display, level_bar
from encodec_rt.voice.statistics import InboundStatistics

LATENCY = {"frame": 13.3, "encode": 2.0, "network": 40.0, "jitterBuffer": 26.7, "decode": 3.0}


def statistics(
    seconds: float = 0.0, *, devices: bool = True, silent_s: float = 0.02, **inbound: int
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
            "codecShare": 0.375,
            "secondsSincePacket": silent_s,
            "reconnections": 0,
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


def status(*, devices: bool = True, silent_s: float = 0.02, **changes: int) -> CallStatus:
    meter = CallMeter()
    for second in range(10):
        last = meter.update(
            statistics(second, devices=devices, silent_s=silent_s, **changes),
            float(second),
            sent_db=-20.0,
            heard_db=-26.0,
        )
    return last


def shown(last: CallStatus, *, terminal: bool) -> str:
    text = io.StringIO()
    console = Console(
        file=text, force_terminal=terminal, width=80, color_system=None, soft_wrap=not terminal
    )
    with Display(console, call_panel, call_line) as display:
        display.show(last)
    return text.getvalue()


def test_rates_and_the_delay_of_the_buffer_are_those_of_the_last_seconds() -> None:
    meter = CallMeter()
    for second in range(20):
        fast = statistics(second)
        fast["outbound"]["bytesSent"] += max(0, second - 10) * 750
        last = meter.update(fast, float(second), sent_db=-20.0, heard_db=-26.0)
    assert last.sent_kbps == pytest.approx(12.0)
    assert last.received_kbps == pytest.approx(3.0)
    assert last.buffer_ms == pytest.approx(25.0)
    assert last.target_ms == pytest.approx(40.0)


PANEL = """\
call   Desk Microphone, Desk Speaker   9 s
sent   -60 dB ####################.......... 0 dB   -20.0 dB
heard  -60 dB #################............. 0 dB   -26.0 dB
sent                                 heard
bandwidth       6.0 kbps             bandwidth        3.0 kbps
packet          2 x 8 codebooks      packets          675
copies          1 frames             lost             7
packets         675                  late or refused  0
lost there      4                    from copies      0 frames
round trip      81 ms                concealed        0.00 %, 2 times
encode p50/p99  2.0 / 4.5 ms         decode p50/p99   3.0 / 6.5 ms
codec           38 % of a frame      jitter           0.0 ms
                                     jitter buffer    25 of 40 ms
latency 150.3 ms: inputBuffer 10.0 + inputQueue 5.0 + voiceProcessing 9.3 +
  frame 13.3 + encode 2.0 + network 40.0 + jitterBuffer 26.7 + decode 3.0 +
  playbackQueue 41.0
microphone clock -42 ppm, speaker clock -
speaker starvations 3
"""


def test_the_panel_fits_80_columns_with_both_directions_and_every_term() -> None:
    lines = shown(status(packetsLost=7, concealmentEvents=2), terminal=True)
    text = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", lines)
    wanted = PANEL.splitlines()
    assert [line.rstrip() for line in text.splitlines()[: len(wanted)]] == wanted
    assert max(map(len, PANEL.splitlines())) <= 80


def test_a_dead_line_is_said_to_be_dead() -> None:
    dead = status(silent_s=1.23)
    assert "no packets for 1.2 s" in shown(dead, terminal=True)
    assert "no packets for 1.2 s" in shown(dead, terminal=False)
    assert "no packets" not in shown(status(), terminal=True) + shown(status(), terminal=False)


def test_the_bar_of_a_level_goes_from_60_dB_below_full_scale_to_full_scale() -> None:
    assert [level_bar(level_db).count("#") for level_db in (-90, -60, -58, -30, -2, 0, 3)] == [
        *(0, 0, 1, 15, 29, 30, 30)
    ]
    assert all(len(level_bar(level_db)) == 30 for level_db in range(-90, 10))


def test_the_summary_says_how_the_call_went() -> None:
    counts = statistics(10.0, packetsLost=7) | {"remote": {}}
    counts["encodecRt"]["reconnections"] = 2
    assert summary(counts, 10.4) == (
        "the call ended after 10 s: received 750 packets, lost 7, concealed 0.0 %, "
        "connected again 2 times"
    )


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
    first = CallMeter().update(
        statistics(devices=False) | {"remote": {}, "outbound": {}},
        0.0,
        sent_db=-90.0,
        heard_db=-90.0,
    )
    assert (first.sent_kbps, first.buffer_ms) == (0.0, 0.0)
    assert "round trip -" in call_line(first)
