"""A call between two pairs of real devices: PortAudio, a sound server, and the network stack."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encodec_rt.link.call import Call, CallOptions
from encodec_rt.link.device_pair import DevicePair
from encodec_rt.sound.portaudio import PortAudio
from encodec_rt.sound.streams import FIFO_S
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio
from tests.support import pulse
from tests.support.models import SPEECH, random_model, speech, tiny_config
from tests.support.narrow import present
from tests.support.pulse import PulseServer
from tests.support.sound_pieces import check_order, low, shares
from tests.support.tolerances import bound

RATE = pulse.RATE
PATIENCE_S = 40.0
BUFFER_MS = 300.0
ENDS = ("", "_2")
EXIT_INTERRUPTED = 130
LINK = (sys.executable, "-c", "from encodec_rt.cli import main; main()", "link")

lacking = pulse.missing()
pytestmark = pytest.mark.skipif(
    bool(lacking),
    reason=f"a real sound path needs {', '.join(lacking)}; 'make ci-deps' installs it",
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PulseServer]:
    with pulse.serving(tmp_path, pairs=2) as server:
        yield server


@pytest.fixture(scope="module")
def codec() -> Codec:
    """With 10 frames per second, so that a busy machine can follow both sides."""
    config = tiny_config(
        sampling_rate=RATE, upsampling_ratios=(10, 8, 6, 5), pad_mode="constant", num_lstm_layers=1
    )
    return Codec(random_model(config))


class Side:
    """One end of the call, with all that its microphone gave and its speaker was given."""

    def __init__(self, codec: Codec, end: str) -> None:
        self.end = end
        self.told: list[str] = []
        self.captured: list[Audio] = []
        self.heard: list[Audio] = []
        system = PortAudio(RATE, source=f"rt_mic{end}", sink=f"rt_spk{end}")
        self.pair = DevicePair(system, codec.config, buffer_ms=BUFFER_MS, on_event=self.told.append)
        options = CallOptions(codec.config.target_bandwidths[-1], dtx=False, idle_s=PATIENCE_S)
        self.call = Call(codec, self, self, options)

    async def read(self) -> Audio:
        hop = present(await self.pair.source.read())
        self.captured.append(hop[0])
        return hop

    async def ready(self) -> float:
        return await self.pair.sink.ready()

    def write(self, audio: Audio) -> None:
        self.heard.append(audio.reshape(-1))
        self.pair.sink.write(audio)

    def close(self) -> None:
        self.pair.close()

    @property
    def devices(self) -> dict[str, Any]:
        return self.pair.statistics()


async def until(reached: Callable[[], bool], sides: list[Side]) -> None:
    async def wait() -> None:
        while not reached():
            await asyncio.sleep(0.05)

    try:
        await asyncio.wait_for(wait(), PATIENCE_S)
    except TimeoutError:
        pytest.fail(f"{[(side.told, side.devices) for side in sides]}")


def matched_share(codec: Codec, hops: list[Audio], other: Side) -> float:
    """The share of ``hops`` that are ``other``'s voice as decoded without a network."""
    kbps = codec.config.target_bandwidths[-1]
    codes = codec.stream_encoder(kbps).push(np.concatenate(other.captured))
    wanted = codec.stream_decoder(kbps).push(codes).reshape(len(codes), -1)
    near = [np.abs(wanted - hop).max(axis=1).min() < 0.05 * np.abs(wanted).max() for hop in hops]
    print(f"{np.mean(near):.2f} of {len(hops)} hops are the far voice")
    return float(np.mean(near))


def voiced(hops: list[Audio], first: int) -> list[Audio]:
    """From the first to the last of ``hops[first:]`` that is unlike the silence before."""
    unlike = [np.abs(hop - hops[first - 1]).max() for hop in hops[first:]]
    told = first + np.flatnonzero(np.array(unlike) > 0.1 * max(unlike))
    return hops[told[0] : told[-1] + 1]


