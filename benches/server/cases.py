"""The cases with honest clients: sessions, overload, a restart, and front processes."""

from __future__ import annotations

import asyncio
import copy
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benches.bundled import bundled
from benches.environment import Json
from benches.record import Case, Record
from benches.server.process import KBPS, Server
from encodec_rt.client.load import Talk, talk_at_once
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio, Codes
from tests.support.tolerances import bound

MAX_JUDGED = 20
"""Differing frames whose codes are compared in float64; each takes a second or so."""
MEMORY_FRAMES = 1500
"""Of the past that a frame's latent is computed from: 20 s, many times what the LSTM remembers."""


def clips(codec: Codec, count: int, seconds: float) -> list[Audio]:
    """Speech for ``count`` clients, each [n], rounded to 16 bits as on the wire."""
    speech = bundled("speech_en", codec.sampling_rate)[0]
    speech = (np.rint(speech * 32768.0).clip(-32768, 32767) / 32768.0).astype(np.float32)
    length = int(seconds * codec.sampling_rate)
    return [np.resize(np.roll(speech, -7_001 * at), length) for at in range(count)]


def differing(codec: Codec, clip: Audio, talk: Talk) -> tuple[int, int]:
    """Frames whose codes are missing or not those of a stream, and how many are near-ties.

    Only the first ``MAX_JUDGED`` of them are judged. Both are 0 if frames were dropped: then the
    audio that was encoded is not ``clip``.
    """
    if talk.dropped:
        return 0, 0
    stream = codec.stream_encoder(KBPS)
    wanted = np.concatenate([stream.push(clip), stream.flush()])
    given = np.stack(talk.codes) if talk.codes else wanted[:0]
    others = np.flatnonzero((given != wanted[: len(given)]).any(axis=1))
    judged = others[:MAX_JUDGED].tolist()
    tied = sum(is_near_tie(codec, clip, at, given, wanted) for at in judged)
    return len(wanted) - len(given) + len(others), tied


@torch.inference_mode()
def is_near_tie(codec: Codec, clip: Audio, frame: int, given: Codes, wanted: Codes) -> bool:
    """Whether two codes of a frame differ only where both vectors are equally near (float64)."""
    hop, model = codec.config.hop_length, copy.deepcopy(codec.model).double()
    silence = np.zeros(codec.packed.prime_frames * hop, np.float32)
    audio = np.concatenate([silence, clip])[: len(silence) + (frame + 1) * hop]
    audio = audio[max(0, len(audio) - MEMORY_FRAMES * hop) :]
    residual = model.encoder(torch.from_numpy(audio)[None, None].double())[0, :, -1]
    for one, other, stage in zip(given[frame], wanted[frame], model.quantizer.stages, strict=False):
        book = stage.codebook.embed
        first, second = (float((residual - book[int(at)]).square().sum()) for at in (one, other))
        if one != other:
            limit = bound("own path", "float32") * float(residual.square().sum())
            return abs(first - second) <= limit
        residual = residual - book[int(one)]
    return False


def add(
    record: Record, case: dict[str, Json], codec: Codec, spoken: Sequence[Audio], talks: list[Talk]
) -> Case:
    """Add the results of all clients to the record."""
    served = [each for each in talks if each.round_trip_ms]
    pairs = [(c, t) for c, t in zip(spoken, talks, strict=True) if t.round_trip_ms]
    if not served:
        raise SystemExit(f"no client was served: {talks[0].refused}")
    # In the first second connections are set up.
    late = [ms for each in served for ms in each.round_trip_ms[75:] or each.round_trip_ms]
    compared = [differing(codec, *pair) for pair in pairs]
    added = record.add(
        case,
        {"round_trip": late},
        deadline_ms=20.0,
        values={
            "served": len(served),
            "refused": len(talks) - len(served),
            "frames": sum(each.sent for each in served),
            "dropped": sum(each.dropped for each in served),
            "missing": sum(each.missing for each in served),
            "resumed": sum(each.resumed for each in served),
            "frames_with_other_codes": sum(others for others, _ in compared),
            "near_ties_in_float64": sum(tied for _, tied in compared),
            "compared": sum(not each.dropped for each in served),
        },
    )
    print(record.table([added]), flush=True)
    return added


def load(codec: Codec, url: str, spoken: Sequence[Audio], retry_s: float = 0.0) -> list[Talk]:
    """Run all clients at once."""
    return asyncio.run(
        talk_at_once(url, spoken, rate_hz=codec.sampling_rate, bandwidth_kbps=KBPS, retry_s=retry_s)
    )


