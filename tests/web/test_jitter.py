"""The jitter buffer in JavaScript makes the decisions that Python's makes of the same packets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from encodec_rt.bitstream.packet import Packet, Redundancy, encode_packet, parse_packet
from encodec_rt.voice.jitter import JitterBuffer

HOP, RATE = 320, 24_000

NETWORKS: dict[str, dict[str, Any]] = {
    "steady": {},
    "jitter": {"jitter_s": 0.02},
    "heavy tail": {"jitter_s": 0.01, "spikes": 0.02},
    "loss": {"jitter_s": 0.01, "lost": 0.2},
    "loss with copies": {"jitter_s": 0.015, "lost": 0.15, "copies": 2},
    "a path that becomes slower": {"jitter_s": 0.003, "step_s": 0.15},
    "a path that becomes faster": {"jitter_s": 0.003, "step_s": -0.08},
    "silences": {"jitter_s": 0.01, "silences": True},
    "two frames a packet": {"jitter_s": 0.02, "per_packet": 2, "copies": 1},
    "another source": {"jitter_s": 0.01, "sources": True},
    "a clock that drifts": {"jitter_s": 0.005, "drift": 3e-3},
}


def events_of(
    *, jitter_s: float = 0.001, lost: float = 0.0, spikes: float = 0.0, copies: int = 0,
    step_s: float = 0.0, silences: bool = False, per_packet: int = 1, sources: bool = False,
    drift: float = 0.0, frames: int = 900,
) -> list[list[Any]]:  # fmt: skip
    """A call of 12 s as the buffer sees it: ["put", time, ...] and ["get", time, quiet]."""
    random = np.random.default_rng(frames)
    codes = random.integers(0, 1024, (frames, 8)).astype(np.uint16)
    arrivals: list[tuple[float, list[Any]]] = []
    first_timestamp = (1 << 32) - 100 * HOP
    for number, at in enumerate(range(0, frames - per_packet + 1, per_packet)):
        silent = silences and at // 150 % 2 == 1
        if random.random() < lost or (silent and at % 30):
            continue
        delay_s = 0.1 + random.exponential(jitter_s) + (at > frames // 2) * step_s
        delay_s += random.random() < spikes and float(random.uniform(0.05, 0.3))
        extra = Redundancy(copies, codes[at - copies : at, :2]) if 0 < copies <= at else None
        payload = encode_packet(Packet(codes[at : at + per_packet], extra), bits=10).hex()
        ssrc = 2 if sources and at > frames // 2 else 1
        timestamp = first_timestamp + at * HOP & 0xFFFFFFFF
        arrivals.append(
            (
                at * HOP / RATE + delay_s,
                [None if silent else payload, number & 0xFFFF, timestamp, ssrc],
            )
        )
    hops = [(at * HOP / RATE * (1 + drift) + 0.05, None) for at in range(frames + 20)]
    merged = sorted([*arrivals, *hops], key=lambda event: event[0])
    return [
        ["get", now_s, bool(random.random() < 0.2)] if given is None else ["put", now_s, *given]
        for now_s, given in merged
    ]


def decisions(events: list[list[Any]]) -> list[Any]:
    """What the Python buffer makes of them."""
    buffer, made = JitterBuffer(), []
    for kind, now_s, *rest in events:
        if kind == "get":
            slot = buffer.get(now_s, quiet=rest[0])
            codes = None if slot.codes is None else slot.codes[0].tolist()
            made.append(
                [slot.kind, slot.index, codes, slot.skipped, slot.waited_s, buffer.target_ms]
            )
            continue
        payload, sequence, timestamp, ssrc = rest
        packet = None if payload is None else parse_packet(bytes.fromhex(payload), bits=10)
        receipt = buffer.put(packet, sequence=sequence, timestamp=timestamp, ssrc=ssrc, now_s=now_s)
        late = [[index, codes[0].tolist()] for index, codes in receipt.late]
        made.append([receipt.accepted, receipt.restarted, late])
    return made


@pytest.mark.parametrize("name", NETWORKS)
def test_the_jitter_buffer_decides_as_pythons_does(name: str, node: Any) -> None:
    events = events_of(**NETWORKS[name])
    wanted = decisions(events)
    given = node("jitter", options={}, events=events)
    kinds = set()
    for at, (ours, theirs) in enumerate(zip(wanted, given, strict=True)):
        if len(ours) == 3:
            assert theirs == ours, at
            continue
        kinds.add(ours[0])
        assert theirs[:4] == ours[:4], at
        assert theirs[4:] == pytest.approx(ours[4:], abs=1e-6)
    assert {"idle", "frame"} <= kinds
