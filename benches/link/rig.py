"""Real calls on a bad network: two processes in two network namespaces, with a router between them.

    python -m benches.link.rig

Speech takes the whole path in real time: encoder, packets, SRTP, UDP, the router's TUN devices,
jitter buffer, concealment, decoder. The figures are those of ``curves`` and ``conditions``, which
run on a virtual clock. Only the session descriptions (SDP) go through pipes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benches.environment import Json
from benches.link import conditions, curves
from benches.link.conditions import Condition, path
from benches.link.rig_end import KINDS, RigEnd, speech
from benches.link.scores import longest_mute
from benches.record import Record
from encodec_rt.netsim.impairment import PathProfile
from encodec_rt.netsim.netns import Rig, why_unavailable
from encodec_rt.netsim.simulate import Hop, SimulatedCall
from encodec_rt.quality import score
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Codes
from encodec_rt.voice.bitrate import HEADER_BYTES, PacketPlan
from encodec_rt.voice.jitter import PlayoutSlot

SIDES = ("caller", "listener")
RATE_HZ = 24_000
EVENT_S = 12.0
LATEST_FIRST_FRAME = 600


def _timed(*, over_s: float | None = None, moved_ms: float = 0.0, **what: Any) -> Condition:
    network = path(event_s=EVENT_S, **what)
    return Condition(network, over_s=over_s, moved_ms=moved_ms, event_s=EVENT_S, seconds=28.0)


CONDITIONS: Mapping[str, Condition] = {
    "loopback": Condition(PathProfile(), event_s=EVENT_S, seconds=18.0),
    **{
        f"{100 * share:g} % {pattern} loss": Condition(network, event_s=EVENT_S, seconds=18.0)
        for pattern, share, network in curves.conditions(curves.LOSSES[1:])
    },
    "60 ms delay step": _timed(step_ms=60, over_s=EVENT_S, moved_ms=60),
    "120 ms spikes": _timed(spike_every_s=8),
    "reordering": _timed(reorder=0.05),
    "duplicates": _timed(duplicate=0.1),
    "5 s outage": _timed(outages_s=((EVENT_S, EVENT_S + 5),), over_s=EVENT_S + 5),
    "bottleneck": Condition(
        PathProfile(delay_ms=20, jitter_ms=3, rate_kbps=40, rate_span_s=(12, 28)),
        event_s=EVENT_S,
        seconds=42.0,
    ),
}


@dataclass(frozen=True, eq=False)
class SpokenPart:
    """What one side says in a call, its codes, and their decoded audio without a network."""

    pcm: NDArray[np.float32]
    codes: Codes
    lossless: NDArray[np.float32]

    def first(self, frames: int) -> SpokenPart:
        """The first ``frames`` of it."""
        samples = frames * len(self.pcm) // len(self.codes)
        return SpokenPart(self.pcm[:samples], self.codes[:frames], self.lossless[:samples])


def say(codec: Codec, side: str, kbps: float, frames: int) -> SpokenPart:
    """What a side's process says in ``frames`` frames."""
    clip, hop = speech(codec, side), codec.config.hop_length
    pcm = np.resize(np.roll(clip, -hop), frames * hop)
    codes = codec.stream_encoder(kbps).push(pcm)
    return SpokenPart(pcm, codes, codec.stream_decoder(kbps).push(codes))


