"""Counters of a call under the names of W3C's webrtc-stats, as dashboards expect them.

Times are seconds, as there. What the standard has no name for is in ``encodecRt``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np


@dataclass
class InboundStatistics:
    """One stream received: RTCInboundRtpStreamStats, and how its frames were played."""

    packetsReceived: int = 0
    packetsLost: int = 0
    packetsDiscarded: int = 0
    """Refused by the parser or the jitter buffer, or too late to be played."""
    bytesReceived: int = 0
    fecPacketsReceived: int = 0
    """Packets that carried redundancy."""
    jitter: float = 0.0
    totalSamplesReceived: int = 0
    concealedSamples: int = 0
    silentConcealedSamples: int = 0
    concealmentEvents: int = 0
    insertedSamplesForDeceleration: int = 0
    removedSamplesForAcceleration: int = 0
    jitterBufferDelay: float = 0.0
    jitterBufferTargetDelay: float = 0.0
    jitterBufferEmittedCount: int = 0
    recoveredFrames: int = field(default=0, metadata={"own": True})
    """Frames played from a redundant copy."""
    repairedFrames: int = field(default=0, metadata={"own": True})
    """Frames that arrived too late to be played but repaired the decoder's state."""
    silentFrames: int = field(default=0, metadata={"own": True})
    """Frames that were never sent, because of silence."""

    def as_dict(self) -> dict[str, object]:
        """As JSON: the standard's names at the top, ours under "encodecRt"."""
        values = asdict(self)
        own = {name: values.pop(name) for name in list(values) if name in _OWN}
        return {"type": "inbound-rtp", "kind": "audio", **values, "encodecRt": own}


_OWN = {
    entry.name
    for entry in InboundStatistics.__dataclass_fields__.values()
    if entry.metadata.get("own")
}


def percentiles(samples_ms: Sequence[float]) -> dict[str, float]:
    """The median and the 99th percentile, 0 where there is none."""
    if not samples_ms:
        return {"p50": 0.0, "p99": 0.0}
    p50, p99 = np.percentile(samples_ms, (50, 99))
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


class CodecTimes:
    """How long the codec took for the last frames, in ms, and as a share of their duration."""

    def __init__(self, hop_s: float) -> None:
        """``hop_s`` is how long a frame lasts."""
        self.hop_s = hop_s
        self.encode_ms: deque[float] = deque(maxlen=1000)
        self.decode_ms: deque[float] = deque(maxlen=1000)

    @property
    def share(self) -> float:
        """The time taken for both directions, as a share of the time there is.

        0 for the first second, whose frames are slower than others.
        """
        if len(self.encode_ms) * self.hop_s < 1:
            return 0.0
        taken_ms = percentiles(self.encode_ms)["p50"] + percentiles(self.decode_ms)["p50"]
        return taken_ms / (1000 * self.hop_s)


def latency_ms(
    counts: InboundStatistics,
    times: CodecTimes,
    *,
    frames_per_packet: int,
    round_trip_s: float | None,
) -> dict[str, float]:
    """From the first sample of a frame at the far end's input to its playout, by term, and "sum".

    The far end's encoder is assumed to be as fast as this one's, and the network to be equally fast
    both ways.
    """
    frame_ms = 1000 * times.hop_s
    terms = {
        "frame": frame_ms,
        "encode": percentiles(times.encode_ms)["p50"],
        "packet": (frames_per_packet - 1) * frame_ms,
        "network": 500 * (round_trip_s or 0.0),
        "jitterBuffer": 1000 * counts.jitterBufferDelay / max(1, counts.jitterBufferEmittedCount),
        "decode": percentiles(times.decode_ms)["p50"],
    }
    # A round trip that two clocks disagree about can come out below zero.
    known = {name: max(0.0, value) for name, value in terms.items()}
    return {name: round(value, 2) for name, value in known.items()} | {
        "sum": round(sum(known.values()), 2)
    }


class ArrivalCounter:
    """Packets lost and interarrival jitter of one source (RFC 3550, appendices A.3 and A.8)."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._ssrc: int | None = None
        self._first = self._highest = self._received = self._lost_before = 0
        self._transit: float | None = None
        self.jitter_s = 0.0

    @property
    def highest(self) -> int:
        """The highest sequence number so far, counted on where it wraps."""
        return self._highest

    @property
    def lost(self) -> int:
        """Packets expected but not received; duplicates count against it, as in RTCP."""
        expected = self._highest - self._first + 1 if self._ssrc is not None else 0
        return self._lost_before + expected - self._received

    def add(self, sequence: int, timestamp: int, ssrc: int, now_s: float) -> None:
        """Count one more packet."""
        if ssrc != self._ssrc:
            self._lost_before = self.lost
            self._ssrc, self._first, self._highest, self._received = ssrc, sequence, sequence, 0
            self._transit = None
        moved = (sequence - self._highest + (1 << 15) & 0xFFFF) - (1 << 15)
        self._highest = max(self._highest, self._highest + moved)
        self._received += 1
        transit = now_s - timestamp / self._rate_hz
        if self._transit is not None and abs(transit - self._transit) < 10:
            self.jitter_s += (abs(transit - self._transit) - self.jitter_s) / 16
        self._transit = transit
