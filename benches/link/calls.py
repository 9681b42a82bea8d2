"""Calls for the benches, through aiortc over this machine's own addresses.

Each end is an asynchronous context, so a test can have both in one process; ``far`` runs an end in
a separate process, as users do.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benches.bundled import bundled
from benches.environment import Json, memory_mib
from encodec_rt.config import EncodecConfig
from encodec_rt.link.call import Call, CallOptions
from encodec_rt.link.dialling import SignallingClient
from encodec_rt.link.endpoints import NullSink, SilentSource
from encodec_rt.link.signalling import Limits, SignallingServer
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio
from encodec_rt.voice.receiver import Receiver

SMALL_KBPS = 6.01


@dataclass(frozen=True)
class ModelChoice:
    """The model that a bench uses, and its bandwidth."""

    source: str
    kbps: float
    small: bool

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> ModelChoice:
        """The choice made with the options of ``add_arguments``."""
        kbps = SMALL_KBPS if arguments.small else arguments.kbps
        return cls(arguments.model, kbps, arguments.small)

    @property
    def case(self) -> dict[str, Json]:
        """The description for the record."""
        model = "small, random weights" if self.small else self.source
        return {"model": model, "kbps": self.kbps}

    def load(self) -> Codec:
        """Load the codec, and limit torch to one thread."""
        torch.set_num_threads(1)
        logging.getLogger("aioice").setLevel(logging.ERROR)
        return small_codec() if self.small else Codec.load(self.source)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a model."""
    parser.add_argument("--model", default="default")
    parser.add_argument("--kbps", type=float, default=6.0)
    parser.add_argument("--small", action="store_true", help="a tiny model with random weights")


def small_codec() -> Codec:
    """A tiny model with random weights and the default model's code rate: 75 x 8 x 10 bits per s.

    An hour of it takes minutes to compute; only its layers are smaller.
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


def speech(rate_hz: int) -> Audio:
    """A bundled clip [n] at ``rate_hz``."""
    audio: Audio = bundled("speech_it", rate_hz)[0]
    return audio


class Talker(SilentSource):
    """A microphone that plays a recording in a loop."""

    def __init__(self, config: EncodecConfig, audio: NDArray[np.float32]) -> None:
        """``audio`` is mono, at the model's rate."""
        super().__init__(config)
        hop = config.hop_length
        self._said: Audio = audio[: len(audio) // hop * hop].reshape(-1, 1, hop)
        self._at = 0

    async def read(self) -> Audio | None:
        """The next hop, at its time."""
        await super().read()
        self._at += 1
        hop: Audio = self._said[self._at % len(self._said)]
        return hop


@dataclass(frozen=True)
class Listening:
    """An end that waits for calls at ``url``; ``calls`` are those that came in."""

    server: SignallingServer
    url: str
    token: str
    calls: list[Call]


@dataclass(frozen=True)
class Calling:
    """An end that has called, and everything that an attacker may know about the call."""

    call: Call
    offer: str
    addresses: list[tuple[str, int]]
    name: str
    """The other end's ICE user fragment, which connectivity checks carry."""


def _new_call(codec: Codec, kbps: float, audio: NDArray[np.float32]) -> Call:
    options = CallOptions(bandwidth_kbps=kbps, dtx=False)
    return Call(codec, Talker(codec.config, audio), NullSink(codec.config), options)


@asynccontextmanager
async def listening(
    codec: Codec, kbps: float, audio: NDArray[np.float32], limits: Limits | None = None
) -> AsyncIterator[Listening]:
    """An end that takes calls while the block runs."""
    calls: list[Call] = []

    def open_line() -> Call:
        calls.append(_new_call(codec, kbps, audio))
        return calls[-1]

    token = secrets.token_urlsafe(32)
    server = SignallingServer(open_line, token=token, limits=limits)
    url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0, None)}"
    try:
        yield Listening(server, url, token, calls)
    finally:
        await server.close()


@asynccontextmanager
async def calling(
    codec: Codec, kbps: float, audio: NDArray[np.float32], url: str, token: str
) -> AsyncIterator[Calling]:
    """An end that calls the one at ``url`` while the block runs."""
    call = _new_call(codec, kbps, audio)
    offer = await call.offer()
    client = SignallingClient(url, token=token)
    dialled = await client.dial(offer)
    await call.accept(dialled.answer)
    running = asyncio.create_task(call.run())
    candidates = re.findall(r"a=candidate:\S+ 1 udp \d+ (\S+) (\d+) typ host", dialled.answer)
    addresses = [(host, int(port)) for host, port in candidates if ":" not in host]
    name = "".join(re.findall(r"a=ice-ufrag:(\S+)", dialled.answer)[:1])
    try:
        yield Calling(call, offer, addresses, name)
        if running.done():
            running.result()
    finally:
        await client.hang_up(dialled.location)
        await call.close()
        await asyncio.gather(running, return_exceptions=True)


@dataclass
class Window:
    """The differences of a receiver's counters from one poll to the next."""

    listener: Receiver
    hop: int

    def __post_init__(self) -> None:
        """Take the first counts."""
        self._seen = self._counts()

    def _counts(self) -> dict[str, float]:
        counts = vars(self.listener.statistics)
        return {name: float(value) for name, value in counts.items()}

    def poll(self) -> dict[str, Json]:
        """Concealment, losses and the jitter buffer's delay since the last poll."""
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
            "resident_mib": memory_mib(),
        }


async def heard(call: Call) -> None:
    """Wait until ``call`` plays the other end's audio, and two seconds more to settle."""
    while not call.listener.statistics.jitterBufferEmittedCount:
        await asyncio.sleep(0.05)
    await asyncio.sleep(2)
