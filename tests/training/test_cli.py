from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from encodec_rt.cli import app
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.pretrained import default_folder

ASSETS = Path(__file__).parents[2] / "encodec_rt" / "assets"


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    code, output = run("data", "index", folder, "--speech", ASSETS)
    assert code == 0, output
    assert "assets: 2 files" in output
    return folder / "packed"


def test_a_model_is_trained_resumed_and_exported(packed: Path, tmp_path: Path) -> None:
    common = ("train", tmp_path / "run", "--data", packed, "--preset", "smoke")
    code, output = run(*common, "--steps", 1)
    assert code == 0, output
    code, output = run(*common, "--steps", 2, "--export", tmp_path / "model")
    assert code == 0, output
    assert "step 2 " in output
    assert EncodecModel.from_pretrained(tmp_path / "model").config.num_filters == 4
    assert (tmp_path / "run" / "curves.png").is_file()


def test_a_length_and_a_known_preset_are_asked_for(packed: Path, tmp_path: Path) -> None:
    code, output = run("train", tmp_path / "run", "--data", packed)
    assert code == 2
    assert "--steps or --minutes" in output
    code, output = run("train", tmp_path, "--data", packed, "--preset", "big", "--steps", 1)
    assert code == 2
    assert "preset='big'; accepted: default" in output


def test_what_is_not_there_is_said_in_words(tmp_path: Path) -> None:
    for arguments, wanted in (
        (("train", tmp_path / "run", "--data", tmp_path / "no", "--steps", 1), "data index"),
        (("data", "fetch", tmp_path, "--sources", "nothing"), "no training package is called"),
        (("data", "index", tmp_path), "run encodec-rt data fetch"),
        (("data", "index", tmp_path, "--speech", tmp_path / "no"), "is no folder"),
        (("data", "index", tmp_path, "--sources", "festvox-ru"), "not fetched yet: festvox-ru"),
        (("quality", tmp_path / "no.wav"), "does not exist"),
    ):
        code, output = run(*arguments)
        assert code == 2, output
        assert wanted in output


def test_two_files_are_scored_against_each_other(tmp_path: Path) -> None:
    audio, rate = soundfile.read(ASSETS / "speech_en.flac", frames=48_000)
    soundfile.write(tmp_path / "quiet.wav", 0.5 * audio, rate)
    code, output = run("quality", ASSETS / "speech_en.flac", tmp_path / "quiet.wav", "--music")
    assert code == 0, output
    header, row = output.strip().splitlines()
    assert "si_sdr_db" in header
    assert "pesq_wb" not in header
    assert row.startswith("quiet.wav")


def test_a_language_model_and_tables_are_trained(packed: Path, tmp_path: Path) -> None:
    from encodec_rt.streaming.codec import Codec
    from encodec_rt.training.codes import coded_clips

    common = ("train", "lm", tmp_path / "run", "--data", packed, "--widths")
    code, output = run(*common, "8,a")
    assert code == 2
    assert "whole numbers with commas" in output
    # The bundled clips are all to train on; what is held out is given here.
    codec = Codec.load("default")
    name = f"codes-{codec.weights_sha256[:8]}"
    (tmp_path / "run").mkdir()
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "run" / f"{name}-held-out.npz",
        codes=rng.integers(0, 1024, (30, 16), dtype=np.uint16),
        lengths=np.array([10, 20]),
    )
    code, output = run(*common, "8,8,8,8", "--steps", 1)
    assert code == 0, output
    assert "12 kbps" in output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert len(report["bits_per_code"]) == 16
    clips = coded_clips(codec, packed, tmp_path / "run", hours=1)
    assert [len(clip) for clip in clips.held_out] == [10, 20]
    shutil.copytree(default_folder(), tmp_path / "model")
    for kind in ("code_lm", "code_tables"):
        shutil.copy(tmp_path / "run" / f"{kind}.safetensors", tmp_path / "model")
    target = tmp_path / "a.encodec"
    code, output = run("encode", ASSETS / "speech_en.flac", target, "--model", tmp_path / "model")
    assert code == 0, output
    code, output = run("info", target)
    assert "language model" in output
