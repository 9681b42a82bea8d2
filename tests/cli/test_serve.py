"""encodec-rt serve: what it says, what it refuses, and that Ctrl-C ends it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from encodec_rt.cli import app
from tests.support.models import random_model, tiny_config


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "model"
    random_model(tiny_config(target_bandwidths=(0.404, 1.616))).save_pretrained(folder)
    return folder


def test_it_serves_as_its_file_and_flags_say_until_ctrl_c(model: Path, tmp_path: Path) -> None:
    told = {"sessions": 2, "port": 1, "state": str(tmp_path / "state")}
    told |= {"model": str(model), "bandwidth": 1.616}
    (tmp_path / "serve.json").write_text(json.dumps(told), encoding="utf-8")
    command = [sys.executable, "-m", "encodec_rt", "serve"]
    command += ["--config", str(tmp_path / "serve.json"), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr is not None
            line = running.stderr.readline()
            found = re.fullmatch(
                r"serving up to 2 sessions on (http://127\.0\.0\.1:\d+); Ctrl-C ends\n", line
            )
            assert found is not None, line
            with urllib.request.urlopen(found[1] + "/v1/info", timeout=10) as answer:
                assert json.load(answer)["capacity"] == 2
        finally:
            running.send_signal(signal.SIGINT)
        running.stderr.read()
    assert running.returncode == 130
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--host", "0.0.0.0"], "does not exist; 'encodec-rt link token' makes one"),
        (["--certificate", "a.pem"], "belong together"),
        (["--config", "none.json"], "none.json"),
        (["-b", "7"], "this model has"),
        (["--fronts", "2", "--calls", "1"], "leave out --calls, --web, --ray"),
        (["--sessions", "2", "--calls", "5"], "calls are sessions"),
    ],
)
def test_what_it_cannot_serve_it_refuses_in_a_sentence(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    fixed = ["serve", "--model", str(model), "-b", "1.616", "--sessions", "1"]
    done = CliRunner().invoke(app, [*fixed, *options])
    assert done.exit_code == 2
    assert expected in done.output
    assert "Traceback" not in done.output


WRONG = {
    "port": ("a", 99_999, -1, True, 1.5),
    "sessions": (-1, "2", [1]),
    "requests_per_s": (0, 1e308, "fast"),
    "drain_s": (-1, "x", True),
    "origin": ("https://a.example", [1]),
    "state": (["a"], 3),
    "web": (1, "yes"),
}
CONTENTS = [json.dumps({name: one}) for name, values in WRONG.items() for one in values]


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"prot": 1}', '{"drain_s": NaN}', "[" * 100_000, "\udcff", *CONTENTS]
)
def test_a_config_file_that_is_not_right_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "serve.json"
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    done = CliRunner().invoke(app, ["serve", "--config", str(path)])
    assert done.exit_code == 2, done.exception
    assert "serve.json" in done.output
