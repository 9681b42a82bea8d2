"""Pages and programs call each other, over a data channel, in a real browser."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from encodec_rt.bitstream.packet import parse_packet
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import LinkError
from encodec_rt.export.blob import blob
from encodec_rt.link.call import Call, CallOptions
from encodec_rt.link.dialling import SignallingClient
from encodec_rt.link.endpoints import NullSink, SilentSource
from encodec_rt.link.rtp_session import RtpSession
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.server.service import ServerOptions, StreamServer
from encodec_rt.server.store import SessionStore
from encodec_rt.streaming.codec import Codec
from encodec_rt.web.server import PageServer
from tests.support.chromium import Chromium
from tests.support.heard import (
    PATIENCE_S,
    best_correlation,
    in_call,
    until_a_page_waits,
    until_heard,
)
from tests.support.models import SPEECH, random_model
from tests.support.served import RECORDED
from tests.support.tolerances import bound

LOW_KBPS, HIGH_KBPS = 0.75, 1.5
"""Of a model with 19 frames a second: 3 and 7 codebooks."""
SENT = """{
  globalThis.sent = [];
  const { send } = RTCDataChannel.prototype;
  const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  RTCDataChannel.prototype.send = function (message) {
    sent.push(hex(message));
    send.call(this, message);
  };
}"""
"""Remembers what a page sends."""
RECEIVED = """{
  globalThis.received = [];
  const { createDataChannel } = RTCPeerConnection.prototype;
  const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  RTCPeerConnection.prototype.createDataChannel = function (...given) {
    const channel = createDataChannel.apply(this, given);
    channel.addEventListener("message", ({ data }) => received.push(hex(new Uint8Array(data))));
    return channel;
  };
}"""
"""Remembers what comes to a page that calls."""


@cache
def light_model() -> EncodecModel:
    """One that costs both sides little, four frames at once, so that a busy machine keeps up.

    Its weights are random: what is heard is compared with what Python decodes of the same codes.
    """
    config = EncodecConfig(
        num_filters=4, hidden_size=32, codebook_dim=32, num_lstm_layers=1,
        upsampling_ratios=(8, 8, 5, 4), target_bandwidths=(LOW_KBPS, HIGH_KBPS),
    )  # fmt: skip
    return random_model(config)


def other_speech() -> tuple[np.ndarray, int]:
    """A clip of whole frames, so that it becomes the same codes over and over; and its rate."""
    samples, rate = soundfile.read(SPEECH.with_name("speech_it.flac"), dtype="float32")
    hop = light_model().config.hop_length
    return samples[: len(samples) // hop * hop], rate


def spoken(samples: np.ndarray, kbps: float) -> np.ndarray:
    """What Python makes of a clip."""
    codec = Codec(light_model())
    return codec.stream_decoder(kbps).push(codec.stream_encoder(kbps).push(samples))


def sent_by(messages: list[str], kbps: float) -> np.ndarray:
    """What Python decodes of the packets of a page; pauses, of which none come, as lost frames.

    Half a second after a pause nothing is left of how it was filled.
    """
    codec, session = Codec(light_model()), RtpSession(24_000, ssrc=1)
    frames: dict[int, np.ndarray] = {}
    for text in messages:
        packet = session.read(bytes.fromhex(text), 0.0)
        if packet is not None and packet.payload:
            codes = parse_packet(packet.payload, bits=10).codes
            at = packet.timestamp // codec.config.hop_length
            frames |= {at + offset: row for offset, row in enumerate(codes)}
    books, decoder = codec.config.codebooks_for(kbps), codec.stream_decoder(kbps)
    hops = []
    for at in range(min(frames), max(frames) + 1):
        hops.append(decoder.push(frames[at][None, :books] if at in frames else None))
    return np.concatenate(hops)


async def read_until(stream: asyncio.StreamReader, word: str) -> str:
    """What a program says until it says ``word``."""
    text = ""
    while word not in text:
        line = await asyncio.wait_for(stream.readline(), 120)
        assert line, text
        text += line.decode()
    return text


def test_a_page_calls_the_program_that_serves_it_and_calls_again_when_the_path_is_dead(
    tmp_path: Path,
) -> None:
    said, recorded, numbers = (tmp_path / name for name in ("said.wav", "heard.wav", "s.json"))
    samples, rate = other_speech()
    # Longer than any machine takes for this test; the file's end does not end the call.
    soundfile.write(said, np.tile(samples, 20), rate)
    command = [
        sys.executable, "-m", "encodec_rt", "link", "listen", "--web", "--once", "--port", "0",
        "--play", str(said), "--record", str(recorded), "--stats-json", str(numbers), "--no-dtx",
        "--model", str(tmp_path / "model"), "--bandwidth", str(HIGH_KBPS),
    ]  # fmt: skip
    light_model().save_pretrained(tmp_path / "model")

    async def run() -> list[str]:
        listening = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        assert listening.stderr is not None
        try:
            text = await read_until(listening.stderr, "in a browser")
            async with Chromium() as browser:
                page = await browser.open(text.split("open ")[1].split()[0], before=SENT)
                await in_call(page, "#send-clip")
                await until_heard(page, spoken(np.tile(samples, 2), HIGH_KBPS), "decoded elsewhere")
                # Each tells the other how its packets fared.
                await page.until("sent.some((message) => message.startsWith('81c8'))")
                sent: list[str] = await page.run("sent")
                # Garbage on the channel is counted and does nothing else.
                await page.run("encodec.call.path.channel.send(new Uint8Array([1, 2, 3]))")
                await page.until("encodec.call.reports.latest && encodec.call.reports.roundTripS")
                # Nothing comes over this path any more.
                await page.run("encodec.call.path.channel.onmessage = null")
                await page.until("encodec.call.renewals === 1")
                before = await page.run("encodec.last.counts.frames")
                await page.until(f"encodec.last.counts.frames > {before} + 3", PATIENCE_S)
                await page.click("#stop")
                assert browser.problems == []
            text = (await asyncio.wait_for(listening.communicate(), 120))[1].decode()
            assert listening.returncode == 0, text
            assert "the other side calls again" in text
            return sent
        finally:
            if listening.returncode is None:
                listening.kill()
                await listening.wait()

    said_there = sent_by(asyncio.run(run()), HIGH_KBPS)
    expected = bound("decoded elsewhere", "correlation")
    heard_here, _ = soundfile.read(recorded, dtype="float32")
    assert best_correlation(said_there, heard_here, expected) > expected
    statistics = json.loads(numbers.read_text())
    assert statistics["encodecRt"]["reconnections"] == 1


class Voice(SilentSource):
    """Speech, over and over."""

    def __init__(self, codec: Codec, samples: np.ndarray) -> None:
        super().__init__(codec.config)
        self._hops = samples.reshape(-1, 1, codec.config.hop_length)
        self._given = 0

    async def read(self) -> np.ndarray:
        await super().read()
        self._given += 1
        hop: np.ndarray = self._hops[(self._given - 1) % len(self._hops)]
        return hop


class Ear(NullSink):
    """Remembers what was played."""

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec.config)
        self.hops: list[np.ndarray] = []

    def write(self, audio: np.ndarray) -> None:
        self.hops.append(audio.reshape(-1))


def test_a_page_that_waits_is_called_without_a_page() -> None:
    samples, _ = other_speech()

    async def run() -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        torch.set_num_threads(1)
        codec = Codec(light_model())
        books = codec.config.codebooks_for(LOW_KBPS)
        server = PageServer(blob(light_model()))
        port = await server.start("127.0.0.1", 0, None)
        client = SignallingClient(f"http://127.0.0.1:{port}", token=None)
        ear = Ear(codec)
        # Fewer codebooks than the page chose: both then send as many.
        options = CallOptions(LOW_KBPS, dtx=False, channel=True)
        call = Call(codec, Voice(codec, samples), ear, options)
        try:
            with pytest.raises(LinkError, match="no page waits for a call"):
                await client.dial(await call.offer())
            over_rtp = Call(codec, Voice(codec, samples), Ear(codec), CallOptions(LOW_KBPS))
            with pytest.raises(LinkError, match="--channel"):
                await client.dial(await over_rtp.offer())
            await over_rtp.close()
            await call.close()
            call = Call(codec, Voice(codec, samples), ear, options)
            async with Chromium() as browser:
                page = await browser.open(f"http://127.0.0.1:{port}/", before=SENT)
                await in_call(page, "#send-clip")
                await until_a_page_waits(server)
                dialled = await client.dial(await call.offer())
                await call.accept(dialled.answer)
                running = asyncio.ensure_future(call.run())
                await until_heard(page, spoken(np.tile(samples, 2), LOW_KBPS), "decoded elsewhere")
                assert await page.run("encodec.call.path.limit") == books
                while call.listener.statistics.packetsReceived < 40:
                    await asyncio.wait([running], timeout=0.05)
                    assert not running.done()
                sent = sent_by(await page.run("sent"), LOW_KBPS)
                await page.click("#stop")
                # The page hangs up, and the call ends by itself.
                await asyncio.wait_for(running, 60)
                await client.hang_up(dialled.location)
                assert browser.problems == []
        finally:
            await call.close()
            await server.close()
        return sent, np.concatenate(ear.hops), call.statistics()

    sent, heard, statistics = asyncio.run(run())
    expected = bound("decoded elsewhere", "correlation")
    assert best_correlation(sent, heard, expected) > expected
    assert statistics["encodecRt"]["codebooks"] <= 3


def test_a_page_calls_the_server_that_serves_it_and_plays_what_comes_back(tmp_path: Path) -> None:
    async def run() -> tuple[list[str], np.ndarray]:
        torch.set_num_threads(1)
        options = ServerOptions(calls=1, page=blob(light_model()))
        store = SessionStore(tmp_path)
        server = StreamServer(Codec(light_model(), backend="cpu"), 1, HIGH_KBPS, store, options)
        port = await server.start("127.0.0.1", 0, None)
        try:
            # As for anybody who sends the example and gave no microphone: addresses are hidden.
            async with Chromium(grant=False, hidden=True) as browser:
                page = await browser.open(f"http://127.0.0.1:{port}/", before=RECEIVED)
                await in_call(page, "#send-clip")
                await page.until("encodec.last?.counts?.frames > 100", PATIENCE_S)
                assert server.sessions.count == 1
                received: list[str] = await page.run("received")
                heard = np.frombuffer(base64.b64decode((await page.run(RECORDED))[1]), np.float32)
                assert await page.run("encodec.last.counts.refused") == 0
                await page.click("#stop")
                for _ in range(6000):
                    if not server.sessions.count:
                        break
                    await asyncio.sleep(0.01)
                assert server.sessions.count == 0
                assert browser.problems == []
        finally:
            await server.close()
        return received, heard

    received, heard = asyncio.run(run())
    expected = bound("decoded elsewhere", "correlation")
    assert best_correlation(sent_by(received, HIGH_KBPS), heard, expected) > expected
