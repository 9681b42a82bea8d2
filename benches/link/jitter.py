"""The jitter buffer beside libspeexdsp's, on the same seeded traces.

    python -m benches.link.jitter

Delay trades against late packets, so a single pair of numbers says little about a buffer. Ours is
drawn as a curve over the cost of a late packet; libspeexdsp's has no such setting and is a point.
"""

from __future__ import annotations

import argparse
import ctypes.util
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cffi  # type: ignore[import-untyped]
import numpy as np

from benches.environment import Json
from benches.link.traces import HOP, Outcome, Sent, play, ticks, trace
from benches.record import Record
from encodec_rt.netsim.impairment import PathProfile
from encodec_rt.voice.jitter import JitterBuffer

NETWORKS = {
    "steady": PathProfile(delay_ms=40, loss=0.02),
    "jitter 8 ms": PathProfile(delay_ms=40, jitter_ms=8, loss=0.02),
    "jitter 20 ms": PathProfile(delay_ms=40, jitter_ms=20, loss=0.02),
    "spikes": PathProfile(delay_ms=40, jitter_ms=3, spike_every_s=8, loss=0.02),
    "step up": PathProfile(delay_ms=30, jitter_ms=4, step_at_s=22, step_ms=60, loss=0.02),
    "reordering": PathProfile(delay_ms=40, jitter_ms=2, reorder=0.05, duplicate=0.05),
    "bursty loss": PathProfile(delay_ms=40, jitter_ms=8, loss=0.1, burst=4),
}
LATE_COSTS_MS = (3.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0)


@dataclass(frozen=True)
class Point:
    """The late packets and delays of a buffer, averaged over some traces."""

    late_percent: float
    mean_ms: float
    median_ms: float
    p95_ms: float


def point(outcomes: Sequence[Outcome], packets: Sequence[list[Sent]]) -> Point:
    """The mean over traces of ``outcomes``; ``packets`` are those of each trace."""
    rows = []
    for outcome, sent in zip(outcomes, packets, strict=True):
        delays_ms = outcome.delays_ms(sent)
        quantiles_ms = np.percentile(delays_ms, (50, 95))
        rows.append([100 * outcome.late_share(sent), delays_ms.mean(), *quantiles_ms])
    return Point(*np.mean(rows, axis=0).tolist())


def curve(packets: Sequence[list[Sent]], late_costs_ms: Sequence[float]) -> list[Point]:
    """Our buffer at each cost of a late packet, in ms of delay per percentage point.

    Sorted by mean delay.
    """
    return sorted(
        (
            point([play(sent, JitterBuffer(late_cost_ms=cost)) for sent in packets], packets)
            for cost in late_costs_ms
        ),
        key=lambda each: each.mean_ms,
    )


class Speex:
    """libspeexdsp's jitter buffer, which Mumble uses."""

    DECLARATIONS = """
        typedef struct { char *data; uint32_t len; uint32_t timestamp; uint32_t span;
                         uint16_t sequence; uint32_t user_data; } JitterBufferPacket;
        typedef struct JitterBuffer_ JitterBuffer;
        JitterBuffer *jitter_buffer_init(int step);
        void jitter_buffer_destroy(JitterBuffer *);
        void jitter_buffer_put(JitterBuffer *, const JitterBufferPacket *);
        int jitter_buffer_get(JitterBuffer *, JitterBufferPacket *, int32_t span, int32_t *offset);
        void jitter_buffer_tick(JitterBuffer *);
    """

    def __init__(self, library: str) -> None:
        """Load ``library``, a name or path."""
        self._ffi: Any = cffi.FFI()
        self._ffi.cdef(self.DECLARATIONS)
        self._lib = self._ffi.dlopen(library)

    def play(self, packets: list[Sent]) -> Outcome:
        """Play a trace, taking a frame per hop."""
        lib, room = self._lib, self._ffi.new("char[]", 8)
        offset = self._ffi.new("int32_t *")
        packet = self._ffi.new("JitterBufferPacket *")
        buffer = lib.jitter_buffer_init(HOP)
        outcome = Outcome()
        for now_s, come in ticks(packets):
            for sent in come:
                packet.data, packet.len, packet.span = room, 4, HOP
                packet.timestamp, packet.sequence = sent.index * HOP, sent.sequence
                packet.user_data = sent.index
                lib.jitter_buffer_put(buffer, packet)
            packet.data, packet.len = room, 8
            if lib.jitter_buffer_get(buffer, packet, HOP, offset) == 0:
                outcome.played_s[packet.user_data] = now_s
            lib.jitter_buffer_tick(buffer)
        lib.jitter_buffer_destroy(buffer)
        return outcome


def figure(record: Record, path: Path) -> None:
    """Draw late packets against mean delay, with a panel for each network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(2, 4, figsize=(13, 6))
    for axis, network in zip(axes.flat, NETWORKS, strict=False):
        for buffer, mark in (("ours", "o-"), ("libspeexdsp", "s")):
            rows = [
                each
                for each in record.cases
                if (each.case["network"], each.case["buffer"]) == (network, buffer)
            ]
            points = [(each.values["mean_ms"], each.values["late_percent"]) for each in rows]
            axis.plot(*zip(*points, strict=True), mark, label=buffer)
        axis.set_title(network)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("mean delay, ms")
    for axis in axes[:, 0]:
        axis.set_ylabel("late packets, %")
    axes[0][0].legend()
    axes.flat[-1].axis("off")
    drawn.tight_layout()
    drawn.savefig(path, dpi=110)


def main() -> None:
    """Play every trace through both, and write the record and its picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=45.0)
    arguments = parser.parse_args()
    library = ctypes.util.find_library("speexdsp")
    if library is None:
        sys.exit("libspeexdsp is not installed; run: apt-get install libspeexdsp1")
    speex, record = Speex(library), Record("link-jitter")
    for name, network in NETWORKS.items():
        packets = [trace(network, arguments.seconds, seed=seed) for seed in range(arguments.seeds)]
        case: dict[str, Json] = {"network": name, "seeds": arguments.seeds}
        theirs = point([speex.play(sent) for sent in packets], packets)
        record.add(case | {"buffer": "libspeexdsp"}, values=asdict(theirs))
        for cost in LATE_COSTS_MS:
            (ours,) = curve(packets, (cost,))
            record.add(case | {"buffer": "ours", "late_cost_ms": cost}, values=asdict(ours))
            print(record.table(record.cases[-1:]), flush=True)
    written = record.write()
    figure(record, written.with_suffix(".png"))
    print(written)


if __name__ == "__main__":
    main()
