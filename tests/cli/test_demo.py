from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from matplotlib.figure import Figure
from typer.testing import CliRunner, Result

from encodec_rt import pretrained
from encodec_rt.cli import app, figure
from encodec_rt.errors import WeightsError
from encodec_rt.live.loop import Loopback
from tests.support.models import SPEECH
from tests.support.narrow import present


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    samples, rate = soundfile.read(SPEECH, dtype="float32")
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples[20_000:28_000], rate)
    return path


def run(*arguments: Path | str) -> Result:
    return CliRunner().invoke(app, ["demo", *(str(argument) for argument in arguments)])


def check(result: Result, folder: Path) -> None:
    assert result.exit_code == 0, result.output
    facts = soundfile.info(folder / "out.wav")
    assert (facts.frames, facts.samplerate, facts.subtype) == (8_000, 24_000, "PCM_16")
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
    for row in ("encode", "decode", "both"):
        assert re.search(rf"{row} +│ +[\d.]+ │ +[\d.]+ │ +[\d.]+ ", result.stdout)
    for fact in ("deadline misses", "start-up delay", "real-time factor", "25, 275 bytes"):
        assert fact in result.stdout


def test_the_demo_runs_without_pacing_and_leaves_sound_and_picture(
    clip: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "demo"
    result = run("--fast", "--input", clip, "--out", folder)
    check(result, folder)
    assert "flat out" in result.stdout


def test_the_demo_says_that_random_weights_are_random(
    monkeypatch: pytest.MonkeyPatch, clip: Path, tmp_path: Path
) -> None:
    def missing() -> None:
        raise WeightsError("no default model")

    monkeypatch.setattr(pretrained, "default_folder", missing)
    first = run("--fast", "--input", clip, "--out", tmp_path / "one")
    check(first, tmp_path / "one")
    assert "weights of this run are random" in first.stderr
    run("--fast", "--input", clip, "--out", tmp_path / "two")
    one, two = (tmp_path / name / "out.wav" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_second_demo_replaces_the_first(clip: Path, tmp_path: Path) -> None:
    for _ in range(2):
        check(run("--input", clip, "--out", tmp_path), tmp_path)


def test_the_demo_takes_less_than_a_frame_and_refuses_no_samples(
    clip: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.wav"
    soundfile.write(short, soundfile.read(clip)[0][:300], 24_000)
    folder = tmp_path / "demo"
    result = run("--fast", "--input", short, "--out", folder)
    assert result.exit_code == 0, result.output
    assert "1 frames of 13.33 ms" in result.stdout
    assert soundfile.info(folder / "out.wav").frames == 320
    soundfile.write(short, [], 24_000)
    result = run("--fast", "--input", short, "--out", folder)
    assert (result.exit_code, "has no samples in it" in result.stderr) == (2, True)


def test_the_picture_counts_the_frames_that_the_table_counts(tmp_path: Path) -> None:
    axis = Figure().subplots()
    late_ms = [5.0, 14.0, 13.3, 40.0, 2.0]
    run = Loopback(13.333, np.zeros((1, 0), np.float32), [2.0] * 5, [3.0] * 5, late_ms)
    figure._draw_times(axis, run.encode_ms, run.decode_ms, run.late_ms, run.frame_ms)
    legend = present(axis.get_legend())
    labels = [text.get_text() for text in legend.get_texts()]
    assert f"done too late: {run.misses} of 5 frames" in labels
    assert legend.get_window_extent().y0 >= axis.get_window_extent().y1