def read_log(
    log: Mapping[str, NDArray[Any]], spoken: SpokenPart, read_s: NDArray[np.float64], begun_s: float
) -> tuple[SimulatedCall, NDArray[np.float64]]:
    """What one end heard, with the speaker's frame numbers and times since ``begun_s``.

    ``read_s`` are the times when the speaker's frames were read. Also returns, for each frame
    played, the ms from its first sample until its audio was ready to be played.
    """
    hop = log["audio"].shape[-1]
    hop_s = hop / RATE_HZ
    kinds, indices, skipped = log["slots"].T
    is_frame = kinds == KINDS.index("frame")
    first = _first_frame(indices[is_frame], log["codes"][is_frame], spoken.codes)
    indices = indices + first
    # The clock that paces the frames is never early, so a frame that was read late was due earlier.
    end_s = np.min(read_s - np.arange(len(read_s)) * hop_s)
    at_s = log["at_s"] - begun_s
    hops = [
        Hop(
            float(at_s[n]),
            PlayoutSlot(
                KINDS[kind], int(indices[n]), _codes(log["codes"][n]), skipped=int(skipped[n])
            ),
            log["audio"][n],
        )
        for n, kind in enumerate(kinds)
        if n >= np.argmax(kinds > 0)
    ]
    played = log["codes"][:, 0] >= 0
    delays_ms = 1000 * (log["at_s"] - end_s - indices * hop_s)[played]
    mouth_to_ear_ms = 1000 * (log["written_s"] - end_s - (indices - 1) * hop_s)[played]

    arrived_s, timestamps, sizes, *shapes = log["packets"].T
    moved = (timestamps - timestamps[0] + (1 << 31)) % (1 << 32) - (1 << 31)
    last = first + moved // hop + shapes[0] - 1
    transits_ms = 1000 * (arrived_s - end_s - last * hop_s)
    arrived_s = arrived_s - begun_s
    plans = [
        (next(rows)[0], PacketPlan(*(int(n) for n in plan)))
        for plan, rows in groupby(zip(arrived_s, *shapes, strict=True), key=lambda row: row[1:])
    ]
    heard = SimulatedCall(
        audio=np.concatenate([each.audio for each in hops]),
        hops=hops,
        delays_ms=delays_ms.tolist(),
        wire_bytes=int(np.sum(sizes + HEADER_BYTES)),
        plans=plans,
        transits_ms=list(zip(arrived_s.tolist(), transits_ms.tolist(), strict=True)),
    )
    return heard, mouth_to_ear_ms


def _first_frame(indices: NDArray[np.int64], heard: NDArray[np.int32], spoken: Codes) -> int:
    """The speaker's frame that a listener numbers 0: the one with which most codes agree."""

    def equal(first: int) -> int:
        at = np.minimum(indices + first, len(spoken) - 1)
        return int((spoken[at, 0] == heard[:, 0]).sum())

    return max(range(LATEST_FIRST_FRAME), key=equal)


def _codes(row: NDArray[np.int32]) -> Codes | None:
    return row[row >= 0][None].astype(np.uint16) if row[0] >= 0 else None


