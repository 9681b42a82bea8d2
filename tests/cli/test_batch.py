"""Many files in one command, and what every command takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from encodec_rt.cli import app
from encodec_rt.cli.batch import Naming, plan
from encodec_rt.errors import InputError
from encodec_rt.version import __version__
from tests.support.audio_files import tone

RATE = 800
ENCODE = Naming(".ecdc", frozenset({".wav", ".flac"}), frozenset({".ecdc"}))
ROUNDTRIP = Naming(".coded.wav", frozenset({".wav"}), None)
COMMANDS = [["encode"], ["decode"], ["roundtrip"], ["info"], ["demo"], ["live"], ["devices"]]
COMMANDS += [
    ["quality"],
    ["train"],
    ["train", "lm"],
    ["data"],
    ["data", "fetch"],
    ["data", "index"],
]
COMMANDS += [["link"], ["link", "listen"], ["link", "call"], ["link", "token"], ["link", "demo"]]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two clips in a folder, a third in a folder within it, and a text."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for index, name in enumerate(("a.wav", "b.flac", "sub/c.wav")):
        soundfile.write(folder / name, tone(1_000 + index, 1, RATE, hz=50)[0], RATE)
    (folder / "notes.txt").write_text("no audio")
    return folder


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("paths", "naming", "pairs"),
    [
        (["a.wav"], ENCODE, [("a.wav", "a.ecdc")]),
        (["a.wav", "x.ecdc"], ENCODE, [("a.wav", "x.ecdc")]),
        (["a.wav", "new.wav"], ENCODE, [("a.wav", "new.wav")]),
        (["a.wav", "b.wav"], ENCODE, [("a.wav", "a.ecdc"), ("b.wav", "b.ecdc")]),
        (["a.wav", "old.ecdc"], ENCODE, [("a.wav", "old.ecdc")]),
        (["a.wav", "-"], ENCODE, [("a.wav", "-")]),
        (["-"], ENCODE, [("-", "-")]),
        (["a.wav", "b.wav", "d"], ENCODE, [("a.wav", "d/a.ecdc"), ("b.wav", "d/b.ecdc")]),
        (["d"], ENCODE, [("d/s/y.wav", "d/s/y.ecdc"), ("d/x.flac", "d/x.ecdc")]),
        (["d", "e/"], ENCODE, [("d/s/y.wav", "e/s/y.ecdc"), ("d/x.flac", "e/x.ecdc")]),
        (["a.wav", "b.wav"], ROUNDTRIP, [("a.wav", "b.wav")]),
        (["a.wav"], ROUNDTRIP, [("a.wav", "a.coded.wav")]),
    ],
)
def test_inputs_and_outputs_are_told_apart(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    paths: list[str],
    naming: Naming,
    pairs: list[tuple[str, str]],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d" / "s").mkdir(parents=True)
    for name in ("a.wav", "b.wav", "old.ecdc", "d/x.flac", "d/s/y.wav", "d/notes.txt"):
        (tmp_path / name).touch()
    assert plan(paths, naming) == pairs


@pytest.mark.parametrize(
    ("paths", "naming", "said"),
    [
        (["a.wav", "a.flac", "a.wav"], ENCODE, "would both become a.ecdc"),
        (["a.wav", "b.wav", "c.wav"], ROUNDTRIP, "c.wav is not a folder"),
        (["empty"], ENCODE, "empty holds no file"),
    ],
)
def test_what_cannot_be_named_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str], naming: Naming, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=said):
        plan(paths, naming)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_folder_is_encoded_decoded_and_each_file_is_what_it_is_alone(
    clips: Path, model: Path, tmp_path: Path, jobs: int
) -> None:
    coded, heard = tmp_path / "coded", tmp_path / "heard"
    options = ("--model", model, "--jobs", jobs)
    result = run("encode", clips, f"{coded}/", "-b", 2, *options)
    assert result.exit_code == 0, result.output
    assert names(coded) == ["a.encodec", "b.encodec", "sub/c.encodec"]
    assert run("decode", coded, f"{heard}/", *options).exit_code == 0
    assert names(heard) == ["a.wav", "b.wav", "sub/c.wav"]
    alone = tmp_path / "alone.encodec"
    assert run("encode", clips / "b.flac", alone, "-b", 2, "--model", model).exit_code == 0
    assert alone.read_bytes() == (coded / "b.encodec").read_bytes()
    assert soundfile.info(heard / "sub" / "c.wav").frames == 1_002


def test_a_file_that_fails_stops_no_other_and_is_named(clips: Path, model: Path) -> None:
    (clips / "sub" / "bad.wav").write_bytes(b"garbage" * 99)
    result = run("encode", clips, "-b", 2, "--model", model)
    assert result.exit_code == 2
    assert re.search(r"encodec-rt: .*bad\.wav is not audio of a known format", result.stderr)
    assert "3 of 4 files done" in result.stderr
    assert [name for name in names(clips) if name.endswith(".encodec")] == [
        "a.encodec",
        "b.encodec",
        "sub/c.encodec",
    ]


def test_a_part_is_the_same_part_of_the_whole(clips: Path, model: Path, tmp_path: Path) -> None:
    file, whole, part = (tmp_path / name for name in ("x.ecdc", "whole.wav", "part.wav"))
    common = ("--model", model)
    assert run("encode", clips / "a.wav", file, "-b", 2, *common).exit_code == 0
    assert run("decode", file, whole, *common).exit_code == 0
    assert run("decode", file, part, "--from", 0.5, "--to", 1, *common).exit_code == 0
    wanted = soundfile.read(whole, dtype="int16")[0][400:800]
    assert np.array_equal(soundfile.read(part, dtype="int16")[0], wanted)
    piped = run("decode", file, "-", "--from", 0.5, "--to", 1, *common)
    assert piped.stdout_bytes == part.read_bytes()
    cut = tmp_path / "cut.ecdc"
    result = run("encode", clips / "a.wav", cut, "-b", 2, "--from", 0.5, "--to", 1, *common)
    assert result.exit_code == 0
    assert result.stderr.startswith("0.50 s of audio")
    beyond = run("encode", clips / "a.wav", cut, "-b", 2, "--from", 99, "--force", *common)
    assert (beyond.exit_code, "the audio ends after 1.25 s" in beyond.stderr) == (2, True)
    backwards = run("encode", clips / "a.wav", cut, "--from", 2, "--to", 1, "--force", *common)
    assert backwards.exit_code == 2


def test_quiet_says_only_what_went_wrong_and_verbose_says_more(
    clips: Path, model: Path, tmp_path: Path
) -> None:
    def said(name: str, *options: str) -> str:
        arguments = ("-b", 2, "--model", model, *options)
        return run("encode", clips / "a.wav", tmp_path / name, *arguments).stderr

    assert said("1.ecdc", "-q") == ""
    assert "exists" in said("1.ecdc", "--quiet")
    normal, verbose = said("2.ecdc"), said("3.ecdc", "-v")
    assert len(normal.splitlines()) == 1
    assert "16-bit signed PCM, 800 Hz" in verbose
    assert run("info", clips / "a.wav", "-q", "-v").exit_code == 2


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_and_version(command: list[str]) -> None:
    for option in ("-h", "--help"):
        result = run(*command, option)
        assert (result.exit_code, "Usage:" in result.stdout) == (0, True)
    assert run(*command, "--version").stdout == f"encodec-rt {__version__}\n"


def test_info_tells_programs_numbers_and_fails_for_damage(
    clips: Path, model: Path, tmp_path: Path
) -> None:
    path = clips / "a.wav"
    facts = json.loads(run("info", path, "--json").stdout)
    assert (facts["rate_Hz"], facts["channels"], facts["length_s"]) == (RATE, 1, 1.25)
    assert facts["state"] == "complete"
    piped = json.loads(run("info", "-", "--json", stdin=path.read_bytes()).stdout)
    assert piped == facts
    path.write_bytes(path.read_bytes()[:-500])
    result = run("info", path, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["state"] == "damaged"
    file = tmp_path / "x.ecdc"
    assert run("encode", clips / "b.flac", file, "-b", 2, "--model", model).exit_code == 0
    facts = json.loads(run("info", file, "--json", "--model", model).stdout)
    assert (facts["samples"], facts["codebooks"], facts["length_s"]) == (1_001, 5, 1_001 / RATE)
    file.write_bytes(file.read_bytes()[:-9])
    assert run("info", file, "--json", "--model", model).exit_code == 2


def test_info_tells_programs_numbers_of_a_container(
    clips: Path, model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "x.encodec"
    assert run("encode", clips / "b.flac", file, "-b", 2, "--model", model).exit_code == 0
    facts = json.loads(run("info", file, "--json").stdout)
    assert (facts["rate_Hz"], facts["channels"], facts["samples"]) == (RATE, 1, 1_001)
    assert facts["bytes"] == file.stat().st_size
    assert sum(layer["codebooks"] for layer in facts["layers"]) == facts["codebooks"] == 5
    assert "lost_s" not in facts

    file.write_bytes(file.read_bytes()[:-3] + b"!!!")
    result = run("info", file, "--json")
    assert result.exit_code == 2
    # Nothing follows that tells how long the lost packet was.
    assert json.loads(result.stdout)["lost_s"] == 0


def test_a_round_trip_keeps_the_tags(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "x.flac", tmp_path / "y.flac"
    with soundfile.SoundFile(source, "w", RATE, 1) as file:
        file.title, file.artist = "Über", "nobody"
        file.write(tone(1_000, 1, RATE, hz=50)[0])
    assert run("roundtrip", source, target, "-b", 2, "--model", model).exit_code == 0
    with soundfile.SoundFile(target) as file:
        assert (file.title, file.artist) == ("Über", "nobody")


def test_a_shell_can_complete_commands_and_options() -> None:
    def completed(words: str, index: int) -> list[str]:
        environment = {
            "_ENCODEC_RT_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(index),
        }
        result = CliRunner().invoke(app, prog_name="encodec-rt", env=environment)
        return result.stdout.split()

    assert completed("encodec-rt rou", 1) == ["roundtrip"]
    assert completed("encodec-rt encode --st", 2) == ["--start", "--strict"]


def test_an_empty_name_is_refused(tmp_path: Path) -> None:
    for given in ([""], ["", str(tmp_path)]):
        with pytest.raises(InputError, match="not the name of a file"):
            plan(given, ENCODE)
