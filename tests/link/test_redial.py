"""A call whose path is dead goes on over another one, in the same session."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from encodec_rt.errors import LinkError
from encodec_rt.link import credentials, redial
from encodec_rt.link.call import Call, CallOptions
from encodec_rt.link.dialling import SessionEnded, SignallingClient
from encodec_rt.link.endpoints import NullSink, SilentSource
from encodec_rt.link.redial import keep_connected
from encodec_rt.link.rtp_transport import RtpTransport
from encodec_rt.link.signalling import SignallingServer
from encodec_rt.netsim.impairment import PathProfile
from encodec_rt.netsim.netns import Rig, why_unavailable
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio
from encodec_rt.voice.packetizer import Outgoing
from tests.support.models import SPEECH, random_model, speech, tiny_config

EXIT_TERMINATED = 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(random_model(tiny_config()))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redial, "RETRY_S", 0.2)


class Voice(SilentSource):
    """Speech without end."""

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec.config)
        hop = codec.config.hop_length
        self._hops = list(speech(8 * codec.config.sampling_rate).numpy().reshape(-1, 1, hop))
        self.given: list[Audio] = []

    async def read(self) -> Audio | None:
        await super().read()
        self.given.append(self._hops[len(self.given) % len(self._hops)])
        return self.given[-1]


class Ear(NullSink):
    """Remembers what was played."""

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec.config)
        self.hops: list[Audio] = []

    def write(self, audio: Audio) -> None:
        self.hops.append(audio)


class Scene:
    """A listener, a caller, and a path between them that can be cut for good."""

    def __init__(self, codec: Codec, monkeypatch: pytest.MonkeyPatch, reconnect_s: float) -> None:
        self.codec, self.told = codec, list[str]()
        self.voices, self.ears = [Voice(codec), Voice(codec)], [Ear(codec), Ear(codec)]
        kbps = codec.config.target_bandwidths[-1]
        # The listener is the patient one, as its end would be the end of the call for both.
        self.options = [
            CallOptions(kbps, dtx=False, reconnect_s=seconds) for seconds in (60.0, reconnect_s)
        ]
        self.dead: set[RtpTransport] = set()
        self.calls: list[Call] = []
        send = RtpTransport.send

        def send_unless_cut(transport: RtpTransport, packet: Outgoing) -> None:
            if transport not in self.dead:
                send(transport, packet)

        monkeypatch.setattr(RtpTransport, "send", send_unless_cut)

    def call(self, at: int) -> Call:
        self.calls.append(Call(self.codec, self.voices[at], self.ears[at], self.options[at]))
        return self.calls[-1]

    def cut(self) -> None:
        for call in self.calls:
            assert isinstance(call.transport, RtpTransport)
            self.dead.add(call.transport)

    def received_so_far(self) -> list[int]:
        """Packets by call."""
        return [call.listener.statistics.packetsReceived for call in self.calls]

    def clear_share(self, at: int) -> float:
        """Of what voice ``at`` said on the new path, how much the other side heard as it was.

        That is the share of the best 60 frames: on a machine that stalls, some come too late.
        """
        kbps = self.options[0].bandwidth_kbps
        given = self.voices[at].given[self.said[at] :]
        codes = self.codec.stream_encoder(kbps).push(np.concatenate(given, axis=1)[0])
        wanted = self.codec.stream_decoder(kbps).push(codes).reshape(len(codes), -1)
        heard = np.stack([hop.reshape(-1) for hop in self.ears[1 - at].hops])
        nearest = np.array([np.abs(heard - hop).max(axis=1).min() for hop in wanted])
        clear = nearest < 0.05 * np.abs(wanted).max()
        return float(np.convolve(clear, np.full(60, 1 / 60))[59:].max(initial=0.0))

    async def play(
        self, *, server_stays: bool = True, enough: Callable[[], bool] = lambda: True
    ) -> None:
        """Talk for a second, cut the path, and wait until it is back for another second.

        Goes on until ``enough`` was heard, for half a minute at most.
        """
        server = SignallingServer(lambda: self.call(0), token=None)
        url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0, None)}"
        client = SignallingClient(url, token=None)
        caller = self.call(1)
        dialled = await client.dial(await caller.offer())
        await caller.accept(dialled.answer)
        running = asyncio.ensure_future(caller.run())
        watching = asyncio.ensure_future(
            keep_connected(caller, client, dialled.location, self.told.append)
        )
        try:
            await asyncio.sleep(1.5)
            self.cut()
            self.begun_s = asyncio.get_running_loop().time()
            if not server_stays:
                await client.hang_up(dialled.location)
            while not caller.line.renewals:
                await asyncio.wait([running, watching], timeout=0.05)
                for task in (running, watching):
                    if task.done():
                        task.result()
                assert not running.done(), "the call has ended, and nobody renews it"
            self.said = [len(voice.given) for voice in self.voices]
            self.received = self.received_so_far()
            await asyncio.sleep(1.5)
            for _ in range(60):
                if enough():
                    break
                await asyncio.sleep(0.5)
        finally:
            watching.cancel()
            running.cancel()
            await asyncio.gather(watching, running, return_exceptions=True)
            await server.close()


def test_a_dead_path_is_replaced_and_what_is_said_then_is_heard(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(codec, monkeypatch, 20.0)
    asyncio.run(scene.play(enough=lambda: min(map(scene.clear_share, (0, 1))) > 0.5))
    assert [call.line.renewals for call in scene.calls] == [1, 1]
    assert scene.told[0].startswith("no packets for ")
    assert scene.told[1] == "connected again"
    assert min(map(scene.clear_share, (0, 1))) > 0.5


def test_statistics_go_on_over_both_paths(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(codec, monkeypatch, 20.0)
    asyncio.run(scene.play())
    assert all(call.line.renewals for call in scene.calls)
    for before, after in zip(scene.received, scene.received_so_far(), strict=True):
        assert 0 < before < after


def test_a_call_that_cannot_be_resumed_ends_after_the_time_that_was_given(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(codec, monkeypatch, 2.0)

    monkeypatch.setattr(redial, "DEAD_AFTER_S", 1.0)

    async def refuse(*_: Any, **__: Any) -> None:
        raise LinkError("unreachable")

    async def play() -> None:
        monkeypatch.setattr(Call, "renewal_offer", refuse)
        await scene.play()

    with pytest.raises(LinkError, match=r"nothing came from the other side for [23] s"):
        asyncio.run(play())


def test_a_call_that_the_other_side_has_ended_is_not_redialled(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(codec, monkeypatch, 20.0)
    monkeypatch.setattr(RtpTransport, "wait_ended", lambda _: asyncio.Event().wait())
    with pytest.raises(SessionEnded, match="has ended the call"):
        asyncio.run(scene.play(server_stays=False))


def test_a_new_path_is_not_given_up_for_the_silence_of_the_one_before() -> None:
    call: Any = SimpleNamespace(silent_s=9.0, path_silent_s=0.0)
    told: list[str] = []

    async def watch() -> None:
        client: Any = None
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(keep_connected(call, client, "", told.append), 0.3)

    asyncio.run(watch())
    assert not told


DOWN_S = 12.0
REASON = why_unavailable()


def longest_silence_s(loud: NDArray[np.bool_]) -> int:
    """Of one flag for each second, the most in a row that are not set."""
    return max(map(len, "".join(".x"[int(second)] for second in loud).split("x")))


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_a_call_survives_an_interface_that_is_down_for_12_seconds(tmp_path: Path) -> None:
    said = tmp_path / "said.wav"
    samples, rate_hz = soundfile.read(SPEECH, dtype="float32")
    soundfile.write(said, np.tile(samples, 6), rate_hz)
    state = tmp_path / "encodec-rt"
    certificate = state / "link-cert.pem"
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path)}
    with Rig(PathProfile(delay_ms=10)) as rig:
        here, there = rig.sides
        credentials.make_token(state / "link-token")
        credentials.make_certificate(certificate, state / "link-key.pem", [here.address])

        def start(side: Any, verb: str, *arguments: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "encodec_rt", "link", verb, *arguments, "--no-dtx"]
            files = ("--play", said, "--record", tmp_path / f"{verb}.wav")
            report = ("--stats-json", tmp_path / f"{verb}.json")
            return subprocess.Popen(
                side.command(*command, *map(str, (*files, *report))),
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )

        def read_until(process: subprocess.Popen[str], word: str) -> str:
            assert process.stderr is not None
            text = ""
            while word not in text:
                line = process.stderr.readline()
                assert line, text
                text += line
            return text

        listening = start(here, "listen", "--host", here.address, "--once")
        url = read_until(listening, "listening").split("link call ")[1].split()[0]
        pin = credentials.read_fingerprint(certificate)
        calling = start(there, "call", url, "--fingerprint", pin)
        try:
            read_until(calling, "received")
            time.sleep(2)
            rig.set_link(1, up=False)
            time.sleep(DOWN_S)
            rig.set_link(1, up=True)
            text = read_until(calling, "connected again")
            time.sleep(3)
            calling.send_signal(signal.SIGTERM)
            text += calling.communicate(timeout=20)[1]
            said_there = listening.communicate(timeout=20)[1]
        finally:
            for process in (calling, listening):
                process.kill()
                process.communicate()
    assert re.search(r"no packets for \d+\.\d s  ", text)
    assert "calling again" in text
    assert calling.returncode == EXIT_TERMINATED
    assert listening.returncode == 0
    assert "the other side calls again" in said_there
    for verb in ("call", "listen"):
        heard, rate_hz = soundfile.read(tmp_path / f"{verb}.wav")
        seconds = heard[: len(heard) // rate_hz * rate_hz].reshape(-1, rate_hz)
        loud = np.sqrt((seconds**2).mean(axis=1)) > 0.01
        assert loud[:4].any()
        # A machine that falls behind records less of it.
        assert longest_silence_s(loud) > DOWN_S / 5
        assert loud[-2:].any()
        statistics = json.loads((tmp_path / f"{verb}.json").read_text())
        assert statistics["encodecRt"]["reconnections"] == 1
        assert min(statistics["encodecRt"]["latencyMs"].values()) >= 0
