from __future__ import annotations

import json
import os
import sys
import wave
from pathlib import Path
from posix import sched_param

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from encodec_rt.bitstream.ecdc import EcdcReader, read_header
from encodec_rt.cli import app
from encodec_rt.config import EncodecConfig
from encodec_rt.sound import portaudio
from encodec_rt.sound.meter import Timings
from tests.support.models import random_model, tiny_config
from tests.support.virtual_audio import VirtualCard, VirtualSystem, device, install

RATE = 24_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = tiny_config(
        sampling_rate=RATE, upsampling_ratios=(8, 5, 4, 2), pad_mode="constant", num_lstm_layers=1
    )
    random_model(config).save_pretrained(folder)
    return folder


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> VirtualCard:
    sound = (8000 * np.sin(np.arange(5 * RATE) * 0.1)).astype(np.int16)
    card = install(monkeypatch, VirtualCard(sound=sound))
    monkeypatch.setattr(
        portaudio,
        "PortAudio",
        lambda rate_hz, **choices: VirtualSystem(card, rate_hz, **choices),
    )
    return card


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def live(model: Path, *arguments: object) -> Result:
    kbps = EncodecConfig.from_pretrained(model).target_bandwidths[1]
    return command("live", "--model", model, "-b", kbps, "--duration", 0.3, *arguments)


def test_real_time_scheduling_is_taken_or_refused_before_anything_is_opened(
    model: Path, card: VirtualCard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda *given: taken.append(given))
    assert live(model, "--real-time").exit_code == 0
    assert len(taken) == 2
    assert live(model).exit_code == 0
    assert len(taken) == 2

    def refuse(*_: int | sched_param) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    refused = live(model, "--real-time", "--record", tmp_path / "never.wav")
    assert refused.exit_code == 2
    assert "real-time scheduling is not allowed here" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_devices_lists_them_with_the_defaults_marked(card: VirtualCard) -> None:
    result = command("devices")
    assert result.exit_code == 0
    desk, speaker = result.stdout.splitlines()
    assert desk.split() == [
        *("0", "Desk", "Microphone", "(Virtual;", "1", "in,", "0", "out,", "24000", "Hz,"),
        *("default", "input)"),
    ]
    assert "Desk Speaker" in speaker
    assert "default output" in speaker


def test_devices_says_so_when_there_is_none(card: VirtualCard) -> None:
    card.plugged = []
    card._initialize()
    result = command("devices")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no sound device was found" in result.stderr


def test_live_records_both_files_and_reports_on_standard_error_alone(
    card: VirtualCard, model: Path, tmp_path: Path
) -> None:
    wav, ecdc = tmp_path / "out.wav", tmp_path / "out.ecdc"
    result = live(model, "--record", wav, "--save", ecdc)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "no faults" in result.stderr
    with wave.open(str(wav)) as file:
        samples = file.getnframes()
    with ecdc.open("rb") as file:
        header = read_header(file)
        blocks = list(EcdcReader(file, header, EncodecConfig.from_pretrained(model)))
    assert header.samples == samples == sum(block.samples for block in blocks) > 0
    assert f"wrote {wav}: {samples / RATE:.2f} s" in result.stderr


def test_the_devices_are_chosen_by_index_or_part_of_a_name(
    monkeypatch: pytest.MonkeyPatch, card: VirtualCard, model: Path
) -> None:
    card.plugged += [device("Room Mic"), device("Room Speaker", inputs=0, outputs=1)]
    card._initialize()
    assert live(model, "--input", "room", "--output", "3").exit_code == 0
    assert [name for _, name, _ in card.opened] == ["Room Speaker", "Room Mic"]


def test_no_playback_opens_no_speaker(card: VirtualCard, model: Path) -> None:
    result = live(model, "--no-playback")
    assert result.exit_code == 0
    assert [name for _, name, _ in card.opened] == ["Desk Microphone"]


def test_an_existing_recording_is_refused_before_any_device_is_opened(
    card: VirtualCard, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.wav"
    path.write_text("precious")
    result = live(model, "--record", path)
    assert result.exit_code == 2
    assert "--force replaces it" in result.stderr
    assert card.opened == []
    assert path.read_text() == "precious"


def test_a_device_that_is_not_there_leaves_no_file(
    card: VirtualCard, model: Path, tmp_path: Path
) -> None:
    result = live(model, "--input", "kitchen", "--record", tmp_path / "out.wav")
    assert result.exit_code == 2
    assert result.stderr.startswith("encodec-rt: no microphone matches 'kitchen'; available:")
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_portaudio_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, card: VirtualCard, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice")
    for result in (command("devices"), live(model)):
        assert result.exit_code == 2
        assert "apt-get install libportaudio2" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_codec_that_cannot_keep_up_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, card: VirtualCard, model: Path
) -> None:
    monkeypatch.setattr(Timings, "p50_p99", (7.0, 9.0))
    result = live(model)
    assert "warning: the codec took 14.0 ms per frame of 13.3 ms" in result.stderr


def test_measuring_goes_with_no_recording(card: VirtualCard, model: Path, tmp_path: Path) -> None:
    result = live(model, "--measure", "--record", tmp_path / "out.wav")
    assert result.exit_code == 2
    assert "--measure plays chirps" in result.stderr


def test_the_statistics_of_a_session_are_written(
    card: VirtualCard, model: Path, tmp_path: Path
) -> None:
    result = live(model, "--stats-json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["input"], report["output"]) == ("Desk Microphone", "Desk Speaker")
    assert report["mouthToEarMs"] == {}
    assert report["latencyMs"]["outputBuffer"] == 20.0


def test_measure_says_what_to_do_when_the_microphone_hears_nothing(
    card: VirtualCard, model: Path
) -> None:
    result = live(model, "--measure")
    assert result.exit_code == 2
    assert "did not hear the chirps; turn up the speaker" in result.stderr
