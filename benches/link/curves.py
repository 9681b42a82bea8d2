"""Speech quality over a bad network: scores against packet loss, with and without each defence.

    python -m benches.link.curves

Calls run on a virtual clock over a simulated network (40 ms plus exp(8 ms) of jitter), so the load
of the machine affects no figure. Writes a record and a picture of its curves.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benches.bundled import bundled
from benches.environment import Json
from benches.link.scores import PLAIN, compare, measure
from benches.record import Record
from encodec_rt.concealment import CONCEALMENT_GAINS
from encodec_rt.link.bandwidth import PathEstimator
from encodec_rt.netsim.impairment import Channel, PathProfile
from encodec_rt.netsim.simulate import SimulatedCall, simulate
from encodec_rt.streaming.codec import Codec
from encodec_rt.voice.bitrate import RateController
from encodec_rt.voice.jitter import JitterBuffer
from encodec_rt.voice.receiver import Receiver

LOSSES = (0.0, 0.01, 0.05, 0.10, 0.20)
BURSTS = {"random": 1.0, "bursty": 3.0}
CLIPS = ("speech_it", "speech_en")
"""The speech in calls with even and odd seeds."""
METRICS = (
    ("network_pesq_wb", "PESQ wide-band, against no loss"),
    ("plcmos_on_clean", "PLCMOS v2, the network's errors alone"),
)
FOREVER = (1.0,) * 100_000


@dataclass(frozen=True)
class Defence:
    """What a call does against loss."""

    name: str
    redundancy: bool
    gains: tuple[float, ...] = CONCEALMENT_GAINS
    repairs: bool = True


DEFENCES = (
    Defence("redundancy and concealment", redundancy=True),
    Defence("concealment alone", redundancy=False),
    Defence("redundancy alone", redundancy=True, gains=(), repairs=False),
    Defence(PLAIN, redundancy=False, gains=FOREVER, repairs=False),
    Defence("neither", redundancy=False, gains=(), repairs=False),
)


def conditions(losses: tuple[float, ...]) -> Iterator[tuple[str, float, PathProfile]]:
    """Each pattern and share of loss, and the network that has it."""
    for pattern, burst in BURSTS.items():
        for loss in losses:
            # Without loss, both patterns are the same.
            if loss or burst == 1:
                yield pattern, loss, PathProfile(delay_ms=40, jitter_ms=8, loss=loss, burst=burst)


@dataclass(frozen=True, eq=False)
class CodedClip:
    """A clip, its codes, and their decoded audio without a network."""

    clip: NDArray[np.float32]
    codes: NDArray[np.uint16]
    lossless: NDArray[np.float32]


def speech(codec: Codec, name: str, kbps: float) -> CodedClip:
    """A bundled clip, encoded."""
    clip = bundled(name, codec.config.sampling_rate)[0]
    encoder = codec.stream_encoder(kbps)
    codes = np.concatenate([encoder.push(clip), encoder.flush()])
    return CodedClip(clip, codes, codec.stream_decoder(kbps).push(codes)[: len(clip)])


def run(
    codec: Codec,
    codes: NDArray[np.uint16],
    network: PathProfile,
    defence: Defence,
    kbps: float,
    seed: int,
) -> tuple[SimulatedCall, Receiver]:
    """Run one call."""
    listener = Receiver(codec.stream_decoder(kbps), gains=defence.gains, repairs=defence.repairs)
    controller = RateController(codebooks=codes.shape[1], redundancy=defence.redundancy)
    heard = simulate(
        codes,
        Channel(network, seed),
        listener,
        controller=controller,
        estimator=PathEstimator(),
    )
    return heard, listener


def squeeze(codec: Codec, codes: NDArray[np.uint16], kbps: float) -> dict[str, Json]:
    """A bottleneck of 40 kbps from second 12 to 28: packet delay, and recovery afterwards."""
    looped = np.concatenate([codes] * 6)
    network = PathProfile(delay_ms=20, jitter_ms=3, rate_kbps=40, rate_span_s=(12, 28))
    listener = Silent(codec.stream_decoder(kbps))
    controller = RateController(codebooks=codes.shape[1])
    heard = simulate(
        looped,
        Channel(network, 0),
        listener,
        controller=controller,
        estimator=PathEstimator(),
    )
    return squeezed(heard)


def squeezed(heard: SimulatedCall) -> dict[str, Json]:
    """The delay of packets before, in and after a bottleneck from second 12 to 28."""
    at_s, transits_ms = np.array(heard.transits_ms).T
    full = [plan for begin, plan in heard.plans if begin < 12][-1]
    back_s = [begin for begin, plan in heard.plans if begin > 28 and plan == full]
    windows: dict[str, Json] = {
        f"transit_p50_ms_from_{begin}_s": float(
            np.median(transits_ms[(at_s >= begin) & (at_s < begin + 4)])
        )
        for begin in range(8, 44, 4)
    }
    after = transits_ms[(at_s >= 16) & (at_s < 28)]
    return {
        **windows,
        "transit_p50_ms_after_4_s": float(np.median(after)),
        "transit_p95_ms_after_4_s": float(np.percentile(after, 95)),
        "full_rate_after_s": back_s[0] - 28 if back_s else None,
        "plans": [[round(t, 2), p.frames, p.codebooks, p.copies] for t, p in heard.plans],
    }


class Silent(Receiver):
    """A receiver that decodes nothing, for calls where only packets matter."""

    def render(self, planned: object) -> NDArray[np.float32]:
        """A hop of zeros."""
        return np.zeros(self.config.hop_length, np.float32)


def budget(codec: Codec, codes: NDArray[np.uint16], kbps: float) -> dict[str, Json]:
    """The latency of a call over a perfect network, from the end of a frame to its playout."""
    listener = Silent(codec.stream_decoder(kbps), buffer=JitterBuffer())
    heard = simulate(
        codes,
        Channel(PathProfile(delay_ms=0.5), 0),
        listener,
        controller=RateController(codebooks=codes.shape[1]),
    )
    hop_ms = 1000 * codec.config.hop_length / codec.config.sampling_rate
    delay_ms = float(np.median(heard.delays_ms))
    lost = heard.kinds[: len(codes)].count("lost")
    return {
        "frame_ms": hop_ms,
        "network_and_jitter_buffer_ms": delay_ms,
        "sum_without_computing_ms": hop_ms + delay_ms,
        "lost": lost,
    }


def figure(record: Record, path: Path) -> None:
    """Draw the curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(2, 2, figsize=(10, 7), sharex=True)
    for row, (metric, label) in enumerate(METRICS):
        for column, pattern in enumerate(BURSTS):
            axis = axes[row][column]
            for defence in DEFENCES:
                points: dict[float, list[float]] = {}
                for case in record.cases:
                    value = case.values.get(metric)
                    wanted = (case.case.get("pattern"), case.case.get("defence"))
                    if wanted == (pattern, defence.name) and isinstance(value, float):
                        points.setdefault(100 * float(str(case.case["loss"])), []).append(value)
                axis.plot(
                    list(points), [np.mean(v) for v in points.values()], "o-", label=defence.name
                )
            axis.set_title(f"{pattern} loss, 40 ms + exp(8 ms)")
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("packets lost, %")
    axes[0][0].legend(fontsize=8)
    drawn.tight_layout()
    drawn.savefig(path, dpi=110)


