"""The quality of a call: scores, dropouts, and defences compared call by call."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

from benches.environment import Json
from benches.record import Case, Record
from encodec_rt.netsim.simulate import SimulatedCall
from encodec_rt.quality import score
from encodec_rt.streaming.codec import Codec
from encodec_rt.voice.activity import level_db
from encodec_rt.voice.receiver import Receiver

SPEECH_RATE_HZ = 16_000
MUTE_DB = 20.0
PLAIN = "plain repeat"
"""The defence that all others are compared with."""
COMPARED = ("network_pesq_wb", "plcmos", "plcmos_on_clean")
RESAMPLED = 10_000


def measure(
    codec: Codec,
    clip: NDArray[np.float32],
    lossless: NDArray[np.float32],
    heard: SimulatedCall,
    listener: Receiver,
) -> dict[str, Json]:
    """Scores of what was heard, and counts of the call.

    The reference is ``lossless``, the decoded audio of all codes, so the scores judge the network
    only. PLCMOS has no reference: it judges what was heard, and the network's errors applied to
    ``clip``.
    """
    rate_hz, hop = codec.config.sampling_rate, codec.config.hop_length
    decoded = heard.audio[: len(lossless)]
    scores = score(lossless, decoded, rate_hz)
    counts = listener.statistics
    kinds = heard.kinds[: len(lossless) // hop]
    return {
        "network_pesq_wb": scores.pesq_wb,
        "network_estoi": scores.estoi,
        "plcmos": plcmos(decoded, rate_hz),
        "plcmos_on_clean": plcmos(on_clean(clip, lossless, heard, hop), rate_hz),
        "delay_p50_ms": float(np.median(heard.delays_ms)),
        "delay_p95_ms": float(np.percentile(heard.delays_ms, 95)),
        "longest_mute_ms": longest_mute(lossless, heard, hop) * 1000 * hop / rate_hz,
        "packets_lost": counts.packetsLost,
        "frames_recovered": counts.recoveredFrames,
        "frames_repaired": counts.repairedFrames,
        "concealed_share": kinds.count("lost") / max(1, len(kinds)),
        "wire_kbps": heard.wire_bytes * 8e-3 / (len(lossless) / rate_hz),
    }


def longest_mute(lossless: NDArray[np.float32], heard: SimulatedCall, hop: int) -> int:
    """The longest dropout: hops of speech in a row that were heard ``MUTE_DB`` below the original.

    Speech is what lies within ``MUTE_DB`` of the mean power. A hop is compared with the quietest of
    its own frame and the two next to it, so that edges of words do not count.
    """
    said_db = [level_db(frame) for frame in lossless[: len(lossless) // hop * hop].reshape(-1, hop)]
    speech_db = level_db(lossless) - MUTE_DB
    longest = run = 0
    for each in heard.hops:
        near_db = said_db[max(0, each.slot.index - 1) : each.slot.index + 2]
        is_speech = len(near_db) == 3 and min(near_db) > speech_db
        is_mute = is_speech and level_db(each.audio) < min(near_db) - MUTE_DB
        run = run + 1 if is_mute else 0
        longest = max(longest, run)
    return longest


def plcmos(audio: NDArray[np.float32], rate_hz: int) -> float | None:
    """Microsoft's PLCMOS v2, made for packet loss; None if its library is not installed."""
    try:
        from speechmos import plcmos as metric
    except ImportError:
        return None
    speech = soxr.resample(audio, rate_hz, SPEECH_RATE_HZ)
    # It picks raters with numpy's global generator; the seed makes them the same for every call.
    np.random.seed(0)  # noqa: NPY002
    return float(metric.run(np.clip(speech, -1, 1), SPEECH_RATE_HZ)["plcmos"])


def on_clean(
    clip: NDArray[np.float32], lossless: NDArray[np.float32], heard: SimulatedCall, hop: int
) -> NDArray[np.float32]:
    """``clip`` with the errors of the network, not the codec, added hop by hop as heard."""
    frames = len(lossless) // hop
    errors = [
        (at, each.audio - lossless[at * hop : (at + 1) * hop])
        for at, each in ((each.slot.index, each) for each in heard.hops)
        if 0 <= at < frames
    ]
    return np.concatenate([clip[at * hop : (at + 1) * hop] + error for at, error in errors])


def compare(record: Record, case: dict[str, Json]) -> None:
    """Add by how much each defence beats plain repeat, call by call, with 95 % intervals."""
    calls: dict[tuple[str, float, str], list[Case]] = {}
    for each in record.cases:
        if "defence" in each.case:
            pattern, loss, defence = (each.case[key] for key in ("pattern", "loss", "defence"))
            calls.setdefault((str(pattern), float(str(loss)), str(defence)), []).append(each)
    for (pattern, loss, defence), ours in calls.items():
        theirs = calls[pattern, loss, PLAIN]
        if defence == PLAIN:
            continue
        values: dict[str, Json] = {}
        for metric in COMPARED:
            pairs = [
                (a.values[metric], b.values[metric]) for a, b in zip(ours, theirs, strict=True)
            ]
            above = [float(str(a)) - float(str(b)) for a, b in pairs if a is not None]
            if above:
                values[metric] = _confident(np.array(above))
        what: dict[str, Json] = {"pattern": pattern, "loss": loss, "compared": defence}
        record.add(case | what, values=values)


def _confident(samples: NDArray[np.float64]) -> dict[str, Json]:
    """The mean and its 95 % confidence interval, by bootstrap."""
    random = np.random.default_rng(0)
    means = random.choice(samples, (RESAMPLED, len(samples))).mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return {"mean": float(samples.mean()), "low": float(low), "high": float(high)}
