"""Whole calls between two peers on one machine: few, short, and judged by content alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encodec_rt.errors import LinkError
from encodec_rt.link.call import Call, CallOptions
from encodec_rt.link.dialling import SignallingClient
from encodec_rt.link.endpoints import FileSink, FileSource, NullSink, SilentSource
from encodec_rt.link.signalling import SignallingServer
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio
from encodec_rt.voice.transport import Received
from tests.support.damaged import damaged_sdp
from tests.support.models import random_model, speech, tiny_config

SECONDS = 3


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(random_model(tiny_config()))


@pytest.fixture(scope="module")
def kbps(codec: Codec) -> float:
    return codec.config.target_bandwidths[-1]


class Microphone(SilentSource):
    """Gives the hops of a recording, and remembers whether it was closed."""

    def __init__(self, codec: Codec, audio: np.ndarray) -> None:
        super().__init__(codec.config)
        self._hops = list(audio.reshape(-1, 1, codec.config.hop_length))
        self.closed = False

    async def read(self) -> Audio | None:
        await super().read()
        return self._hops.pop(0) if self._hops else None

    def close(self) -> None:
        self.closed = True


class Speaker(NullSink):
    """Remembers what was played."""

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec.config)
        self.hops: list[Audio] = []
        self.closed = False

    def write(self, audio: Audio) -> None:
        self.hops.append(audio)

    def close(self) -> None:
        self.closed = True


def said_by(codec: Codec, seed: int) -> np.ndarray:
    return speech(SECONDS * codec.config.sampling_rate, seed=seed).numpy()


def matched_share(codec: Codec, kbps: float, said: np.ndarray, speaker: Speaker) -> float:
    """The share of hops of what was said, as decoded without a network, that were played."""
    codes = codec.stream_encoder(kbps).push(said)
    wanted = codec.stream_decoder(kbps).push(codes).reshape(len(codes), -1)
    heard = np.stack(speaker.hops)
    nearest = [np.abs(heard - hop).max(axis=1).min() for hop in wanted]
    return float(np.mean(np.array(nearest) < 0.05 * np.abs(wanted).max()))


def test_both_sides_of_a_call_hear_what_the_other_said(codec: Codec, kbps: float) -> None:
    said = [said_by(codec, seed) for seed in (1, 2)]
    speakers = [Speaker(codec), Speaker(codec)]

    async def main() -> list[dict[str, Any]]:
        options = CallOptions(bandwidth_kbps=kbps, hang_up_s=0.7, dtx=False)
        one, other = (
            Call(codec, Microphone(codec, audio), speaker, options)
            for audio, speaker in zip(said, speakers, strict=True)
        )
        await one.accept(await other.answer(await one.offer()))
        await asyncio.gather(one.run(), other.run())
        return [one.statistics(), other.statistics()]

    statistics = asyncio.run(main())
    assert matched_share(codec, kbps, said[0], speakers[1]) > 0.5
    assert matched_share(codec, kbps, said[1], speakers[0]) > 0.5
    for report, speaker in zip(statistics, speakers, strict=True):
        assert speaker.closed
        assert report["inbound"]["packetsReceived"] > 0.8 * SECONDS * codec.config.frame_rate
        latency = report["encodecRt"]["latencyMs"]
        terms = sum(value for name, value in latency.items() if name != "sum")
        assert latency["sum"] == pytest.approx(terms, abs=0.1)
        json.dumps(report)


def test_a_call_through_signalling_is_recorded_and_ends_with_a_hang_up(
    codec: Codec, kbps: float, tmp_path: Path
) -> None:
    config = codec.config
    options = CallOptions(bandwidth_kbps=kbps, hang_up_s=0.3)
    said, heard = tmp_path / "said.wav", tmp_path / "heard.wav"
    written = FileSink(said, config)
    written.write(said_by(codec, 5)[: config.sampling_rate])
    written.close()

    async def main() -> None:
        ends: list[Speaker] = []

        def open_line() -> Call:
            ends.append(Speaker(codec))
            return Call(codec, SilentSource(config), ends[-1], options)

        server = SignallingServer(open_line, token=None)
        port = await server.start("127.0.0.1", 0, None)
        client = SignallingClient(f"http://127.0.0.1:{port}", token=None)
        call = Call(codec, FileSource(said, config), FileSink(heard, config), options)
        dialled = await client.dial(await call.offer())
        await call.accept(dialled.answer)
        await call.run()
        await client.hang_up(dialled.location)
        await server.close()
        assert server.sessions == 0
        assert ends[0].closed
        assert ends[0].hops

    asyncio.run(main())
    assert heard.stat().st_size > config.sampling_rate


def test_a_peer_with_another_model_is_refused(codec: Codec, kbps: float) -> None:
    other = Codec(random_model(tiny_config(), seed=9))
    microphones = [Microphone(each, said_by(codec, 1)) for each in (codec, other)]

    async def main() -> None:
        options = CallOptions(bandwidth_kbps=kbps)
        caller = Call(codec, microphones[0], Speaker(codec), options)
        callee = Call(other, microphones[1], Speaker(other), options)
        with pytest.raises(LinkError, match="same model"):
            await callee.answer(await caller.offer())
        for call in (callee, caller, caller):
            await call.close()

    asyncio.run(main())
    assert all(microphone.closed for microphone in microphones)


def test_a_call_that_nobody_answers_is_given_up(codec: Codec, kbps: float) -> None:
    microphone = Microphone(codec, said_by(codec, 1))

    async def main() -> None:
        options = CallOptions(bandwidth_kbps=kbps, handshake_s=0.1)
        call = Call(codec, microphone, Speaker(codec), options)
        await call.offer()
        with pytest.raises(LinkError, match="took more than"):
            await call.run()

    asyncio.run(main())
    assert microphone.closed


def test_more_packets_than_anyone_would_send_are_not_looked_at(codec: Codec, kbps: float) -> None:
    async def main() -> None:
        call = Call(codec, SilentSource(codec.config), NullSink(codec.config), CallOptions(kbps))
        for index in range(5000):
            call.line._receive(call.transport, Received(b"x", index & 0xFFFF, 0, 1))
        assert call.line.refused > 3000
        await call.close()

    asyncio.run(main())


def test_what_comes_before_anyone_listens_does_not_delay_the_rest(
    codec: Codec, kbps: float
) -> None:
    async def main() -> None:
        one, other = (
            Call(codec, SilentSource(codec.config), NullSink(codec.config), CallOptions(kbps))
            for _ in range(2)
        )
        await one.accept(await other.answer(await one.offer()))
        for index in range(50):
            other._on_packet(Received(b"", index, index * codec.config.hop_length, 1))
        assert other.listener.statistics.packetsReceived == 0
        running = [asyncio.create_task(call.run()) for call in (one, other)]
        while not other.listener.statistics.packetsReceived:
            await asyncio.sleep(0.01)
        # The worker was used before the first frame.
        assert all(call._warmed is not None and call._warmed.done() for call in (one, other))
        for call in (one, other):
            await call.close()
        await asyncio.gather(*running)

    asyncio.run(main())


def test_damaged_descriptions_are_refused_and_nothing_else_happens(
    codec: Codec, kbps: float
) -> None:
    rng = np.random.default_rng(0)

    async def attempt(offer: str) -> None:
        call = Call(codec, SilentSource(codec.config), NullSink(codec.config), CallOptions(kbps))
        try:
            await asyncio.wait_for(call.answer(damaged_sdp(offer, rng)), 5)
        except LinkError:
            pass
        finally:
            await call.close()

    async def main() -> None:
        caller = Call(codec, SilentSource(codec.config), NullSink(codec.config), CallOptions(kbps))
        offer = await caller.offer()
        for _ in range(60):
            await attempt(offer)
        await caller.close()

    asyncio.run(main())
