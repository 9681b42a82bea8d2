from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
from typer.testing import CliRunner

from encodec_rt.cli import app
from encodec_rt.model.encodec import EncodecModel

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