def test_both_sides_of_a_call_hear_what_the_other_said_into_its_microphone(
    server: PulseServer, codec: Codec
) -> None:
    said = [
        (16_000 * speech(1, 2 * RATE, seed=seed)[0].numpy()).astype(np.int16) for seed in (3, 8)
    ]

    async def main() -> tuple[
        list[Side],
        list[int],
        list[NDArray[np.int16]],
        list[bool],
        list[dict[str, Any]],
    ]:
        sides = [Side(codec, end) for end in ENDS]
        one, other = sides
        await one.call.accept(await other.call.answer(await one.call.offer()))
        running = [asyncio.create_task(side.call.run()) for side in sides]
        await until(lambda: all(len(side.heard) > 10 for side in sides), sides)
        begun = [len(side.heard) for side in sides]
        recorders = [server.listen(end=end) for end in ENDS]
        voices = zip(said, ENDS, strict=True)
        await asyncio.gather(
            *(asyncio.to_thread(server.say, voice, end=end) for voice, end in voices)
        )
        spoken = [len(side.heard) for side in sides]
        await until(
            lambda: all(
                len(side.heard) > begun + 15 for side, begun in zip(sides, spoken, strict=True)
            ),
            sides,
        )
        played = [recorder.stop() for recorder in recorders]
        alive = [not task.done() for task in running]
        reports = [side.call.statistics() for side in sides]
        for side in sides:
            await side.call.close()
        await asyncio.gather(*running, return_exceptions=True)
        return sides, begun, played, alive, reports

    sides, begun, played, alive, reports = asyncio.run(main())
    assert alive == [True, True]
    for index, (side, other) in enumerate(zip(sides, reversed(sides), strict=True)):
        counts, inbound, hop = side.devices, reports[index]["inbound"], codec.config.hop_length
        captured = np.concatenate(side.captured)
        pieces = shares(said[index] / 32768, captured, 0.05)
        check_order(pieces, bound("captured", "correlation"), counts)
        microphone, speaker = side.pair.source.watched.counts, counts["speaker"]
        dropped = counts["microphone"]["samplesShed"] + microphone.lost_samples
        assert 0 <= microphone.samples - dropped - len(captured) < FIFO_S * RATE
        spoken = voiced(side.heard, begun[index])
        assert matched_share(codec, spoken, other) > bound("heard over the link", "share"), inbound
        pieces = shares(low(np.concatenate(spoken)), low(played[index]), 0.1, period=hop)
        check_order(pieces, bound("played back", "correlation"), counts, over="link")
        assert (speaker["starvations"] > 0) == (speaker["samplesMissing"] > 0)
        assert 0 < inbound["totalSamplesReceived"] <= len(side.heard) * hop


def begin(*command: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LINK, *map(str, command)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], wanted: str, count: int = 1) -> str:
    """The last of ``count`` lines with ``wanted`` in it."""
    said = []
    while line := present(process.stderr).readline():
        said.append(line)
        count -= wanted in line
        if not count:
            return line
    pytest.fail("".join(said))


def test_a_call_goes_on_while_its_devices_are_lost_and_opens_them_again(
    server: PulseServer, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "state"))
    codec.model.save_pretrained(tmp_path / "model")
    report, heard = tmp_path / "out.json", tmp_path / "heard.wav"
    common = ("--model", tmp_path / "model", "-b", codec.config.target_bandwidths[-1])
    listening = begin(
        *("listen", "--port", 0, "--once", "--play", SPEECH, "--record", heard, *common)
    )
    url = read_until(listening, "listening; ").split()[-1]
    # This microphone hears its own speaker, which makes the far voice its echo.
    calling = begin(
        *("call", url, "--input", "rt_loop", "--output", "rt_spk", "--echo-cancel", *common),
        *("--stats-json", report),
    )
    try:
        read_until(calling, "round trip")
        server.stop()
        read_until(calling, "was lost", 2)
        # The call goes on without them before they come back.
        read_until(calling, "round trip")
        server.start()
        read_until(calling, "is back", 2)
        read_until(calling, "round trip")
        calling.send_signal(signal.SIGINT)
        _, said = calling.communicate(timeout=PATIENCE_S)
        assert calling.returncode == EXIT_INTERRUPTED, said
        listening.communicate(timeout=PATIENCE_S)
    finally:
        for process in (listening, calling):
            process.kill()
            process.communicate()
    devices = json.loads(report.read_text())["devices"]
    assert (devices["microphone"]["timesLost"], devices["speaker"]["timesLost"]) == (1, 1)
    assert devices["microphone"]["samplesOfSilence"] > 0
    assert devices["speaker"]["samplesUnplayed"] > 0
    assert devices["latencyMs"]["voiceProcessing"] > 5
    assert heard.stat().st_size > RATE