def measure(
    heard: SimulatedCall,
    mouth_to_ear_ms: NDArray[np.float64],
    spoken: SpokenPart,
    statistics: Mapping[str, Any],
    condition: Condition,
) -> dict[str, Json]:
    """The figures of one side of a call: quality, delay, and how it coped with the condition."""
    hop = len(heard.hops[0].audio)
    begin = heard.hops[0].slot.index * hop
    audio = heard.audio[: len(spoken.pcm) - begin]
    kinds = heard.kinds[: len(audio) // hop]
    inbound, own = statistics["inbound"], statistics["encodecRt"]
    values: dict[str, Json] = {
        "network_pesq_wb": score(spoken.lossless[begin:], audio, RATE_HZ).pesq_wb,
        "pesq_wb": score(spoken.pcm[begin:], audio, RATE_HZ).pesq_wb,
        "longest_mute_ms": longest_mute(spoken.lossless, heard, hop) * 1000 * hop / RATE_HZ,
        "concealed_share": kinds.count("lost") / len(kinds),
        "first_frame_heard": begin // hop,
        "packets_received": inbound["packetsReceived"],
        "packets_lost": inbound["packetsLost"],
        "frames_recovered": inbound["encodecRt"]["recoveredFrames"],
        "frames_repaired": inbound["encodecRt"]["repairedFrames"],
        "wire_kbps": heard.wire_bytes * 8e-3 / condition.seconds,
        "encode_ms": own["encodeMs"],
        "decode_ms": own["decodeMs"],
        "latency_ms": own["latencyMs"],
    }
    samples: dict[str, NDArray[np.float64]] = {
        "delay": np.array(heard.delays_ms),
        "mouth_to_ear": mouth_to_ear_ms,
        "transit": np.array([ms for _, ms in heard.transits_ms]),
    }
    for name, ms in samples.items():
        p50, p95 = np.percentile(ms, (50, 95))
        values |= {f"{name}_p50_ms": float(p50), f"{name}_p95_ms": float(p95)}
    if condition.network.rate_kbps:
        return values | curves.squeezed(heard)
    return values | conditions.measure(heard, condition, 1000 * hop / RATE_HZ)


@dataclass(frozen=True, eq=False)
class FinishedCall:
    """A call that has ended: when its network began, and each end's answer and log."""

    name: str
    seed: int
    begun_s: float
    answers: list[Any]
    logs: list[Path]

    def judge(self, spoken: Sequence[SpokenPart], record: Record) -> None:
        """Add the figures of each side to ``record``."""
        condition = CONDITIONS[self.name]
        logs = [dict(np.load(path)) for path in self.logs]
        for at, side in enumerate(SIDES):
            case: dict[str, Json] = {"condition": self.name, "seed": self.seed, "heard_by": side}
            answer, other = self.answers[at], 1 - at
            if answer["error"] is not None:
                record.add(case, values={"error": answer["error"]})
                continue
            frames = len(logs[other]["read_s"]) - 1
            heard, mouth_to_ear_ms = read_log(
                logs[at], spoken[other], logs[other]["read_s"], self.begun_s
            )
            values = measure(
                heard, mouth_to_ear_ms, spoken[other].first(frames), answer["statistics"], condition
            )
            record.add(case, values=values)


def run_call(
    rig: Rig, ends: Sequence[RigEnd], name: str, *, seed: int, frame_rate: float, folder: Path
) -> FinishedCall:
    """Run one call."""
    condition = CONDITIONS[name]
    order: dict[str, Json] = {"frames": round(condition.seconds * frame_rate), "offer": None}
    logs = [folder / f"{name}-{seed}-{side}.npz" for side in SIDES]
    begun_s = rig.impose(condition.network, 2 * seed)
    caller, listener = ends
    caller.send({**order, "log": str(logs[0])})
    listener.send({**order, "log": str(logs[1]), "offer": caller.receive()})
    caller.send({"answer": listener.receive()})
    return FinishedCall(name, seed, begun_s, [end.receive() for end in ends], logs)


def bench(model: str, kbps: float, names: Sequence[str], seeds: int) -> Record:
    """Run every call, one after another, and score them when all have ended."""
    codec, record = Codec.load(model), Record("link-rig")
    frame_rate = codec.config.frame_rate
    longest = round(max(CONDITIONS[name].seconds for name in names) * frame_rate)
    spoken = [say(codec, side, kbps, longest) for side in SIDES]
    with tempfile.TemporaryDirectory() as folder, Rig(PathProfile()) as rig:
        ends = [RigEnd(*each, model, kbps) for each in zip(rig.sides, SIDES, strict=True)]
        calls = []
        for name in names:
            for seed in range(seeds):
                calls.append(
                    run_call(rig, ends, name, seed=seed, frame_rate=frame_rate, folder=Path(folder))
                )
                print(f"{name}: {[answer['error'] or 'done' for answer in calls[-1].answers]}")
        for each in ends:
            each.close()
        for call in calls:
            call.judge(spoken, record)
            print(record.table(record.cases[-2:]), flush=True)
    return record


def main() -> None:
    """Run the calls, and write their record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--kbps", type=float, default=6.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", choices=tuple(CONDITIONS), nargs="+", default=tuple(CONDITIONS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reason = why_unavailable()
    if reason is not None:
        print(f"calls between network namespaces cannot run here: {reason}", file=sys.stderr)
        sys.exit(2)
    print(bench(arguments.model, arguments.kbps, arguments.only, arguments.seeds).write())


if __name__ == "__main__":
    main()
