"""The server under load: sessions against round trips, overload, a kill, comings and goings, abuse.

    python -m benches.server [sessions overload restart churn hostile] [--counts 1 2 4 8 10]

The server is a process of its own, and so are its clients (this one), on loopback. Every client
sends a frame of speech every 13.3 ms and gets its codes and decoded audio back; the round trip is
from the last sample sent to the audio. The picture has sessions against their p50 and p99.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import torch

from benches.environment import Json
from benches.record import RESULTS, Record
from encodec_rt.audio import AudioReader
from encodec_rt.client.load import Talk, talk_at_once
from encodec_rt.server.protocol import (
    STREAM_PATH,
    SUBPROTOCOL,
    Kind,
    pack_event,
    pack_message,
)
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio

KBPS = 6.0
PARTS = ("sessions", "overload", "restart", "churn", "hostile")


class Server:
    """``encodec-rt serve`` in a process of its own."""

    def __init__(self, model: str, sessions: int, state: Path, port: int = 0) -> None:
        """Start it and wait until it serves."""
        command = [sys.executable, "-m", "encodec_rt", "serve", "--model", model, "-b", str(KBPS)]
        command += ["--sessions", str(sessions), "--state", str(state), "--port", str(port)]
        command += ["--drain-s", "0"]
        self._running = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert self._running.stderr is not None
        line = self._running.stderr.readline().decode()
        found = re.search(r"on (http://127\.0\.0\.1:(\d+));", line)
        if found is None:
            raise SystemExit(f"the server did not start: {line.strip()}")
        self.url, self.port = found[1], int(found[2])
        # Nobody reads the log, and a full pipe would stop the server.
        self._reading = threading.Thread(target=self._running.stderr.read, daemon=True)
        self._reading.start()

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it by a signal."""
        self._running.send_signal(number)
        self._running.wait()
        self._reading.join()

    @property
    def memory_mb(self) -> float:
        """What it holds in memory."""
        status = Path(f"/proc/{self._running.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024


def clips(codec: Codec, count: int, seconds: float) -> list[Audio]:
    """Speech of so many speakers, as 16 bits carry it."""
    path = resources.files("encodec_rt") / "assets" / "speech_en.flac"
    with AudioReader(str(path)) as reader:
        speech = np.concatenate(list(reader.blocks(codec.sampling_rate, 1)), axis=1)[0]
    speech = (np.rint(speech * 32768.0).clip(-32768, 32767) / 32768.0).astype(np.float32)
    length = int(seconds * codec.sampling_rate)
    return [np.resize(np.roll(speech, -7_001 * at), length) for at in range(count)]


def differing(codec: Codec, clip: Audio, talk: Talk) -> int:
    """Frames that came with other codes than a stream's, or not; after a drop, nothing is said."""
    if talk.dropped:
        return 0
    stream = codec.stream_encoder(KBPS)
    wanted = np.concatenate([stream.push(clip), stream.flush()])
    given = np.stack(talk.codes) if talk.codes else wanted[:0]
    same = (given == wanted[: len(given)]).all(axis=1).sum()
    return len(wanted) - int(same)


def add(
    record: Record, case: dict[str, Json], codec: Codec, spoken: Sequence[Audio], talks: list[Talk]
) -> None:
    """Add what became of all clients."""
    served = [each for each in talks if each.round_trip_ms]
    pairs = [(c, t) for c, t in zip(spoken, talks, strict=True) if t.round_trip_ms]
    if not served:
        raise SystemExit(f"nobody was served: {talks[0].refused}")
    # The first second has connections and welcomes in it.
    late = [ms for each in served for ms in each.round_trip_ms[75:]]
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
            "frames_with_other_codes": sum(differing(codec, *pair) for pair in pairs),
            "compared": sum(not each.dropped for each in served),
        },
    )
    print(record.table([added]), flush=True)


def load(codec: Codec, url: str, spoken: Sequence[Audio], retry_s: float = 0.0) -> list[Talk]:
    """All clients at once."""
    return asyncio.run(
        talk_at_once(url, spoken, rate_hz=codec.sampling_rate, bandwidth_kbps=KBPS, retry_s=retry_s)
    )


def sessions(record: Record, codec: Codec, model: str, count: int, seconds: float) -> None:
    """So many sessions on a server for so many."""
    spoken = clips(codec, count, seconds)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(model, count, Path(folder) / "state")
        talks = load(codec, server.url, spoken)
        server.end()
    case: dict[str, Json] = {"what": "sessions", "sessions": count, "model": model}
    add(record, case, codec, spoken, talks)


