"""encodec-rt web: it serves until it is told to end."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.models import random_model, tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_model(tiny_config()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", r"127\.0\.0\.1"), ("[::1]", r"\[::1\]")])
def test_the_page_is_served_where_it_says_and_ctrl_c_ends_it(
    folder: Path, host: str, shown: str
) -> None:
    command = [sys.executable, "-m", "encodec_rt", "web", "--model", str(folder), "--port", "0"]
    command += ["--host", host]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr is not None
            line = running.stderr.readline()
            found = re.fullmatch(rf"open (http://{shown}:\d+/) in a browser; Ctrl-C ends\n", line)
            assert found is not None, line
            with urllib.request.urlopen(found[1], timeout=10) as page:
                text = page.read().decode()
            assert "through a neural codec" in text
            place = text.split('data-model="')[1].split('"')[0]
            with urllib.request.urlopen(found[1] + place[1:], timeout=10) as answer:
                assert answer.read(4) == b"ERTW"
        finally:
            running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
    assert running.returncode == 130
    assert rest == ""


def test_beyond_loopback_a_token_is_needed(folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "encodec_rt",
        "web",
        "--model",
        str(folder),
        "--host",
        "0.0.0.0",
    ]
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "PATH": ""}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "encodec-rt link token" in ended.stderr
