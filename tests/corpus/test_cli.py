"""The commands as they are typed: what they say, what they leave, how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from encodec_rt.cli import app
from encodec_rt.cli.tokenize import line_of, show_summary
from encodec_rt.corpus.job import RunProgress
from encodec_rt.corpus.rows import CodesInfo
from encodec_rt.corpus.summary import Summary
from encodec_rt.errors import InputError
from encodec_rt.streaming.codec import Codec
from tests.corpus.conftest import SECONDS


@pytest.fixture
def model(codec: Codec, tmp_path: Path) -> list[str]:
    codec.model.save_pretrained(tmp_path / "model")
    return ["--model", str(tmp_path / "model"), "-j", "1"]


def test_a_corpus_there_and_back_with_a_table_and_a_picture(
    codec: Codec, clips: Path, tmp_path: Path, model: list[str]
) -> None:
    kbps = str(codec.config.target_bandwidths[-1])
    codes, audio = tmp_path / "codes", tmp_path / "audio"
    arguments = ["tokenize", str(clips), "--out", str(codes), "-b", kbps, *model]
    done = CliRunner().invoke(app, [*arguments, "--verify", "2"])
    assert done.exit_code == 0, done.output
    assert f"{len(SECONDS)} clips" in done.output
    assert "entropy" in done.output
    assert "0 differ" in done.output
    assert (codes / "codebooks.png").read_bytes().startswith(b"\x89PNG")
    again = CliRunner().invoke(app, [*arguments, "--json", "--quiet"])
    assert json.loads(again.stdout) == json.loads((codes / "summary.json").read_text())
    back = ["detokenize", str(codes), "--out", str(audio), "--format", "flac", *model]
    assert CliRunner().invoke(app, back).exit_code == 0
    assert len(list(audio.rglob("*.flac"))) == len(SECONDS)


def test_errors_have_an_exit_status_of_their_own(
    codec: Codec, clips: Path, tmp_path: Path, model: list[str]
) -> None:
    (clips / "bad.wav").write_text("nothing")
    kbps = str(codec.config.target_bandwidths[-1])
    arguments = ["tokenize", str(clips), "--out", str(tmp_path / "out"), "-b", kbps, *model]
    for _ in range(2):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 3
        assert "1 error: " in done.output
        assert "errors.parquet names each file and its reason" in done.output
    done = CliRunner().invoke(app, [*arguments, "--channels", "each"])
    assert done.exit_code == 2
    assert 'channels "mix", but this run has "each"' in done.output
    done = CliRunner().invoke(
        app, ["tokenize", str(tmp_path / "no"), "-o", "x", "-b", kbps, *model]
    )
    assert done.exit_code == 2
    assert "does not exist" in done.output
    assert "Traceback" not in done.output


SCRIPT = """
import sys
from typer.testing import CliRunner
from encodec_rt.cli import app
sys.modules[sys.argv[1]] = None
done = CliRunner().invoke(app, ["tokenize", *sys.argv[2:]])
print(done.exit_code, done.output)
"""


@pytest.mark.parametrize(("package", "extra"), [("pyarrow", "corpus"), ("ray", "ray")])
def test_a_missing_package_is_named_with_its_extra(
    package: str, extra: str, clips: Path, tmp_path: Path
) -> None:
    arguments = [package, str(clips), "--out", str(tmp_path / "out"), "--ray", "local"]
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("2 ")
    assert f"pip install 'encodec-rt[{extra}]'" in said


def test_progress_says_hours_pace_and_what_is_left() -> None:
    progress = RunProgress(10, 4, 24_000, seconds=7_200, errors=3)
    assert "left" not in line_of(progress)
    progress.in_this_run = 4
    assert line_of(progress).startswith("4 of 10 shards, 2.000 h, ")
    assert " left, 3 errors" in line_of(progress)


def test_a_summary_that_nobody_gets_is_an_error(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(InputError, match="standard output is closed"):
        show_summary(Summary(CodesInfo.of(codec, 0.404)), tmp_path, as_json=True)
