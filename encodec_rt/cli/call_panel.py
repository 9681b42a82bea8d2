"""What a running call shows: both directions, what was lost, and where the latency comes from."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from encodec_rt.cli.live_panel import level_bar, terms_table

WINDOW_S = 3.0
"""Rates and means are taken over this time."""

Statistics = dict[str, Any]


@dataclass(frozen=True)
class CallStatus:
    """One look at a call: its statistics, and the recent course of those that are sums."""

    seconds: float
    statistics: Statistics
    sent_db: float
    heard_db: float
    sent_kbps: float
    received_kbps: float
    buffer_ms: float
    target_ms: float


class CallMeter:
    """Turns the statistics of a call, which count from its beginning, into what happens now."""

    def __init__(self) -> None:
        """The first look has nothing before it to compare with."""
        self._past: deque[tuple[float, Statistics]] = deque()

    def look(
        self, statistics: Statistics, seconds: float, *, sent_db: float, heard_db: float
    ) -> CallStatus:
        """The status ``seconds`` after the call's beginning."""
        self._past.append((seconds, statistics))
        while len(self._past) > 2 and seconds - self._past[1][0] >= WINDOW_S:
            self._past.popleft()
        before_s, before = self._past[0]

        def grown(group: str, name: str) -> float:
            return float(statistics[group].get(name, 0) - before[group].get(name, 0))

        elapsed_s = max(1e-9, seconds - before_s)
        emitted = max(1.0, grown("inbound", "jitterBufferEmittedCount"))
        return CallStatus(
            seconds=seconds,
            statistics=statistics,
            sent_db=sent_db,
            heard_db=heard_db,
            sent_kbps=8e-3 * grown("outbound", "bytesSent") / elapsed_s,
            received_kbps=8e-3 * grown("inbound", "bytesReceived") / elapsed_s,
            buffer_ms=1000 * grown("inbound", "jitterBufferDelay") / emitted,
            target_ms=1000 * grown("inbound", "jitterBufferTargetDelay") / emitted,
        )


def concealed_share(inbound: Statistics) -> float:
    """What was concealed while somebody spoke, as a share of all that was played."""
    audible = inbound["concealedSamples"] - inbound["silentConcealedSamples"]
    return float(audible / max(1, inbound["totalSamplesReceived"]))


def call_line(status: CallStatus) -> str:
    """The status in one line, for logs."""
    statistics = status.statistics
    inbound, own = statistics["inbound"], statistics["encodecRt"]
    faults = [f"{name} {count}" for name, count in _device_faults(statistics) if count]
    return (
        f"{status.seconds:7.1f} s  sent {status.sent_db:5.1f} dB  heard {status.heard_db:5.1f} dB  "
        f"{own['codebooks']} codebooks x {own['framesPerPacket']}, {own['redundantFrames']} again  "
        f"received {inbound['packetsReceived']}, lost {inbound['packetsLost']}, concealed "
        f"{100 * concealed_share(inbound):.1f} %  round trip {_trip(statistics)}  latency "
        f"{sum(value for _, value in _latency_terms(statistics)):.0f} ms  "
        f"{', '.join(faults) or 'no device faults'}"
    )


def call_panel(status: CallStatus) -> RenderableType:
    """The status as a few columns, under the names of webrtc-stats where it has one."""
    statistics = status.statistics
    inbound, own = statistics["inbound"], statistics["encodecRt"]
    sent = _table("sent")
    sent.add_row("level", f"{level_bar(status.sent_db)} {status.sent_db:5.1f} dB")
    sent.add_row("bandwidth", f"{status.sent_kbps:.1f} kbps")
    sent.add_row("codebooks", str(own["codebooks"]))
    sent.add_row("frames per packet", str(own["framesPerPacket"]))
    sent.add_row("redundant frames", str(own["redundantFrames"]))
    sent.add_row("packetsSent", str(statistics["outbound"].get("packetsSent", "-")))
    sent.add_row("packetsLost, by the far side", str(statistics["remote"].get("packetsLost", "-")))
    sent.add_row("roundTripTime", _trip(statistics))
    sent.add_row("encode p50/p99", _milliseconds(own["encodeMs"]))
    heard = _table("heard")
    heard.add_row("level", f"{level_bar(status.heard_db)} {status.heard_db:5.1f} dB")
    heard.add_row("bandwidth", f"{status.received_kbps:.1f} kbps")
    heard.add_row("jitterBufferDelay", f"{status.buffer_ms:.0f} ms")
    heard.add_row("jitterBufferTargetDelay", f"{status.target_ms:.0f} ms")
    heard.add_row("jitter", f"{1000 * inbound['jitter']:.1f} ms")
    for name in ("packetsReceived", "packetsLost", "packetsDiscarded", "fecPacketsReceived"):
        heard.add_row(name, str(inbound[name]))
    heard.add_row("recovered from copies", str(inbound["encodecRt"]["recoveredFrames"]))
    heard.add_row("concealmentEvents", str(inbound["concealmentEvents"]))
    heard.add_row("concealed", f"{100 * concealed_share(inbound):.2f} %")
    heard.add_row("decode p50/p99", _milliseconds(own["decodeMs"]))
    faults = _table("devices")
    faults.columns[1].justify = "right"
    for side, device in _devices(statistics):
        ppm = device["clockPpm"]
        faults.add_row(f"{side} clock", "-" if ppm is None else f"{ppm:+.0f} ppm")
    for name, count in _device_faults(statistics):
        faults.add_row(name, str(count), style="yellow" if count else "dim")
    columns = Table.grid(padding=(0, 3))
    columns.add_row(sent, heard, terms_table(_latency_terms(statistics)), faults)
    names = [device["name"] for _, device in _devices(statistics)]
    return Group(Text(f"call   {', '.join(names)}   {status.seconds:.0f} s"), columns)


def _table(title: str) -> Table:
    return Table(title, "", box=None, pad_edge=False)


def _trip(statistics: Statistics) -> str:
    seconds = statistics["remote"].get("roundTripTime")
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"


def _milliseconds(times: dict[str, float]) -> str:
    return f"{times['p50']:.1f} / {times['p99']:.1f} ms"


def _devices(statistics: Statistics) -> list[tuple[str, Statistics]]:
    devices = statistics.get("devices", {})
    return [(side, devices[side]) for side in ("microphone", "speaker") if side in devices]


def _device_faults(statistics: Statistics) -> list[tuple[str, int]]:
    return [
        (f"{side} {name}", count)
        for side, device in _devices(statistics)
        for name, count in device.items()
        if name not in ("name", "clockPpm")
    ]


def _latency_terms(statistics: Statistics) -> list[tuple[str, float]]:
    """On the way of a sample, if the far microphone is like this one."""
    devices = dict(statistics.get("devices", {}).get("latencyMs", {}))
    capture = ("inputBuffer", "inputQueue", "voiceProcessing")
    terms = [(name, devices.pop(name)) for name in capture if name in devices]
    terms += [*statistics["encodecRt"]["latencyMs"].items(), *devices.items()]
    return [(name, value) for name, value in terms if name != "sum"]
