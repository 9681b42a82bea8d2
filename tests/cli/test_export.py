"""encodec-rt export: files for other runtimes."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from encodec_rt.cli import app
from encodec_rt.export.onnx import FILES, STATES
from encodec_rt.portable import PortableCodec
from tests.support.models import random_model, tiny_config


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return result.exit_code, result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_model(tiny_config()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_file_for_the_portable_codec_is_written_and_loads(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    status, said = run("web", folder, target)
    assert status == 0, said
    assert PortableCodec.load(target).config.hop_length == 8
    status, said = run("web", folder, target)
    assert (status, len(said.splitlines())) == (2, 1)
    assert "--force" in said
    status, said = run("web", folder, target, "--force", "--float16")
    assert status == 0, said
    PortableCodec.load(target)


def test_a_model_that_is_not_causal_is_refused_in_one_sentence(tmp_path: Path) -> None:
    random_model(tiny_config(use_causal_conv=False)).save_pretrained(tmp_path / "model")
    status, said = run("web", tmp_path / "model", tmp_path / "model.bin")
    assert (status, len(said.splitlines())) == (2, 1)
    assert "only causal models" in said
    assert not (tmp_path / "model.bin").exists()


def test_onnx_graphs_are_written_checked_and_reported(folder: Path, tmp_path: Path) -> None:
    status, said = run("onnx", folder, tmp_path / "graphs")
    assert status == 0, said
    assert said.count("0 of 400 codes differ") == 2
    written = {path.name for path in (tmp_path / "graphs").iterdir()}
    assert written == {*FILES, STATES}
    status, said = run("onnx", folder, tmp_path / "graphs")
    assert (status, len(said.splitlines())) == (2, 1)
    assert run("onnx", folder, tmp_path / "graphs", "--force", "--float16")[0] == 0
    status, said = run("onnx", folder, tmp_path / "others", "-b", "7")
    assert (status, len(said.splitlines())) == (2, 1)
    assert "this model has" in said