def overload(record: Record, codec: Codec, model: str, count: int, seconds: float) -> None:
    """A fifth more than fit ask at once."""
    spoken = clips(codec, -(-6 * count // 5), seconds)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(model, count, Path(folder) / "state")
        talks = load(codec, server.url, spoken)
        server.end()
    case: dict[str, Json] = {"what": "overload", "sessions": count, "asked": len(spoken)}
    add(record, case, codec, spoken, talks)


def restart(record: Record, codec: Codec, model: str, count: int, seconds: float) -> None:
    """Killed in the middle of everything, and started again."""
    spoken = clips(codec, count, seconds)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        first = Server(model, count, state)

        async def kill() -> Server:
            await asyncio.sleep(seconds / 2)
            await asyncio.to_thread(first.end, signal.SIGKILL)
            return await asyncio.to_thread(Server, model, count, state, first.port)

        async def run() -> tuple[list[Talk], Server]:
            # Not live: what was said meanwhile waits, as in a recording that is streamed.
            talking = talk_at_once(
                first.url, spoken, rate_hz=codec.sampling_rate, bandwidth_kbps=KBPS, retry_s=60.0,
                live=False,
            )  # fmt: skip
            return await asyncio.gather(talking, kill())

        talks, second = asyncio.run(run())
        second.end()
    case: dict[str, Json] = {"what": "restart", "sessions": count, "model": model}
    add(record, case, codec, spoken, talks)


def churn(record: Record, model: str, opened: int) -> None:
    """Sessions that come and go; what the server holds in memory after each tenth of them."""

    async def open_and_close(session: aiohttp.ClientSession, url: str, times: int) -> None:
        query = {"mode": "encode", "bandwidth": f"{KBPS:g}"}
        for _ in range(times):
            socket = await session.ws_connect(
                url + STREAM_PATH, params=query, protocols=(SUBPROTOCOL,)
            )
            await socket.send_bytes(pack_message(Kind.PCM, 0, bytes(640)))
            await socket.send_str(pack_event("CloseStream"))
            async for _ in socket:
                pass

    async def run(server: Server) -> list[float]:
        held = []
        async with aiohttp.ClientSession() as session:
            for _ in range(10):
                await open_and_close(session, server.url, opened // 10)
                held.append(server.memory_mb)
        return held

    with tempfile.TemporaryDirectory() as folder:
        server = Server(model, 4, Path(folder) / "state")
        held = asyncio.run(run(server))
        server.end()
    values: dict[str, Json] = {"memory_mb": [round(each, 1) for each in held]}
    values["grown_mb"] = held[-1] - held[1]
    added = record.add({"what": "churn", "opened": opened}, {}, values=values)
    print(record.table([added]), flush=True)


def hostile(record: Record, codec: Codec, model: str, messages: int, seconds: float) -> None:
    """Four honest sessions beside two clients that send garbage and one that opens without end."""
    spoken = clips(codec, 4, seconds)
    answers: dict[str, int] = {}
    sent = 0
    random = np.random.default_rng(0)

    async def garbage(session: aiohttp.ClientSession, url: str) -> None:
        nonlocal sent
        query = {"mode": "duplex", "bandwidth": f"{KBPS:g}"}
        while sent < messages:
            try:
                socket = await session.ws_connect(
                    url + STREAM_PATH, params=query, protocols=(SUBPROTOCOL,)
                )
                for _ in range(1000):
                    await socket.send_bytes(random.bytes(int(random.integers(1, 60))))
                    sent += 1
            except (aiohttp.ClientError, ConnectionError) as error:
                name = str(getattr(error, "status", type(error).__name__))
                answers[name] = answers.get(name, 0) + 1
                await asyncio.sleep(0.05)

    async def handshakes(session: aiohttp.ClientSession, url: str) -> None:
        wrong = ({"mode": "sing"}, {"bandwidth": "1e9"}, {"frame": "-1"}, {"token": "a"})
        while True:
            query = wrong[int(random.integers(len(wrong)))]
            try:
                answer = await session.get(url + STREAM_PATH, params=query)
                name = f"handshake {answer.status}"
            except aiohttp.ClientError as error:
                name = f"handshake {type(error).__name__}"
            answers[name] = answers.get(name, 0) + 1

    async def attack(url: str) -> None:
        async with aiohttp.ClientSession() as session:
            attackers = (garbage(session, url), garbage(session, url), handshakes(session, url))
            await asyncio.gather(*attackers)

    async def run(url: str) -> list[Talk]:
        options = {"rate_hz": codec.sampling_rate, "bandwidth_kbps": KBPS, "retry_s": 5.0}
        talking = asyncio.create_task(talk_at_once(url, spoken, **options))
        await asyncio.sleep(0.5)
        attacking = asyncio.create_task(attack(url))
        talks = await talking
        attacking.cancel()
        await asyncio.gather(attacking, return_exceptions=True)
        return talks

    with tempfile.TemporaryDirectory() as folder:
        server = Server(model, 6, Path(folder) / "state")
        talks = asyncio.run(run(server.url))
        server.end()
    case: dict[str, Json] = {"what": "hostile", "messages": sent, "answers": str(answers)}
    add(record, case, codec, spoken, talks)


def draw(record: Record, path: Path) -> None:
    """Sessions against the round trip's p50 and p99."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = [each for each in record.cases if each.case["what"] == "sessions"]
    if not cases:
        return
    counts: Any = [each.case["sessions"] for each in cases]
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in ("p50", "p99"):
        times: Any = [each.ms["round_trip"][name] for each in cases]
        axes.plot(counts, times, "o-", label=name)
    axes.axhline(20.0, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="echo sessions on one core", ylabel="round trip in ms", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the parts that were asked for, and write the record and its picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    parser.add_argument("--model", default="default")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 6, 8, 10, 12])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--opened", type=int, default=2000)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--out", default=str(RESULTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    codec, model = Codec.load(arguments.model), arguments.model
    record = Record("server", folder=arguments.out)
    seconds = arguments.seconds
    if "sessions" in arguments.parts:
        for count in arguments.counts:
            sessions(record, codec, model, count, seconds)
    if "overload" in arguments.parts:
        overload(record, codec, model, 5, seconds)
    if "restart" in arguments.parts:
        restart(record, codec, model, 4, seconds)
    if "churn" in arguments.parts:
        churn(record, model, arguments.opened)
    if "hostile" in arguments.parts:
        hostile(record, codec, model, arguments.messages, seconds)
    path = record.write()
    draw(record, Path(path).with_suffix(".png"))
    print(path)


if __name__ == "__main__":
    main()