def holds(case: Case) -> bool:
    """Whether every session kept a p99 below 20 ms and lost nothing."""
    trips, values = case.ms["round_trip"], case.values
    late = float(str(trips["p99"])) >= 20.0
    return not (late or values["dropped"] or values["missing"] or values["refused"])


def engine_alone(record: Record, codec: Codec, counts: Sequence[int], passes: int = 150) -> None:
    """Time a pass over each number of slots without a server.

    A frame that arrives during a pass waits for its end, so round trips are about two passes.
    """
    hop = codec.config.hop_length
    for count in counts:
        engine = codec.engine(count, KBPS, gather=True)
        slots, taken = list(range(count)), []
        audio = torch.from_numpy(np.stack([clip[: 40 * hop] for clip in clips(codec, count, 1.0)]))
        for at in range(passes):
            begun = time.perf_counter()
            frame = at % 40 * hop
            codes = engine.encode_slots(slots, audio[:, frame : frame + hop]).rows
            engine.decode_slots(slots, engine.dequantize(codes).rows)
            taken.append(1e3 * (time.perf_counter() - begun))
        record.add({"what": "engine alone", "slots": count}, {"pass": taken[passes // 5 :]})
        print(record.table(record.cases[-1:]), flush=True)


def sessions(
    record: Record, codec: Codec, model: str, count: int, seconds: float, what: str = "sessions"
) -> Case:
    """Run ``count`` sessions on a server that admits ``count``."""
    spoken = clips(codec, count, seconds)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(model, count, Path(folder) / "state")
        talks = load(codec, server.url, spoken)
        server.end()
    case: dict[str, Json] = {"what": what, "sessions": count, "model": codec.name}
    return add(record, case, codec, spoken, talks)


def overload(record: Record, codec: Codec, model: str, count: int, seconds: float) -> None:
    """Let a fifth more clients connect at once than the server admits."""
    spoken = clips(codec, -(-6 * count // 5), seconds)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(model, count, Path(folder) / "state")
        talks = load(codec, server.url, spoken)
        server.end()
    case: dict[str, Json] = {"what": "overload", "sessions": count, "asked": len(spoken)}
    add(record, case, codec, spoken, talks)


def restart(record: Record, codec: Codec, model: str, count: int, seconds: float) -> None:
    """Kill the server in the middle of all sessions, and start it again."""
    spoken = clips(codec, count, seconds)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        first = Server(model, count, state)

        async def kill() -> Server:
            await asyncio.sleep(seconds / 2)
            await asyncio.to_thread(first.end, signal.SIGKILL)
            return await asyncio.to_thread(Server, model, count, state, first.port)

        async def run() -> tuple[list[Talk], Server]:
            # Not live: audio waits while the server is down, as in a recording that is streamed.
            talking = talk_at_once(
                first.url, spoken, rate_hz=codec.sampling_rate, bandwidth_kbps=KBPS, retry_s=60.0,
                live=False,
            )  # fmt: skip
            return await asyncio.gather(talking, kill())

        talks, second = asyncio.run(run())
        second.end()
    case: dict[str, Json] = {"what": "restart", "sessions": count, "model": codec.name}
    add(record, case, codec, spoken, talks)


def fronts(
    record: Record, codec: Codec, model: str, count: int, seconds: float, device: str = "cpu"
) -> None:
    """Measure the CPU time per frame of the engine's process, without and with front processes.

    Fronts should take over the work of its event loop. The time of the engine's thread depends on
    how many sessions happen to be stepped at once. Each case has its own server; all clients are in
    this process and run at their own pace.
    """
    spoken = clips(codec, count, seconds)
    for processes in (0, 2):
        with tempfile.TemporaryDirectory() as folder:
            state = Path(folder) / "state"
            server = Server(model, count, state, fronts=processes, device=device)
            before = (server.cpu_s, server.loop_cpu_s, server.fronts_cpu_s)
            talks = load(codec, server.url, spoken)
            after = (server.cpu_s, server.loop_cpu_s, server.fronts_cpu_s)
            server.end()
        frames = sum(each.sent for each in talks)
        case: dict[str, Json] = {
            "what": "fronts", "fronts": processes, "sessions": count, "model": codec.name,
            "device": device,
        }  # fmt: skip
        added = add(record, case, codec, spoken, talks)
        names = ("process", "event_loop", "fronts")
        us = {
            name: 1e6 * (later - earlier) / frames
            for name, later, earlier in zip(names, after, before, strict=True)
        }
        added.values.update({f"{name}_us_per_frame": each for name, each in us.items()})
        print(", ".join(f"{name} {each:.0f} us" for name, each in us.items()), flush=True)
