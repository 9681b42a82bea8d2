"""Whether a call grows with time: an hour of one, and ten real minutes.

    python -m benches.link_endurance hour
    python -m benches.link_endurance call

Calls are between two ends in one process, by aiortc over this machine's own addresses; the hour
passes on a virtual clock.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benches.record import Json, Record
from encodec_rt.audio import AudioReader
from encodec_rt.bitstream.packet import Codes
from encodec_rt.config import EncodecConfig
from encodec_rt.link.channel import Channel, Network
from encodec_rt.link.ends import NullSink, SilentSource
from encodec_rt.link.listener import Listener
from encodec_rt.link.rate import RateController
from encodec_rt.link.session import Call, CallOptions
from encodec_rt.link.signalling import (
    Limits,
    SignallingClient,
    SignallingServer,
)
from encodec_rt.link.simulate import Direction
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.session import Audio

SMALL_KBPS = 6.01
HOUR = Network(delay_ms=40, jitter_ms=8, loss=0.03, burst=2, spike_every_s=20)


class Talker(SilentSource):
    """A microphone into which a recording is said again and again."""

    def __init__(self, config: EncodecConfig, audio: NDArray[np.float32]) -> None:
        """``audio`` is mono, at the model's rate."""
        super().__init__(config)
        hop = config.hop_length
        self._said: Audio = audio[: len(audio) // hop * hop].reshape(-1, 1, hop)
        self._at = 0

    async def read(self) -> Audio | None:
        """The next hop, in its time."""
        await super().read()
        self._at += 1
        hop: Audio = self._said[self._at % len(self._said)]
        return hop


@dataclass(frozen=True)
class Held:
    """A call in progress: both ends, and all that an attacker may know of it."""

    caller: Call
    callee: Call
    server: SignallingServer
    url: str
    token: str
    offer: str
    addresses: list[tuple[str, int]]


@asynccontextmanager
async def held(
    codec: Codec, kbps: float, audio: NDArray[np.float32], limits: Limits | None = None
) -> AsyncIterator[Held]:
    """A call that came about through signalling, for the time of the block."""
    options = CallOptions(bandwidth_kbps=kbps, dtx=False)
    lines: list[Call] = []

    def end() -> Call:
        return Call(codec, Talker(codec.config, audio), NullSink(codec.config), options)

    def open_line() -> Call:
        lines.append(end())
        return lines[-1]

    token = secrets.token_urlsafe(32)
    server = SignallingServer(open_line, token=token, limits=limits)
    url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0, None)}"
    caller = end()
    offer = await caller.offer()
    client = SignallingClient(url, token=token)
    dialled = await client.dial(offer)
    await caller.accept(dialled.answer)
    running = asyncio.create_task(caller.run())
    candidates = re.findall(r"a=candidate:\S+ 1 udp \d+ (\S+) (\d+) typ host", dialled.answer)
    addresses = [(host, int(port)) for host, port in candidates if ":" not in host]
    try:
        yield Held(caller, lines[0], server, url, token, offer, addresses)
        if running.done():
            running.result()
    finally:
        await client.hang_up(dialled.location)
        await caller.close()
        await asyncio.gather(running, return_exceptions=True)
        await server.close()