def main() -> None:
    """Run every condition, and write the record and its picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--kbps", type=float, default=6.0)
    parser.add_argument("--seeds", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    codec = Codec.load(arguments.model)
    said = [speech(codec, name, arguments.kbps) for name in CLIPS]
    codes = said[0].codes
    record = Record("link")
    case: dict[str, Json] = {"model": arguments.model, "kbps": arguments.kbps}
    record.add(case | {"condition": "latency"}, values=budget(codec, codes, arguments.kbps))
    record.add(case | {"condition": "bottleneck"}, values=squeeze(codec, codes, arguments.kbps))
    for pattern, loss, network in conditions(LOSSES):
        for seed in range(arguments.seeds):
            for defence in DEFENCES:
                each = said[seed % len(said)]
                heard, listener = run(
                    codec, each.codes, network, defence, kbps=arguments.kbps, seed=seed
                )
                what: dict[str, Json] = {
                    "pattern": pattern,
                    "loss": loss,
                    "defence": defence.name,
                    "seed": seed,
                }
                values = measure(codec, each.clip, each.lossless, heard, listener)
                record.add(case | what, values=values)
                print(record.table().splitlines()[-1], flush=True)
    compare(record, case)
    written = record.write()
    figure(record, written.with_suffix(".png"))
    print(written)


if __name__ == "__main__":
    main()
