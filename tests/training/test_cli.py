from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from encodec_rt.cli import app
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.pretrained import default_folder
from encodec_rt.training import recipe
from encodec_rt.training.language_model import LmTraining
from encodec_rt.training.presets import PRESETS
from encodec_rt.training.recipe import TrainingConfig
from encodec_rt.training.tables import load_index
from tests.support.signals import heed_hangups

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


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--threads", "0"),
        ("--threads", "-3"),
        ("--threads", "99999999"),
        ("--minutes", "nan"),
        ("--minutes", "inf"),
        ("--minutes", "0"),
        ("--minutes", "1e300"),
        ("--steps", "0"),
        ("--steps", "-1"),
        ("--steps", "1.5"),
        ("--device", "meta"),
        ("--device", "toaster"),
    ],
)
def test_foolish_numbers_are_refused_in_one_sentence(
    packed: Path, tmp_path: Path, option: str, value: str
) -> None:
    given = {"--steps": "1"} if option not in ("--steps", "--minutes") else {}
    pairs = [part for pair in {**given, option: value}.items() for part in pair]
    code, output = run("train", tmp_path / "run", "--data", packed, "--preset", "smoke", *pairs)
    assert code == 2, output
    assert option.strip("-") in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_told_to_end_keeps_its_checkpoint(
    packed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "encodec_rt", "train", str(tmp_path / "run")]
    command += ["--data", str(packed), "--preset", "smoke", "--minutes", "5"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_hangups
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 25 "):
                break
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait() == 128 + number, rest
    assert "checkpoint; step " in rest
    assert "Traceback" not in rest
    assert (tmp_path / "run" / "checkpoint.pt").is_file()


def test_emulated_bfloat16_is_replaced_and_named(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(PRESETS["smoke"], precision="bfloat16")
    (tmp_path / "training.json").write_text(json.dumps(config.to_dict()))
    monkeypatch.setattr(recipe, "computes_bfloat16", lambda device: False)
    common = ("--data", packed, "--config", tmp_path / "training.json", "--steps", 1)
    code, output = run("train", tmp_path / "run", *common)
    assert code == 0, output
    assert "cpu has no bfloat16 arithmetic: training in float32" in output
    assert TrainingConfig.load(tmp_path / "run" / "training.json").precision == "float32"


def test_an_index_without_held_out_audio_is_refused_when_it_is_made(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(ASSETS / "speech_en.flac", own / "one.flac")
    (own / "broken.wav").write_bytes(b"RIFF and nothing more")
    code, output = run("data", "index", tmp_path, "--speech", own)
    assert code == 2, output
    assert "nothing is left to hold out" in output
    assert not list((tmp_path / "packed").iterdir())
    # Whichever of three files the hash holds out, a broken one included, the index is whole.
    shutil.copy(ASSETS / "speech_it.flac", own / "two.flac")
    code, output = run("data", "index", tmp_path, "--speech", own)
    assert code == 0, output
    (source,) = load_index(tmp_path / "packed")
    assert {clip.split for clip in source.clips} == {"train", "held-out"}


def test_audio_and_checkpoints_travel_in_small_files(packed: Path, tmp_path: Path) -> None:
    for arguments in (
        ("data", "shard", packed, tmp_path / "shards", "--mib", "0.2"),
        ("data", "unshard", tmp_path / "shards", tmp_path / "again"),
        ("data", "split", packed / "assets.s16", tmp_path / "parts", "--mib", "0.25"),
        ("data", "join", tmp_path / "parts", tmp_path / "joined.s16"),
    ):
        code, output = run(*arguments)
        assert code == 0, output
    assert (tmp_path / "again" / "assets.s16").is_file()
    assert (tmp_path / "joined.s16").read_bytes() == (packed / "assets.s16").read_bytes()


def test_what_is_not_there_is_said_in_words(tmp_path: Path) -> None:
    for arguments, wanted in (
        (("train", tmp_path / "run", "--data", tmp_path / "no", "--steps", 1), "data index"),
        (("data", "fetch", tmp_path, "--sources", "nothing"), "no training package is called"),
        (("data", "index", tmp_path), "run encodec-rt data fetch"),
        (("data", "index", tmp_path, "--speech", tmp_path / "no"), "is not a folder"),
        (("data", "index", tmp_path, "--sources", "festvox-ru"), "not fetched yet: festvox-ru"),
        (("quality", tmp_path / "no.wav"), "does not exist"),
    ):
        code, output = run(*arguments)
        assert code == 2, output
        assert wanted in output


def test_files_of_unequal_length_are_not_scored(tmp_path: Path) -> None:
    audio, rate = soundfile.read(ASSETS / "speech_en.flac", frames=48_000)
    soundfile.write(tmp_path / "short.wav", audio[: 48_000 - 1_200], rate)
    code, output = run("quality", ASSETS / "speech_en.flac", tmp_path / "short.wav", "--music")
    assert code == 2
    assert "they may differ by at most 40 ms" in output


@pytest.mark.parametrize("absent", ["visqol", "libsvm"])
def test_a_missing_metric_names_what_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    audio, rate = soundfile.read(ASSETS / "speech_en.flac", frames=24_000)
    soundfile.write(tmp_path / "a.wav", audio, rate)
    for name in [name for name in sys.modules if name.split(".")[0] in ("visqol", "libsvm")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    code, output = run("quality", tmp_path / "a.wav", tmp_path / "a.wav", "--music", "--visqol")
    assert code == 2, output
    assert "pip install 'encodec-rt[quality]'" in " ".join(output.split())


def test_two_files_are_scored_against_each_other(tmp_path: Path) -> None:
    audio, rate = soundfile.read(ASSETS / "speech_en.flac")
    soundfile.write(tmp_path / "quiet.wav", 0.5 * audio, rate)
    code, output = run("quality", ASSETS / "speech_en.flac", tmp_path / "quiet.wav", "--music")
    assert code == 0, output
    header, row = output.strip().splitlines()
    assert "si_sdr_db" in header
    assert "pesq_wb" not in header
    assert row.startswith("quiet.wav")


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused_rather_than_an_hour_trained(tmp_path: Path, steps: int) -> None:
    code, output = run("train", "lm", tmp_path / "run", "--data", tmp_path, "--steps", steps)
    assert code == 2
    assert "--steps" in output
    assert "1" in output


@pytest.mark.parametrize("option", ["--minutes", "--hours", "--learning-rate"])
def test_amounts_that_train_nothing_are_refused(tmp_path: Path, option: str) -> None:
    for amount in ("0", "-1"):
        code, output = run("train", "lm", tmp_path / "run", "--data", tmp_path, option, amount)
        assert code == 2
        assert f"{option} {amount}; more than 0 is needed" in output


def test_a_language_model_and_tables_are_trained(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encodec_rt.streaming.codec import Codec
    from encodec_rt.training import codes
    from encodec_rt.training.codes import coded_clips

    common = ("train", "lm", tmp_path / "run", "--data", packed, "--widths")
    code, output = run(*common, "8,a")
    assert code == 2
    assert "whole numbers separated by commas" in output
    # The bundled clips are all to train on; what is held out is given here.
    codec = Codec.load("default")
    name = f"codes-{codec.codes_sha256[:8]}"
    (tmp_path / "run").mkdir()
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "run" / f"{name}-held-out.npz",
        codes=rng.integers(0, 1024, (30, 16), dtype=np.uint16),
        lengths=np.array([10, 20]),
    )
    advance = LmTraining.advance

    def interrupted(training: LmTraining) -> torch.Tensor:
        if training.step:
            raise KeyboardInterrupt
        return advance(training)

    monkeypatch.setattr(LmTraining, "advance", interrupted)
    code, output = run(*common, "8,8,8,8", "--steps", 2, "--voices", 1)
    assert code == 130, output
    monkeypatch.undo()
    code, output = run(*common, "8,8,8,8", "--steps", 2, "--voices", 1)
    assert code == 0, output
    assert "goes on from lm-checkpoint" in output
    assert not list((tmp_path / "run").glob("lm-checkpoint*"))
    assert "12 kbps" in output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert len(report["bits_per_code"]) == 16
    clips = coded_clips(codec, packed, tmp_path / "run", hours=1)
    assert [len(clip) for clip in clips.held_out] == [10, 20]
    others = coded_clips(codec, packed, tmp_path / "run", hours=1, voices=1)
    assert len(others.train) == 2 * len(clips.train)
    assert len(others.held_out) == len(clips.held_out)
    for clip, other in zip(clips.train, others.train[len(clips.train) :], strict=True):
        assert 0.79 < len(other) / len(clip) < 1.26
        shared = min(len(clip), len(other))
        assert (clip[:shared] != other[:shared]).mean() > 0.5
    # What a GPU does, on the CPU: the same but for near-ties.
    waveforms = codes._Waveforms(24_000, packed, "train", 1, 0, 1)
    batched = codes._encoded_in_batches(codec, waveforms, torch.device("cpu"), 12.0)
    assert [len(clip) for clip in batched] == [len(clip) for clip in others.train[len(batched) :]]
    same = np.concatenate(batched) == np.concatenate(others.train[len(batched) :])
    assert same.mean() > 0.999
    shutil.copytree(default_folder(), tmp_path / "model")
    for kind in ("code_lm", "code_tables"):
        shutil.copy(tmp_path / "run" / f"{kind}.safetensors", tmp_path / "model")
    target = tmp_path / "a.encodec"
    code, output = run("encode", ASSETS / "speech_en.flac", target, "--model", tmp_path / "model")
    assert code == 0, output
    code, output = run("info", target)
    assert "language model" in output
