"""Requests to end: each ends a command as Ctrl-C does, with what it has kept."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from encodec_rt.cli import app, interrupts
from tests.support.signals import heed_hangups

ROOT = Path(__file__).parents[2]
RATE = 800
LIVE_RATE = 24_000
ENDINGS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
MAIN = """
import sys
from encodec_rt.__main__ import main

print("up", file=sys.stderr, flush=True)
main()
"""
LIVE = """
import sys
import numpy as np, pytest
from encodec_rt.cli import main
from encodec_rt.sound import portaudio
from tests.support.virtual_audio import VirtualCard, VirtualSystem, install

patch = pytest.MonkeyPatch()
card = install(patch, VirtualCard(sound=np.full(24_000 * 600, 8000, np.int16)))
slow = card.sleep
card.sleep = lambda seconds: (slow(seconds), __import__("time").sleep(seconds))
portaudio.PortAudio = lambda rate_hz, **given: VirtualSystem(card, rate_hz, **given)
main()
"""


def start(
    *arguments: object, code: str | None = None, stdin: int | None = None
) -> subprocess.Popen[bytes]:
    program = ["-m", "encodec_rt"] if code is None else ["-c", code]
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=ROOT,
        preexec_fn=heed_hangups,
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def end(process: subprocess.Popen[bytes], number: int) -> str:
    """What ``process`` says until its end when it is asked to end."""
    process.send_signal(number)
    said = process.communicate(timeout=60)[1].decode()
    assert "Traceback" not in said, said
    return said


@pytest.mark.parametrize(
    ("command", "number"), [*(("encode", number) for number in ENDINGS), ("roundtrip", 15)]
)
def test_a_file_command_leaves_no_file_and_says_by_what_it_was_ended(
    model: Path, tmp_path: Path, command: str, number: int
) -> None:
    target = tmp_path / ("x.encodec" if command == "encode" else "x.wav")
    raw = ("--raw", "s16le", "--rate", RATE, "-b", 2, "--model", model)
    process = start(command, "-", target, *raw, stdin=subprocess.PIPE)
    assert process.stdin is not None
    # More than a pipe holds: when it has gone in, the encoder is at work.
    process.stdin.write(bytes(200_000))
    process.stdin.flush()
    end(process, number)
    assert process.returncode == ENDINGS[signal.Signals(number)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("delay_s", [0.02, 0.3, 1.0])
def test_control_c_while_modules_load_says_nothing(model: Path, delay_s: float) -> None:
    process = start("roundtrip", "-", "-", "--model", model, code=MAIN, stdin=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline() == b"up\n"
    time.sleep(delay_s)
    end(process, signal.SIGINT)
    assert process.returncode in (-signal.SIGINT, 130)


def test_what_nohup_protects_from_goes_on(model: Path, tmp_path: Path) -> None:
    clip = tmp_path / "x.wav"
    soundfile.write(clip, np.zeros(RATE * 30), RATE)
    command = f"trap '' HUP; exec {sys.executable} -m encodec_rt encode {clip} -b 2 --model {model}"
    process = subprocess.Popen(["bash", "-c", command], cwd=ROOT, stderr=subprocess.PIPE)
    time.sleep(0.5)
    end(process, signal.SIGHUP)
    assert process.returncode == 0
    assert clip.with_suffix(".encodec").is_file()


def test_the_processes_of_jobs_end_with_their_parent_and_leave_nothing(
    model: Path, tmp_path: Path
) -> None:
    pipes = [tmp_path / f"{name}.wav" for name in "abc"]
    for pipe in pipes:
        os.mkfifo(pipe)
    process = start("encode", *pipes, "-j", 3, "-b", 2, "--model", model)
    writers = [open_for(process, pipe) for pipe in pipes]
    # Each has its reader: all three are at work, and wait for more.
    end(process, signal.SIGTERM)
    for writer in writers:
        os.close(writer)
    assert process.returncode == ENDINGS[signal.SIGTERM]
    assert sorted(tmp_path.iterdir()) == pipes


def open_for(process: subprocess.Popen[bytes], pipe: Path) -> int:
    """``pipe`` to write to, as soon as ``process`` reads from it."""
    while process.poll() is None:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.02)
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_live_ends_with_its_recordings_and_statistics(tmp_path: Path, number: int) -> None:
    files = ("--record", tmp_path / "x.wav", "--stats-json", tmp_path / "x.json")
    process = start("live", *files, "--save", tmp_path / "x.encodec", code=LIVE)
    while not any(path.stat().st_size > 10_000 for path in tmp_path.glob("x.*.part.wav")):
        assert process.poll() is None
        time.sleep(0.02)
    end(process, number)
    assert process.returncode == 0
    with wave.open(str(tmp_path / "x.wav")) as file:
        seconds = file.getnframes() / LIVE_RATE
    assert json.loads((tmp_path / "x.json").read_text())["seconds"] > 0
    assert seconds > 0.2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.encodec", "x.json", "x.wav"]


def test_a_killed_session_is_found_by_the_next_one(tmp_path: Path) -> None:
    wav = tmp_path / "x.wav"
    process = start("live", "--record", wav, code=LIVE)
    while not any(path.stat().st_size > 10_000 for path in tmp_path.glob("x.*.part.wav")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    (part,) = tmp_path.iterdir()
    assert soundfile.info(part).frames > 4000
    said = end_of(start("live", "--record", wav, "--duration", 0.2, code=LIVE))
    assert f"an interrupted recording is in {part}" in said
    assert part.is_file()
    assert wav.is_file()


def end_of(process: subprocess.Popen[bytes]) -> str:
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0, said
    return said


@pytest.mark.parametrize(("wanted", "status"), [(False, 130), (True, 2)])
def test_an_error_after_a_request_to_end_is_told_and_exits_as_interrupted_unless_that_was_the_end(
    wanted: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "_received", [signal.SIGINT])
    monkeypatch.setattr(interrupts, "_wanted", threading.Event())
    if wanted:
        interrupts.was_wanted()
    done = CliRunner().invoke(app, ["info", "nowhere.ecdc"])
    assert done.exit_code == status
    assert "nowhere.ecdc" in done.output


def test_a_request_within_a_callback_of_libsndfile_is_neither_printed_nor_lost(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Ended(io.BytesIO):
        """Is asked to end by libsndfile's first write."""

        def write(self, data: Any) -> int:
            if not self.tell():
                signal.raise_signal(signal.SIGTERM)
            return super().write(data)

    monkeypatch.setattr(interrupts, "_received", [])
    file, noise = Ended(), np.random.default_rng(0).normal(size=(4_000, 1)) / 8

    def written_in_peace() -> None:
        with (
            interrupts.ended_by_parent(),
            soundfile.SoundFile(file, "w", RATE * 10, 1, format="FLAC") as sound,
        ):
            sound.write(noise)
            assert file.tell() > 0, "the write went through"
            time.sleep(30)

    with pytest.raises(interrupts.InterruptedWork):
        written_in_peace()
    assert interrupts._received == [signal.SIGTERM]
    assert capfd.readouterr().err == ""