def resident_mib() -> float:
    """Memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@dataclass
class Window:
    """What a listener counted from one look to the next."""

    listener: Listener
    hop: int

    def __post_init__(self) -> None:
        """Look for the first time."""
        self._seen = self._counts()

    def _counts(self) -> dict[str, float]:
        counts = vars(self.listener.statistics)
        return {name: float(value) for name, value in counts.items()}

    def look(self) -> dict[str, Json]:
        """The differences: concealment, losses, and the delay of the jitter buffer."""
        now, seen = self._counts(), self._seen
        self._seen = now
        moved = {name: now[name] - seen[name] for name in now}
        played = max(1.0, moved["totalSamplesReceived"])
        silent = moved["silentFrames"] * self.hop
        emitted = max(1.0, moved["jitterBufferEmittedCount"])
        return {
            "concealed_share": (moved["concealedSamples"] - silent) / played,
            "concealment_events": moved["concealmentEvents"],
            "packets_received": moved["packetsReceived"],
            "packets_lost": moved["packetsLost"],
            "jitter_buffer_ms": 1000 * moved["jitterBufferDelay"] / emitted,
            "resident_mib": resident_mib(),
        }


async def talk(
    codec: Codec, kbps: float, audio: NDArray[np.float32], *, minutes: int
) -> list[dict[str, Json]]:
    """A call of that length; what each minute of it was like at the called end."""
    found: list[dict[str, Json]] = []
    async with held(codec, kbps, audio) as call:
        window = Window(call.callee.listener, codec.config.hop_length)
        for minute in range(minutes):
            await asyncio.sleep(60)
            latency: Json = call.callee.statistics()["encodecRt"]["latencyMs"]  # type: ignore[index]
            found.append({"minute": minute + 1, **window.look(), "latency_ms": latency})
            print(found[-1], flush=True)
    return found


def hour(
    codec: Codec, kbps: float, audio: NDArray[np.float32], *, hours: float, parts: int = 6
) -> list[dict[str, Json]]:
    """A call on a virtual clock through encoder, packets, network, jitter buffer and decoder.

    What each part of it was like; the memory is that of the whole process.
    """
    config = codec.config
    count = int(hours * 3600 * config.frame_rate)
    listener = Listener(codec, kbps)
    direction = Direction(
        codec,
        _frames(codec, kbps, audio, count),
        Channel(HOUR, 0),
        listener,
        controller=RateController(
            codebooks=config.codebooks_for(kbps),
            bits=config.codebook_nbits,
            frame_rate_hz=config.frame_rate,
        ),
        drift_ppm=50,
    )
    window, delays_ms = Window(listener, config.hop_length), list[float]()
    found: list[dict[str, Json]] = []
    for at, hop in enumerate(direction.run()):
        if hop.slot.codes is not None:
            delays_ms.append(direction.delay_ms(hop))
        if at % (count // parts) == count // parts - 1:
            delay_ms = float(np.median(delays_ms))
            delays_ms.clear()
            found.append({"minute": round(hop.at_s / 60, 1), "delay_p50_ms": delay_ms})
            found[-1] |= window.look() | {"frames_waiting": listener.buffer.waiting}
            print(found[-1], flush=True)
    return found


def _frames(
    codec: Codec, kbps: float, audio: NDArray[np.float32], count: int
) -> Iterator[tuple[Codes, bool]]:
    """``count`` frames of ``audio`` said again and again, with a pause after each time."""
    hop = codec.config.hop_length
    hops = audio[: len(audio) // hop * hop].reshape(-1, hop)
    encoder = codec.stream_encoder(kbps)
    pause = len(hops) // 4
    for at in range(count):
        place = at % (len(hops) + pause)
        active = place < len(hops)
        said = hops[place] if active else np.zeros(hop, np.float32)
        yield encoder.push(said)[0], active


def small_codec() -> Codec:
    """A model with random weights whose codes weigh as much as the default one's: 75 x 8 x 10 bits.

    An hour of it is minutes of computing, and nothing but its layers is smaller.
    """
    config = EncodecConfig(
        sampling_rate=600,
        hidden_size=8,
        num_filters=4,
        upsampling_ratios=(4, 2),
        codebook_size=1024,
        target_bandwidths=(SMALL_KBPS,),
    )
    torch.manual_seed(0)
    model = EncodecModel(config).eval()
    for name, values in model.named_buffers():
        if name.endswith("embed"):
            values.normal_(std=0.3)
    return Codec(model)


def speech(rate_hz: int) -> NDArray[np.float32]:
    """The bundled clip."""
    path = Path(str(resources.files("encodec_rt"))) / "assets" / "speech_it.flac"
    with AudioReader(path) as reader:
        audio: NDArray[np.float32] = np.concatenate(list(reader.blocks(rate_hz, 1)), axis=1)[0]
    return audio


def main() -> None:
    """Run one of the two and write its record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("hour", "call"))
    parser.add_argument("--model", default="default")
    parser.add_argument("--kbps", type=float, default=6.0)
    parser.add_argument("--small", action="store_true", help="a tiny model with random weights")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--minutes", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("aioice").setLevel(logging.ERROR)
    codec = small_codec() if arguments.small else Codec.load(arguments.model)
    kbps = SMALL_KBPS if arguments.small else arguments.kbps
    audio = speech(codec.config.sampling_rate)
    record = Record(f"link-{arguments.what}")
    model = "small, random weights" if arguments.small else arguments.model
    case: dict[str, Json] = {"model": model, "kbps": kbps}
    if arguments.what == "hour":
        for values in hour(codec, kbps, audio, hours=arguments.hours):
            record.add(case, values=values)
    else:
        for values in asyncio.run(talk(codec, kbps, audio, minutes=arguments.minutes)):
            record.add(case, values=values)
    print(record.table())
    print(record.write())


if __name__ == "__main__":
    main()
