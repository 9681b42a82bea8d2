"""Recordings of audio: whole while they grow, found again when their program was killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from encodec_rt.atomic import abandoned_recordings
from encodec_rt.audio import AudioReader, AudioRecording
from encodec_rt.errors import InputError

RATE = 24_000
KILLED = """
import os, signal, sys
import numpy as np
from encodec_rt.audio import AudioRecording

recording = AudioRecording(sys.argv[1], rate_hz=24_000, channels=int(sys.argv[2]))
channels = int(sys.argv[2])
sound = np.random.default_rng(1).normal(0, 0.1, (channels, 3 * 24_000)).astype(np.float32)
for hop in np.split(sound, 225, axis=1):
    recording.write(hop)
os.kill(os.getpid(), signal.SIGKILL)
"""


def seconds(path: Path) -> float:
    with AudioReader(path) as reader:
        return float(sum(block.shape[1] for block in reader.blocks(RATE, 1)) / RATE)


@pytest.mark.parametrize(
    ("name", "channels", "least_s"),
    [
        ("a.wav", 1, 3.0),
        ("a.wav", 2, 3.0),
        ("a.flac", 1, 1.9),
        ("a.ogg", 1, 1.5),
        ("a.mp3", 1, 1.8),
    ],
)
def test_what_a_killed_program_recorded_is_readable_and_found(
    tmp_path: Path, name: str, channels: int, least_s: float
) -> None:
    subprocess.run([sys.executable, "-c", KILLED, *map(str, (tmp_path / name, channels))])
    (part,) = tmp_path.iterdir()
    assert abandoned_recordings(tmp_path) == [part]
    assert part.suffix == Path(name).suffix
    assert least_s <= seconds(part) <= 3.1


def test_a_recording_that_another_process_writes_is_not_abandoned(tmp_path: Path) -> None:
    (tmp_path / f"a.{os.getppid()}.part.wav").touch()
    assert abandoned_recordings(tmp_path) == []


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_a_recording_gets_its_name_at_the_end_and_replaces_nothing(
    tmp_path: Path, name: str
) -> None:
    recording = AudioRecording(tmp_path / name, rate_hz=RATE, channels=2)
    assert list(tmp_path.iterdir()) == []
    recording.write(np.zeros((2, RATE), np.float32))
    (tmp_path / name).write_text("came first")
    with pytest.raises(InputError, match=r"--force replaces it; the recording stays in .*part"):
        recording.finish()
    recording.finish()
    assert (tmp_path / name).read_text() == "came first"
    (part,) = (path for path in tmp_path.iterdir() if path.name != name)
    assert seconds(part) == pytest.approx(1.0, abs=0.06)


def test_a_recording_to_a_device_goes_there(tmp_path: Path) -> None:
    recording = AudioRecording("/dev/null", rate_hz=RATE)
    recording.write(np.zeros(100, np.float32))
    recording.finish()
