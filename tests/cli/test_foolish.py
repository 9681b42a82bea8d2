"""Every command with every option at every foolish value: a sentence, and never a traceback."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import typer
from typer.testing import CliRunner, Result

from encodec_rt.cli import app, figure
from encodec_rt.sound import portaudio
from encodec_rt.training import fetch
from encodec_rt.training.run import Run
from tests.support.models import SPEECH, random_model, tiny_config
from tests.support.virtual_audio import VirtualCard, VirtualSystem, install

NUMBERS = ("nan", "-1", "inf", "0", "99999", "9" * 20, "1e305", "seven")
TEXTS = ("\udcff", "", "/dev/null/none", "n" * 300, "meta")
LASTING = {"live --duration", "train model --steps", "train lm --steps"}
LASTING |= {"train lm --minutes", "serve --sessions"}
"""So much is allowed, and would go on for as long."""
RATE = 800
COMMANDS = {
    "encode": "{clip} {out}/o.ecdc -b 2 --model {model} --force",
    "decode": "{coded} {out}/o.wav --model {model} --force",
    "roundtrip": "{clip} {out}/o.wav -b 2 --model {model} --force",
    "info": "{clip} --model {model}",
    "play": "{coded} --model {model}",
    "scale": "{stream} {out}/o.encodec -b 1 --force",
    "cut": "{stream} {out}/o.encodec --force",
    "cat": "{stream} -o {out}/o.encodec --force",
    "demo": "--fast --input {clip} --out {out} -b 2 --model {model}",
    "live": "-b 2 --model {model} --duration 0.01 --force",
    "devices": "",
    "web": "--model {model} --port 0",
    "quality": "{clip} {clip} --music --model {model}",
    "train lm": "{out}/lm --data {packed} --model {model} --steps 1 --hours 0.001 --widths 8",
    "train model": "{out}/run --data {packed} --preset smoke --steps 1",
    "data fetch": "{out} --sources codec2",
    "data index": "{out} --speech {folder}",
    "data shard": "{packed} {out}/shards",
    "data unshard": "{out}/none {out}/packed",
    "data split": "{clip} {out}/parts",
    "data join": "{out}/none {out}/o",
    "tokenize": "{folder} -o {out}/tokens -b 2 --model {model} --jobs 1",
    "detokenize": "{out}/none -o {out}/audio --model {model} --jobs 1",
    "serve": "-b 2 --model {model} --port 0 --sessions 1",
    "link listen": "-b 2 --model {model} --port 0 --play {clip} --record {out}/o.wav --force",
    "link call": "http://127.0.0.1:1 -b 2 --model {model} --play {clip} --record {out}/o.wav",
    "link token": "--token-file {out}/token",
    "link demo": "--in-process --out {out}/o -b 2 --model {model}",
    "export web": "{model} {out}/o.bin --force",
    "export onnx": "{out}/none {out}/onnx",
}


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(name, command) of all that the program has."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


FOUND = dict(commands(typer.main.get_command(app)))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("foolish")
    model, clip = folder / "model", folder / "clip.wav"
    random_model(tiny_config(target_bandwidths=(1.0, 2.0))).save_pretrained(model)
    samples, rate_hz = soundfile.read(SPEECH, dtype="float32")
    soundfile.write(clip, samples[20_000:20_400], RATE)
    voice = folder / "voice"
    voice.mkdir()
    for number in range(4):
        soundfile.write(voice / f"{number}.wav", np.roll(samples, number * 4000), rate_hz)
    made = {"model": model, "clip": clip, "folder": voice, "packed": folder / "packed"}
    for target in ("coded.ecdc", "stream.encodec"):
        name = target.split(".", maxsplit=1)[0]
        made[name] = folder / target
        assert run("encode", clip, made[name], "-b", 2, "--model", model).exit_code == 0
    done = run("data", "index", folder, "--speech", voice)
    assert done.exit_code == 0, done.output
    return made


@pytest.fixture(autouse=True)
def _harmless(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, places: dict[str, Path]
) -> Iterator[None]:
    """No sound card, no network, and what waits for calls waits for a moment."""

    def a_moment(work: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(work, 0.05)

        asyncio.run(bounded())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "state"))
    card = install(monkeypatch, VirtualCard(sound=np.zeros(5 * RATE, np.int16)))
    monkeypatch.setattr(
        portaudio, "PortAudio", lambda rate_hz, **given: VirtualSystem(card, rate_hz, **given)
    )
    monkeypatch.setattr(fetch, "fetch_package", lambda *_: None)
    monkeypatch.setattr(Run, "train", lambda *_: None)
    demo = sys.modules["encodec_rt.cli.link_demo"]
    monkeypatch.setattr(demo, "_clip", lambda _: places["clip"])
    monkeypatch.setattr(figure, "save_figure", lambda *_, **__: None)
    for name in ("link", "web", "serve"):
        monkeypatch.setattr(sys.modules[f"encodec_rt.cli.{name}"], "run_until_ended", a_moment)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_every_command_is_tried() -> None:
    assert set(COMMANDS) == set(FOUND)


def options(command: Any) -> Iterator[tuple[str, bool]]:
    """(name, whether it is a number) of every option that takes a value."""
    for parameter in command.params:
        if not getattr(parameter, "is_flag", True):
            kind = str(parameter.type_descriptor)
            yield parameter.opts[-1], "int" in kind or "float" in kind


FIRST = {option: name for name in reversed(COMMANDS) for option, _ in options(FOUND[name])}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_foolish_value_is_taken_or_refused_in_a_sentence(
    name: str, places: dict[str, Path], tmp_path: Path
) -> None:
    base = COMMANDS[name].format(out=tmp_path, **places).split()
    wrong = []
    for option, is_number in options(FOUND[name]):
        values = NUMBERS if is_number else TEXTS
        # What many commands share is tried in full with the first of them.
        for value in values if name == FIRST[option] else values[:2]:
            if f"{name} {option}" in LASTING and value in ("0", "99999", "9" * 20, "1e305"):
                continue
            given = (f"{option}={value}",) if option.startswith("--") else (option, value)
            result = run(*name.split(), *base, *given)
            expected = result.exception is None or isinstance(result.exception, SystemExit)
            last = (result.stderr.splitlines() or [""])[-1]
            told = last.startswith(("encodec-rt: ", "Error: "))
            if not expected or result.exit_code not in (0, 2) or (result.exit_code and not told):
                wrong.append((option, value, result.exit_code, result.exception, last))
    assert wrong == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_foolish_argument_is_refused_in_a_sentence(
    name: str, places: dict[str, Path], tmp_path: Path
) -> None:
    places = {**places, "out": tmp_path}
    words = COMMANDS[name].split()
    wrong = []
    for at in [at for at, word in enumerate(words) if "{" in word and words[at - 1][0] != "-"]:
        for value in TEXTS:
            given = [word.format(**places) for word in words]
            given[at] = value
            result = run(*name.split(), *given)
            expected = result.exception is None or isinstance(result.exception, SystemExit)
            if not expected or result.exit_code not in (0, 2) or "Traceback" in result.stderr:
                wrong.append((at, value, result.exit_code, result.exception))
    assert wrong == []


QUIET = (
    "encode",
    "decode",
    "play",
    "scale",
    "cut",
    "cat",
    "export web",
    "link token",
    "data split",
)


@pytest.mark.parametrize("name", QUIET)
def test_quiet_commands_say_only_what_went_wrong(
    name: str, places: dict[str, Path], tmp_path: Path
) -> None:
    result = run(*name.split(), *COMMANDS[name].format(out=tmp_path, **places).split(), "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
