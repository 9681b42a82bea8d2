"""The real path: PortAudio, its threads, and a sound server with a virtual microphone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import Signals

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from encodec_rt.bitstream.ecdc import EcdcHeader, EcdcReader, read_header
from encodec_rt.config import EncodecConfig
from encodec_rt.live.duplex import MAX_FRAMES, Duplex
from encodec_rt.live.loop import CodecLoop
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.sound.devices import list_devices
from encodec_rt.sound.portaudio import PortAudio
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio, Codes
from tests.support import pulse
from tests.support.models import random_model, speech, tiny_config
from tests.support.narrow import present
from tests.support.pulse import PulseServer
from tests.support.sound_pieces import check_order, low, shares
from tests.support.tolerances import bound

RATE = pulse.RATE
CLICKS = 5
CLICK_SPACING = RATE // 8
BUFFER_MS = 300.0
STALL_S = 1.2
PATIENCE_S = 30.0
EXIT_ERROR = 2
LIVE = (sys.executable, "-c", "from encodec_rt.cli import main; main()", "live")

lacking = pulse.missing()
pytestmark = pytest.mark.skipif(
    bool(lacking),
    reason=f"a real sound path needs {', '.join(lacking)}; 'make ci-deps' installs it",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PulseServer]:
    with pulse.serving(tmp_path_factory.mktemp("pulse")) as server:
        yield server


@pytest.fixture(scope="module")
def model() -> EncodecModel:
    """A model with 10 frames per second, so that a busy machine can follow."""
    config = tiny_config(
        sampling_rate=RATE, upsampling_ratios=(10, 8, 6, 5), pad_mode="constant", num_lstm_layers=1
    )
    return random_model(config)


class Session:
    """The codec between the virtual devices, in a thread, with all that passed."""

    def __init__(self, codec: Codec, kbps: float | None = None) -> None:
        self.kbps = kbps or codec.config.target_bandwidths[-1]
        self.told: list[str] = []
        self.captured: list[Audio] = []
        self.heard: list[Audio] = []
        self.stall = threading.Event()
        self._stop = threading.Event()
        self.duplex = Duplex(
            CodecLoop(codec, self.kbps),
            PortAudio(RATE, source="rt_mic", sink="rt_spk"),
            keep_all=True,
            buffer_ms=BUFFER_MS,
            on_event=self.told.append,
            replace_output=self._replace_output,
        )
        self.duplex.open()
        self._thread = threading.Thread(target=self.duplex.run, args=[self._stop.is_set])
        self._thread.start()

    def _replace_output(self, captured: Audio, heard: Audio) -> Audio:
        self.captured.append(captured)
        self.heard.append(heard)
        if self.stall.is_set():
            self.stall.clear()
            time.sleep(STALL_S)
        return heard

    @property
    def counts(self) -> dict[str, int]:
        return self.duplex.status().counts

    def wait_until(self, reached: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not reached():
            assert time.monotonic() < end, f"{self.told} {self.counts}"
            time.sleep(0.02)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_devices_are_listed(server: PulseServer) -> None:
    names = [device.name for device in list_devices()]
    assert {"rt_mic", "rt_spk"} <= set(names)


def test_speech_passes_from_the_microphone_through_the_codec_to_the_speaker(
    server: PulseServer, model: EncodecModel
) -> None:
    codec = Codec(model)
    said = (16_000 * speech(1, 2 * RATE, seed=3)[0].numpy()).astype(np.int16)
    clicks = np.zeros((CLICKS + 1) * CLICK_SPACING, np.int16)
    clicks[CLICK_SPACING::CLICK_SPACING] = 30_000
    session = Session(codec)
    try:
        session.wait_until(lambda: sum(map(len, session.captured)) > RATE // 4)
        recorder = server.listen()
        server.say(np.concatenate([clicks, said]))
        played_until = session.duplex.loop.samples_in
        session.wait_until(lambda: session.duplex.loop.samples_in > played_until + RATE // 2)
        played = recorder.stop()
        calm = session.counts
        session.stall.set()
        session.wait_until(
            lambda: (
                session.counts["playback samples missing"]
                > calm["playback samples missing"] + STALL_S / 2 * RATE
            )
        )
        server.stop()
        session.wait_until(lambda: session.counts["microphone lost"] == 1)
        session.wait_until(lambda: session.counts["speaker lost"] == 1)
        server.start()
        session.wait_until(lambda: sum("is back" in text for text in session.told) == 2)
        before = session.duplex.loop.samples_in
        session.wait_until(lambda: session.duplex.loop.samples_in > before + RATE // 4)
    finally:
        session.stop()
    captured, heard = np.concatenate(session.captured), np.concatenate(session.heard)

    at = np.flatnonzero(captured > 0.85)
    at = at[np.concatenate([[True], np.diff(at) > CLICK_SPACING // 2])]
    assert len(at) >= CLICKS - 1
    check_order(shares(said / 32768, captured, 0.05), bound("captured", "correlation"), calm)

    encoder, decoder = codec.stream_encoder(session.kbps), codec.stream_decoder(session.kbps)
    assert np.array_equal(heard, decoder.push(encoder.push(captured))[: len(heard)])

    hop = codec.config.hop_length
    first = at[-1] // hop + 2
    spoken = low(heard[: len(heard) // hop * hop]).reshape(-1, hop)[first : first + 2 * RATE // hop]
    pieces = shares(spoken.reshape(-1), low(played), 0.2, period=hop)
    check_order(pieces, bound("played back", "correlation"), calm)


def test_the_default_model_carries_speech_from_the_microphone_to_the_speaker(
    server: PulseServer,
) -> None:
    torch.set_num_threads(1)
    codec = Codec.load("default")
    said = (16_000 * speech(1, 2 * RATE, seed=3)[0].numpy()).astype(np.int16)
    session = Session(codec, kbps=6.0)
    try:
        session.wait_until(lambda: sum(map(len, session.captured)) > RATE // 4)
        recorder, begun = server.listen(), session.duplex.loop.samples_in
        server.say(said)
        wanted = session.duplex.loop.samples_in + RATE // 2
        session.wait_until(lambda: session.duplex.loop.samples_in > wanted)
        played, counts = recorder.stop(), session.counts
    finally:
        session.stop()
    captured, heard = np.concatenate(session.captured), np.concatenate(session.heard)
    encoder, decoder = codec.stream_encoder(session.kbps), codec.stream_decoder(session.kbps)
    assert np.array_equal(heard, decoder.push(encoder.push(captured))[: len(heard)])
    spoken = slice(begun, begun + 2 * RATE)
    pieces = shares(low(captured[spoken]), low(heard), 0.4)
    check_order(pieces, bound("default model", "correlation"), counts)
    # Where this machine does not keep up with the full-size model, the counters must say so.
    if not counts["input samples lost"]:
        pieces = shares(said / 32768, captured, 0.05)
        check_order(pieces, bound("captured", "correlation"), counts)
    if not counts["playback starved"]:
        pieces = shares(low(heard[spoken]), low(played), 0.1)
        check_order(pieces, bound("played back", "correlation"), counts)
    assert (counts["playback starved"] > 0) == (counts["playback samples missing"] > 0)


def test_mouth_to_ear_is_measured_and_written_beside_its_terms(
    server: PulseServer, model: EncodecModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "model")
    report = tmp_path / "out.json"
    done = subprocess.run(
        [
            *(*LIVE, "--model", tmp_path / "model", "-b", str(model.config.target_bandwidths[-1])),
            *("--input", "rt_loop", "--output", "rt_spk", "--buffer-ms", str(BUFFER_MS)),
            *("--measure", "--stats-json", report),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    statuses = [line for line in done.stderr.splitlines() if " latency " in line]
    if done.returncode and not all(line.endswith("no faults") for line in statuses):
        # A machine that stalls moves the delay while it is measured, and no two chirps agree.
        assert done.stderr.rstrip().endswith("or join output and input with a cable")
        return
    assert done.returncode == 0, done.stderr
    assert "measured, by microphone" in done.stdout
    statistics = json.loads(report.read_text())
    delay = statistics["mouthToEarMs"]["byMicrophone"]
    assert 0 < delay["lowest_ms"] <= delay["median_ms"] <= delay["highest_ms"]
    assert delay["agreeing"] <= delay["chirps"]
    # What is queued for the speaker is in both.
    assert delay["median_ms"] > statistics["latencyMs"]["playbackQueue"] > 0


def read_recordings(
    wav: Path, ecdc: Path, config: EncodecConfig
) -> tuple[NDArray[np.int16], Codes, EcdcHeader]:
    with wave.open(str(wav)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    with ecdc.open("rb") as file:
        header = read_header(file)
        codes = np.concatenate([block.codes for block in EcdcReader(file, header, config)])
    return samples, codes, header


def start_live(folder: Path, model: Path, kbps: float) -> subprocess.Popen[str]:
    """The command itself, with both recordings, in a process of its own."""
    return subprocess.Popen(
        [
            *(*LIVE, "--model", model, "-b", str(kbps)),
            *("--input", "rt_mic", "--output", "rt_spk"),
            *("--record", folder / "out.wav", "--save", folder / "out.ecdc"),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_reports(process: subprocess.Popen[str], count: int = 2) -> None:
    while count and (line := present(process.stderr).readline()):
        count -= "kbps" in line


def end_live(process: subprocess.Popen[str], ending: Signals, *, reports: int = 2) -> str:
    """Send ``ending`` once the command has reported so often; what it says afterwards."""
    wait_for_reports(process, reports)
    process.send_signal(ending)
    with process:
        return present(process.stderr).read()


def check_recordings(wav: Path, ecdc: Path, model: EncodecModel, kbps: float) -> None:
    """Both are valid and hold the same session, but for the step in which it was cut off."""
    samples, codes, header = read_recordings(wav, ecdc, model.config)
    assert len(samples) > RATE
    audio = Codec(model).stream_decoder(kbps).push(codes)[: header.samples]
    assert abs(len(audio) - len(samples)) <= MAX_FRAMES * model.config.hop_length
    wanted = np.clip(np.rint(audio * 32768), -32768, 32767)
    shared = min(len(audio), len(samples))
    assert np.array_equal(samples[:shared], wanted[:shared])


def test_what_was_recorded_survives_ctrl_c_a_hanging_sound_server_and_a_kill(
    server: PulseServer, model: EncodecModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "model")
    kbps = model.config.target_bandwidths[-1]
    folders = [tmp_path / name for name in ("interrupted", "hung", "killed")]
    for folder in folders:
        folder.mkdir()
    interrupted, hung, killed = (start_live(folder, tmp_path / "model", kbps) for folder in folders)
    said = end_live(interrupted, signal.SIGINT)
    end_live(killed, signal.SIGKILL)
    assert interrupted.returncode == 0, said
    assert "out.wav: " in said
    assert killed.returncode == -signal.SIGKILL
    wait_for_reports(hung)
    server.hang(hanging=True)
    try:
        said = end_live(hung, signal.SIGINT, reports=0)
    finally:
        server.hang(hanging=False)
    assert hung.returncode == EXIT_ERROR
    assert said.splitlines()[-1].endswith("check that its service runs, and restart")
    for folder in folders[:2]:
        assert sorted(path.name for path in folder.iterdir()) == ["out.ecdc", "out.wav"]
    for folder in folders:
        (wav,), (ecdc,) = folder.glob("*.wav"), folder.glob("*.ecdc")
        check_recordings(wav, ecdc, model, kbps)
