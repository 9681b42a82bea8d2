"""What a running call shows: both directions, what was lost, and where the latency comes from."""

from __future__ import annotations

import textwrap
from collections import deque
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from encodec_rt.cli.live_panel import WIDTH, latency_text, level_row

WINDOW_S = 3.0
"""Rates and means are taken over this time."""

DEAD_LINE_S = 1.0
"""Even silence is announced every 0.4 s."""

Statistics = dict[str, Any]


@dataclass(frozen=True)
class CallStatus:
    """A snapshot of a call: its statistics, and the recent change of those that are sums."""

    seconds: float
    statistics: Statistics
    sent_db: float
    heard_db: float
    sent_kbps: float
    received_kbps: float
    buffer_ms: float
    target_ms: float


class CallMeter:
    """Turns the statistics of a call, which count from its start, into current values."""

    def __init__(self) -> None:
        """The first snapshot has nothing to compare with."""
        self._past: deque[tuple[float, Statistics]] = deque()

    def update(
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
    """The share of concealed audio, silence excluded, in everything that was played."""
    audible = inbound["concealedSamples"] - inbound["silentConcealedSamples"]
    return float(audible / max(1, inbound["totalSamplesReceived"]))


def summary(statistics: Statistics, seconds: float) -> str:
    """How a call went."""
    inbound, own = statistics["inbound"], statistics["encodecRt"]
    again = own["reconnections"]
    return (
        f"the call ended after {seconds:.0f} s: received {inbound['packetsReceived']} packets, "
        f"lost {inbound['packetsLost']}, concealed {100 * concealed_share(inbound):.1f} %"
        + (f", connected again {again} time{'s' if again > 1 else ''}" if again else "")
    )


def call_line(status: CallStatus) -> str:
    """The status in one line, for logs."""
    statistics = status.statistics
    inbound, own = statistics["inbound"], statistics["encodecRt"]
    faults = [f"{name} {count}" for name, count in _device_faults(statistics) if count]
    silence = _silence(statistics)
    return (
        f"{status.seconds:7.1f} s  sent {status.sent_db:5.1f} dB  heard {status.heard_db:5.1f} dB  "
        f"{own['codebooks']} codebooks x {own['framesPerPacket']}, {own['redundantFrames']} again  "
        f"received {inbound['packetsReceived']}, lost {inbound['packetsLost']}, concealed "
        f"{100 * concealed_share(inbound):.1f} %  round trip {_trip(statistics)}  latency "
        f"{sum(value for _, value in _latency_terms(statistics)):.0f} ms  "
        f"codec {100 * own['codecShare']:.0f} %  {f'{silence}  ' if silence else ''}"
        f"{', '.join(faults) or 'no device faults'}"
    )


def call_panel(status: CallStatus) -> RenderableType:
    """The status in at most 80 columns."""
    statistics = status.statistics
    names = [device["name"] for _, device in _devices(statistics)]
    title = f"call   {', '.join(names)}   {status.seconds:.0f} s"
    columns = Table.grid(padding=(0, 6))
    columns.add_row(_sent(status), _heard(status))
    parts: list[RenderableType] = [
        Text(title, no_wrap=True, overflow="ellipsis"),
        level_row("sent", status.sent_db),
        level_row("heard", status.heard_db),
        columns,
        latency_text(_latency_terms(statistics)),
    ]
    if names:
        parts.append(_device_text(statistics))
    if silence := _silence(statistics):
        parts.append(Text(silence, style="bold red"))
    return Group(*parts)


def _sent(status: CallStatus) -> Table:
    statistics, own = status.statistics, status.statistics["encodecRt"]
    sent = _table("sent")
    sent.add_row("bandwidth", f"{status.sent_kbps:.1f} kbps")
    sent.add_row("packet", f"{own['framesPerPacket']} x {own['codebooks']} codebooks")
    sent.add_row("copies", f"{own['redundantFrames']} frames")
    sent.add_row("packets", str(statistics["outbound"].get("packetsSent", "-")))
    sent.add_row("lost there", str(statistics["remote"].get("packetsLost", "-")))
    sent.add_row("round trip", _trip(statistics))
    sent.add_row("encode p50/p99", _milliseconds(own["encodeMs"]))
    share = own["codecShare"]
    sent.add_row("codec", f"{100 * share:.0f} % of a frame", style=None if share < 1 else "yellow")
    return sent


def _heard(status: CallStatus) -> Table:
    inbound, own = status.statistics["inbound"], status.statistics["encodecRt"]
    heard = _table("heard")
    heard.add_row("bandwidth", f"{status.received_kbps:.1f} kbps")
    heard.add_row("packets", str(inbound["packetsReceived"]))
    heard.add_row("lost", str(inbound["packetsLost"]))
    heard.add_row("late or refused", str(inbound["packetsDiscarded"]))
    heard.add_row("from copies", f"{inbound['encodecRt']['recoveredFrames']} frames")
    share = f"{100 * concealed_share(inbound):.2f} %"
    heard.add_row("concealed", f"{share}, {inbound['concealmentEvents']} times")
    heard.add_row("decode p50/p99", _milliseconds(own["decodeMs"]))
    heard.add_row("jitter", f"{1000 * inbound['jitter']:.1f} ms")
    heard.add_row("jitter buffer", f"{status.buffer_ms:.0f} of {status.target_ms:.0f} ms")
    return heard


def _device_text(statistics: Statistics) -> Text:
    """How fast the devices' clocks run, and what went wrong with them."""
    clocks = [
        f"{side} clock " + ("-" if device["clockPpm"] is None else f"{device['clockPpm']:+.0f} ppm")
        for side, device in _devices(statistics)
    ]
    text = Text(", ".join(clocks))
    faults = [f"{name} {count}" for name, count in _device_faults(statistics) if count]
    if faults:
        text.append("\n" + "\n".join(textwrap.wrap(", ".join(faults), WIDTH)), style="yellow")
    return text


def _silence(statistics: Statistics) -> str:
    """The notice that the line is dead, if it is."""
    silent_s = statistics["encodecRt"]["secondsSincePacket"]
    return f"no packets for {silent_s:.1f} s" if silent_s >= DEAD_LINE_S else ""


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
    """Latency along a sample's path, assuming that the far microphone is like this one."""
    devices = dict(statistics.get("devices", {}).get("latencyMs", {}))
    capture = ("inputBuffer", "inputQueue", "voiceProcessing")
    terms = [(name, devices.pop(name)) for name in capture if name in devices]
    terms += [*statistics["encodecRt"]["latencyMs"].items(), *devices.items()]
    return [(name, value) for name, value in terms if name != "sum"]
