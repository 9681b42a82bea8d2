"""How a call copes with network events: how soon audio resumes, and at what delay.

    python -m benches.link.conditions

Whole calls run on a virtual clock, with redundancy and aiortc's bandwidth estimator. The decoder is
left out, since it does not affect packets, except where pauses in recorded speech matter. The
wrap-around of sequence numbers occurs in the hour of ``endurance``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from benches.environment import Json
from benches.link.calls import SMALL_KBPS, small_codec, speech
from benches.link.curves import Silent
from benches.record import Record
from encodec_rt.link.bandwidth import PathEstimator
from encodec_rt.netsim.impairment import Channel, PathProfile
from encodec_rt.netsim.simulate import SimulatedCall, simulate
from encodec_rt.streaming.codec import Codec
from encodec_rt.voice.bitrate import RateController
from encodec_rt.voice.jitter import JitterBuffer, PlayoutSlot
from encodec_rt.voice.receiver import Receiver

SECONDS = 60
CLIPS = 5
EVENT_S = 20.0
SETTLED_S = 5.0
"""A call's delay is measured from this time on."""
LAST_S = 10.0


@dataclass(frozen=True)
class Condition:
    """A network, and when its event is over (None if there is no event)."""

    network: PathProfile
    drift_ppm: float = 0.0
    over_s: float | None = None
    moved_ms: float = 0.0
    """By how much the path's own delay has grown at the end."""
    event_s: float = EVENT_S
    seconds: float = SECONDS


def path(
    *,
    event_s: float = EVENT_S,
    step_ms: float = 0.0,
    spike_every_s: float = 0.0,
    reorder: float = 0.0,
    duplicate: float = 0.0,
    outages_s: tuple[tuple[float, float], ...] = (),
) -> PathProfile:
    """The path of all calls, with an event at ``event_s`` or a permanent impairment."""
    return PathProfile(
        delay_ms=40,
        jitter_ms=8,
        step_at_s=event_s,
        step_ms=step_ms,
        spike_every_s=spike_every_s,
        reorder=reorder,
        duplicate=duplicate,
        outages_s=outages_s,
    )


CONDITIONS: Mapping[str, Condition] = {
    "as ever": Condition(path()),
    "60 ms delay step": Condition(path(step_ms=60), over_s=EVENT_S, moved_ms=60),
    "60 ms delay step back": Condition(
        PathProfile(delay_ms=100, jitter_ms=8, step_at_s=EVENT_S, step_ms=-60), moved_ms=-60
    ),
    "120 ms spikes": Condition(path(spike_every_s=8)),
    "reordering": Condition(path(reorder=0.05)),
    "duplicates": Condition(path(duplicate=0.1)),
    "5 s outage": Condition(path(outages_s=((EVENT_S, EVENT_S + 5),)), over_s=EVENT_S + 5),
    "+200 ppm drift": Condition(path(), drift_ppm=200),
    "-200 ppm drift": Condition(path(), drift_ppm=-200),
}


def call(codec: Codec, condition: Condition, seed: int) -> SimulatedCall:
    """A call of speech without pauses, under one condition."""
    frames = round(condition.seconds * codec.config.frame_rate)
    codes = np.random.default_rng(seed).integers(0, 1024, (frames, 8)).astype(np.uint16)
    return simulate(
        codes,
        Channel(condition.network, seed),
        Silent(codec.stream_decoder(SMALL_KBPS)),
        controller=RateController(codebooks=8),
        drift_ppm=condition.drift_ppm,
        estimator=PathEstimator(),
    )


def measure(heard: SimulatedCall, condition: Condition, hop_ms: float) -> dict[str, Json]:
    """Gaps between frames that were played, and the delay before and well after the event."""
    hops = [hop for hop in heard.hops if hop.at_s < condition.seconds]
    played = [hop for hop in hops if hop.slot.codes is not None]
    at_s = np.array([hop.at_s for hop in played])
    delays_ms = np.array(heard.delays_ms[: len(played)])
    gaps_ms = np.diff(at_s) * 1000 - hop_ms
    in_outage = [any(a <= t < b for a, b in condition.network.outages_s) for t in at_s[:-1] + 0.05]
    before = (at_s > SETTLED_S) & (at_s < condition.event_s)
    last = at_s > condition.seconds - LAST_S
    before_ms, last_ms = (float(np.median(delays_ms[which])) for which in (before, last))
    resumed_ms: float | None = None
    if condition.over_s is not None:
        # Counted from the arrival of the first packet that was sent after the event.
        arrives_s = min(t for t, ms in heard.transits_ms if t - ms / 1000 >= condition.over_s)
        resumed_ms = 1000 * (float(at_s[at_s >= arrives_s][0]) - arrives_s)
    kinds = [hop.slot.kind for hop in hops]
    return {
        "longest_gap_ms": float(gaps_ms[~np.array(in_outage)].max(initial=0.0)),
        "resumed_after_ms": resumed_ms,
        "delay_p50_before_ms": before_ms,
        "delay_p50_last_ms": last_ms,
        "delay_more_than_the_path_ms": last_ms - before_ms - condition.moved_ms,
        "concealed_share": kinds.count("lost") / len(kinds),
        "inserted_hops": kinds.count("hold"),
        "left_out_frames": sum(hop.slot.skipped for hop in hops),
    }


class PauseAwareBuffer(JitterBuffer):
    """A jitter buffer that counts where it leaves out frames: in pauses or in speech."""

    def __init__(self) -> None:
        """Start counting at 0."""
        super().__init__()
        self.cut = {"in_pauses": 0, "in_speech": 0}

    def get(
        self, now_s: float, *, quiet: bool = False, clock_s: float | None = None
    ) -> PlayoutSlot:
        """``JitterBuffer.get``, counted."""
        slot = super().get(now_s, quiet=quiet, clock_s=clock_s)
        self.cut["in_pauses" if quiet else "in_speech"] += slot.skipped
        return slot


def cuts(codec: Codec, kbps: float, network: PathProfile, seed: int) -> dict[str, Json]:
    """Count where frames of recorded speech are left out as the delay shrinks."""
    clip = speech(codec.config.sampling_rate)
    codes = np.concatenate([codec.stream_encoder(kbps).push(clip)] * CLIPS)
    buffer = PauseAwareBuffer()
    simulate(
        codes,
        Channel(network, seed),
        Receiver(codec.stream_decoder(kbps), buffer=buffer),
        controller=RateController(codebooks=codes.shape[1]),
    )
    seconds = len(codes) / codec.config.frame_rate
    return {"seconds": seconds, **{f"left_out_{where}": n for where, n in buffer.cut.items()}}


def main() -> None:
    """Run every call and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--model", default="default")
    parser.add_argument("--kbps", type=float, default=6.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record, spoken = Record("link-conditions"), Codec.load(arguments.model)
    for name in ("as ever", "60 ms delay step back"):
        for seed in range(arguments.seeds):
            case: dict[str, Json] = {"condition": f"{name}, recorded speech", "seed": seed}
            network = CONDITIONS[name].network
            record.add(case, values=cuts(spoken, arguments.kbps, network, seed))
            print(record.table(record.cases[-1:]), flush=True)
    codec = small_codec()
    hop_ms = 1000 * codec.config.hop_length / codec.config.sampling_rate
    for name, condition in CONDITIONS.items():
        for seed in range(arguments.seeds):
            values = measure(call(codec, condition, seed), condition, hop_ms)
            record.add({"condition": name, "seed": seed}, values=values)
            print(record.table(record.cases[-1:]), flush=True)
    print(record.write())


if __name__ == "__main__":
    main()
