"""Which language model is taken for new files, and that those of earlier versions are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
from typer.testing import CliRunner

from encodec_rt.cli import app
from encodec_rt.lm.files import EARLIER, LMS_PATTERN, lm_for_model
from encodec_rt.lm.integer import IntegerLm
from encodec_rt.pretrained import default_folder

SPEECH = Path(__file__).parents[2] / "encodec_rt/assets/speech_en.flac"


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.output


def test_the_package_has_one_language_model_for_new_files() -> None:
    (path,) = default_folder().glob(LMS_PATTERN)
    model = IntegerLm.load(path)
    chosen = lm_for_model(model.codes_sha256)
    assert chosen is not None
    assert chosen.sha256 == model.sha256
    assert path.stem == f"code_lm-{model.sha256.hex()[:8]}"


@pytest.mark.parametrize("path", sorted((default_folder() / EARLIER).glob(LMS_PATTERN)))
def test_a_file_of_an_earlier_version_decodes_without_naming_its_language_model(
    path: Path, tmp_path: Path
) -> None:
    audio, rate_hz = soundfile.read(SPEECH, frames=12_000)
    soundfile.write(tmp_path / "in.wav", audio, rate_hz)
    run("encode", tmp_path / "in.wav", tmp_path / "old.encodec", "--lm", path)
    (facts,) = [json.loads(run("info", tmp_path / "old.encodec", "--json"))]
    assert IntegerLm.load(path).sha256.hex() in json.dumps(facts)
    run("encode", tmp_path / "in.wav", tmp_path / "new.encodec")
    for name in ("old", "new"):
        run("decode", tmp_path / f"{name}.encodec", tmp_path / f"{name}.wav")
    assert (tmp_path / "old.wav").read_bytes() == (tmp_path / "new.wav").read_bytes()
    assert (tmp_path / "old.encodec").read_bytes() != (tmp_path / "new.encodec").read_bytes()
