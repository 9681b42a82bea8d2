from __future__ import annotations

import asyncio
import json
import re
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from encodec_rt.cli import app
from encodec_rt.cli.link_call import answer_calls
from encodec_rt.errors import InputError
from encodec_rt.link import credentials
from encodec_rt.link.dialling import SignallingClient
from encodec_rt.sound import processing
from tests.support.models import random_model, tiny_config

EXIT_ERROR = 2


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    random_model(tiny_config()).save_pretrained(folder)
    return folder


def run(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(app, ["link", *arguments], input=given)


def test_a_token_is_made_once_shown_again_and_replaced_on_demand(tmp_path: Path) -> None:
    first, again, new = run("token"), run("token"), run("token", "--new")
    assert first.exit_code == 0
    assert first.stdout == again.stdout != new.stdout
    path = tmp_path / "state" / "encodec-rt" / "link-token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == new.stdout


def test_a_token_is_imported_without_echo() -> None:
    token = "t" * 43
    done = run("token", "--import", given=f"{token}\n")
    assert done.exit_code == 0
    assert token not in done.output
    assert run("token").stdout.strip() == token


def test_a_weak_token_is_not_imported() -> None:
    assert "no token came" in run("token", "--import", given="").output
    done = run("token", "--import", given="secret\n")
    assert done.exit_code == EXIT_ERROR
    assert "32 or more" in done.output


def test_listening_beyond_loopback_needs_a_token(model: Path) -> None:
    done = run("listen", "--host", "0.0.0.0", "--model", str(model))
    assert done.exit_code == EXIT_ERROR
    assert "encodec-rt link token" in done.output


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nowhere", "not an address to call"),
        ("http://192.0.2.1:8443", "use https"),
        ("https://192.0.2.1:8443", "link token"),
    ],
)
def test_what_cannot_be_called_is_told_in_one_sentence(url: str, told: str, model: Path) -> None:
    done = run("call", url, "--model", str(model))
    assert done.exit_code == EXIT_ERROR
    assert told in done.output
    assert "Traceback" not in done.output


def test_a_wrong_fingerprint_is_told(model: Path) -> None:
    credentials.make_token(credentials.state_folder() / "link-token")
    done = run("call", "https://192.0.2.1:1", "--fingerprint", "00", "--model", str(model))
    assert done.exit_code == EXIT_ERROR
    assert "64 hex digits" in done.output


def test_the_demo_in_one_process_leaves_what_both_sides_heard(model: Path, tmp_path: Path) -> None:
    kbps = tiny_config().target_bandwidths[-1]
    done = run(
        *("demo", "--in-process", "--out", str(tmp_path / "out"), "--model", str(model)),
        *("-b", str(kbps)),
    )
    assert done.exit_code == 0, done.output
    for side in ("caller", "listener"):
        audio, rate_hz = soundfile.read(tmp_path / "out" / f"heard-by-{side}.wav")
        assert len(audio) > 7 * rate_hz
        report = json.loads((tmp_path / "out" / f"statistics-{side}.json").read_text())
        assert report["inbound"]["packetsLost"] > 0
        assert report["inbound"]["encodecRt"]["recoveredFrames"] > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--echo-cancel", "--play", "said.wav"), "--play replaces the microphone"),
        (("--gain-control", "--play", "said.wav"), "--play replaces the microphone"),
        (("--echo-cancel", "--record", "heard.wav"), "--record replaces the speaker"),
        (("--echo-cancel",), "8000 to 48000 Hz"),
    ],
)
def test_cleaning_a_voice_that_cannot_be_had_is_told_before_any_call(
    options: tuple[str, ...], told: str, model: Path
) -> None:
    for command in (("call", "http://127.0.0.1:1"), ("listen",)):
        done = run(
            *command,
            *options,
            "--model",
            str(model),
            "-b",
            str(tiny_config().target_bandwidths[-1]),
        )
        assert done.exit_code == EXIT_ERROR
        assert told in done.output
        assert len(done.output.splitlines()) == 1


def test_cleaning_a_voice_needs_its_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "livekit.rtc", None)
    monkeypatch.setattr(processing, "RATES_HZ", (800, 48_000))
    done = run(
        "call",
        "http://127.0.0.1:1",
        "--noise-suppression",
        "--model",
        str(model),
        "-b",
        str(tiny_config().target_bandwidths[-1]),
    )
    assert done.exit_code == EXIT_ERROR
    assert "pip install 'encodec-rt[aec]'" in done.output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--play", "missing.wav"), "missing.wav"),
        (("--play", "{clip}", "--record", "{clip}"), "--force replaces it"),
        (("--play", "{clip}", "--record", "x.txt"), "does not name an audio format"),
        (("--play", "{clip}", "--record", "x.wav", "--ice-server", "http://x"), "ICE server"),
        (("--play", "{clip}", "--record", "x.wav", "-b", "5"), "bandwidth"),
        (("--play", "{clip}", "--record", "x.wav", "--save", "x.wav"), ".encodec or .ecdc"),
        (("--play", "{clip}", "--save", "x.ecdc", "--save-sent", "x.ecdc"), "give two files"),
        (("--play", "{clip}", "--save", "none/x.encodec"), "does not exist"),
        (
            ("--play", "{clip}", "--record", "x.wav", "--stats-json", "none/x.json"),
            "does not exist",
        ),
        (("--play", "{clip}", "--input", "0", "--output", "9"), "sound|speaker|PortAudio"),
    ],
)
def test_what_a_call_would_lack_is_said_before_listening(
    options: tuple[str, ...],
    told: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, np.zeros(800), 800)
    monkeypatch.chdir(tmp_path)
    given = [option.format(clip=clip) for option in options]
    kbps = () if "-b" in given else ("-b", str(tiny_config().target_bandwidths[-1]))
    done = run("listen", "--model", str(model), *given, *kbps)
    assert done.exit_code == EXIT_ERROR, done.output
    assert re.search(told, done.output)
    assert "listening" not in done.output
    assert [path for path in tmp_path.iterdir() if path.is_file()] == [clip]


def test_a_refused_call_leaves_no_file_and_no_report(model: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, np.zeros(800), 800)
    kbps = str(tiny_config().target_bandwidths[-1])
    done = run(
        *("call", "http://127.0.0.1:1", "--model", str(model), "-b", kbps, "--play", str(clip)),
        *("--record", str(tmp_path / "x.wav"), "--stats-json", str(tmp_path / "x.json")),
    )
    assert done.exit_code == EXIT_ERROR
    assert len(done.output.splitlines()) == 1
    assert [path for path in tmp_path.iterdir() if path.is_file()] == [clip]


@pytest.mark.parametrize(
    ("host", "urls"),
    [
        ("192.0.2.7", ["https://192.0.2.7:8443"]),
        ("::1", ["https://[::1]:8443"]),
        ("name.example", ["https://name.example:8443"]),
    ],
)
def test_printed_addresses_can_be_pasted(host: str, urls: list[str]) -> None:
    assert credentials.urls("https", host, 8443) == urls


def test_of_all_interfaces_each_address_is_printed_and_none_that_nobody_reaches() -> None:
    found = credentials.urls("https", "0.0.0.0", 8443)
    assert found
    assert not any("0.0.0.0" in url for url in found)
    for url in found:
        SignallingClient(url, token=None)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", "x.json"), InputError("no")]
)
def test_a_listener_of_one_call_ends_whatever_its_report_cannot_write(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Course:
        async def run(self) -> None:
            return

        def report(self) -> None:
            raise error

    class Server:
        """Takes a call at once."""

        def __init__(self, open_line: Any, *, token: str | None) -> None:
            self._line = open_line()

        async def start(self, *_: object) -> int:
            self._call = asyncio.create_task(self._line.run())
            return 1

        async def close(self) -> None:
            await asyncio.gather(self._call, return_exceptions=True)

    monkeypatch.setattr("encodec_rt.link.signalling.SignallingServer", Server)

    async def listen() -> None:
        announced: list[int] = []
        made: Any = Course
        answering = answer_calls(
            made, "h", 1, context=None, token=None, announce=announced.append, once=True
        )
        await asyncio.wait_for(answering, 60.0)
        assert announced == [1]

    asyncio.run(listen())
