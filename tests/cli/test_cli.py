from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner, Result

from encodec_rt import audio
from encodec_rt.audio.writer import AudioWriter
from encodec_rt.cli import app
from encodec_rt.config import PRESETS
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.model.identity import model_name
from encodec_rt.types import Audio
from tests.support.models import SPEECH
from tests.support.narrow import present

ROOT = Path(__file__).parents[2]
RATE = 800
SAMPLES = 2003


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    samples, _ = soundfile.read(SPEECH, dtype="float32")
    soundfile.write(path, samples[20_000 : 20_000 + SAMPLES], RATE)
    return path


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def sentence(result: Result) -> str:
    """The one line on standard error with which a command refused."""
    assert result.exit_code == 2, result.output
    assert result.stdout_bytes == b""
    (line,) = result.stderr.splitlines()
    assert line.startswith("encodec-rt: ")
    assert "Traceback" not in line
    return line


def encoded(clip: Path, model: Path, tmp_path: Path, *options: object) -> Path:
    target = tmp_path / "clip.ecdc"
    result = run("encode", clip, target, "-b", 2, "--model", model, *options)
    assert result.exit_code == 0, result.output
    return target


def test_decoding_an_encoded_file_equals_the_round_trip(
    clip: Path, model: Path, tmp_path: Path
) -> None:
    file = encoded(clip, model, tmp_path)
    decoded, direct = tmp_path / "decoded.wav", tmp_path / "direct.wav"
    assert run("decode", file, decoded, "--model", model).exit_code == 0
    assert run("roundtrip", clip, direct, "-b", 2, "--model", model).exit_code == 0
    assert decoded.read_bytes() == direct.read_bytes()
    assert soundfile.info(decoded).frames == SAMPLES
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".ecdc", ".wav", ".wav", ".wav"]


def test_the_file_holds_the_offline_models_codes(clip: Path, model: Path, tmp_path: Path) -> None:
    from encodec_rt.bitstream.ecdc import EcdcReader, read_header

    offline = EncodecModel.from_pretrained(model)
    samples, _ = soundfile.read(clip, dtype="float32")
    with torch.no_grad():
        wanted = offline.encode(torch.from_numpy(samples)[None, None], bandwidth=2.0)[0]
    with encoded(clip, model, tmp_path).open("rb") as file:
        header = read_header(file)
        codes = [block.codes for block in EcdcReader(file, header, offline.config)]
    assert header.model == model_name(offline)
    assert np.array_equal(np.concatenate(codes).T, wanted[0, 0].numpy())


def test_pipes_carry_what_files_do(clip: Path, model: Path, tmp_path: Path) -> None:
    file = encoded(clip, model, tmp_path)
    piped = run(
        "encode", "-", "-", "--format", "ecdc", "-b", 2, "--model", model, stdin=clip.read_bytes()
    )
    assert piped.exit_code == 0, piped.output
    assert piped.stdout_bytes == file.read_bytes()
    target = tmp_path / "x.wav"
    assert run("decode", file, target, "--model", model).exit_code == 0
    heard = run("decode", "-", "-", "--model", model, stdin=piped.stdout_bytes)
    assert heard.exit_code == 0, heard.output
    samples, rate = soundfile.read(io.BytesIO(heard.stdout_bytes), dtype="int16")
    assert rate == RATE
    assert np.array_equal(samples, soundfile.read(target, dtype="int16")[0])


def test_any_rate_and_channels_are_taken(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "x.flac", tmp_path / "x.wav"
    soundfile.write(source, np.zeros((4410, 3), np.float32), 44_100)
    assert run("roundtrip", source, target, "-b", 1, "--model", model).exit_code == 0
    facts = soundfile.info(target)
    assert (facts.samplerate, facts.channels, facts.frames) == (RATE, 1, 80)


def test_existing_output_is_kept_without_force(clip: Path, model: Path, tmp_path: Path) -> None:
    file = encoded(clip, model, tmp_path)
    before = file.read_bytes()
    arguments = ("encode", clip, file, "-b", 1, "--model", model)
    assert "--force" in sentence(run(*arguments))
    assert file.read_bytes() == before
    assert run(*arguments, "--force").exit_code == 0
    assert file.read_bytes() != before


def test_a_cut_file_is_refused_or_salvaged(clip: Path, model: Path, tmp_path: Path) -> None:
    file = encoded(clip, model, tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    target = tmp_path / "x.wav"
    assert "--salvage" in sentence(run("decode", file, target, "--model", model))
    assert not target.exists()
    result = run("decode", file, target, "--model", model, "--salvage")
    assert result.exit_code == 0
    assert "warning: the stream ended early" in result.stderr
    assert 0 < soundfile.info(target).frames < SAMPLES
    encoded(clip, model, tmp_path, "--force")
    file.write_bytes(file.read_bytes() + b"more")
    assert "more bytes follow" in sentence(
        run("decode", file, tmp_path / "y.wav", "--model", model)
    )
    result = run("decode", file, target, "--model", model, "--salvage", "--force")
    assert "warning: more bytes follow" in result.stderr
    assert soundfile.info(target).frames == SAMPLES
    header, _, _ = file.read_bytes().partition(b"}")
    file.write_bytes(header + b"}" + bytes(2))
    again = run("decode", file, target, "--model", model, "--salvage", "--force")
    assert "nothing to salvage" in sentence(again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("encode", "{none}", "{new}.ecdc"), "does not exist"),
        (("encode", "{garbage}", "{new}.ecdc"), "not audio of a known format"),
        (("encode", "{clip}", "{new}.ecdc", "-b", "6"), "this model has 1, 2"),
        (("encode", "{clip}", "{new}.ecdc", "-b", "2", "--start", "soon"), "primed, exact, zero"),
        (("encode", "{clip}", "{new}.ecdc", "-b", "2", "--device", "abacus"), "abacus"),
        (("encode", "{clip}", "{new}.ecdc", "-b", "2", "--backend", "abacus"), "abacus"),
        (("encode", "{clip}", "{new}.wav", "-b", "2"), "name this output .encodec or .ecdc"),
        (("encode", "{clip}", "{folder}/none/x.ecdc", "-b", "2"), "folder"),
        (("encode", "{clip}", "{new}.ecdc", "-b", "2", "--coding", "lm"), "--coding lm for .ecdc"),
        (("encode", "{clip}", "{new}.ecdc", "-b", "2", "--rate", "8000"), "are for --raw"),
        (("roundtrip", "{clip}", "{new}.wav", "-b", "2", "--channels", "1"), "are for --raw"),
        (("decode", "{none}", "{new}.wav"), "does not exist"),
        (("decode", "{garbage}", "{new}.wav"), "not a file of codes"),
        (("decode", "{clip}", "{new}.wav"), "not a file of codes"),
        (("decode", "{lm}", "{new}.wav"), "language model"),
        (("decode", "{other}", "{new}.wav"), "made with the model 'encodec_24khz'"),
        (("decode", "{other}", "{new}.txt"), "does not name an audio format"),
        (("roundtrip", "{clip}", "{new}.mp3", "-b", "2"), "MP3 cannot be written at 800 Hz"),
        (("roundtrip", "{clip}", "{new}.txt", "-b", "2"), "does not name an audio format"),
        (("info", "{none}"), "does not exist"),
        (("info", "{garbage}"), "not audio of a known format"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    clip: Path, model: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    from encodec_rt.bitstream.ecdc import EcdcHeader

    places = {
        "none": tmp_path / "none",
        "new": tmp_path / "new",
        "folder": tmp_path,
        "clip": clip,
        "garbage": tmp_path / "garbage",
        "lm": tmp_path / "lm.ecdc",
        "other": tmp_path / "other.ecdc",
    }
    name = model_name(EncodecModel.from_pretrained(model))
    places["garbage"].write_bytes(b"garbage" * 99)
    places["lm"].write_bytes(EcdcHeader(name, 8, 2, language_model=True).to_bytes())
    places["other"].write_bytes(EcdcHeader("encodec_24khz", 8, 2).to_bytes() + bytes(3))
    before = set(tmp_path.iterdir())
    filled = [argument.format(**places) for argument in arguments]
    if filled[0] != "info":
        filled += ["--model", str(model)]
    assert message in sentence(run(*filled))
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["encode", "decode", "roundtrip"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_command_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
    clip: Path,
    model: Path,
    tmp_path: Path,
    command: str,
    kind: OSError | type[KeyboardInterrupt],
) -> None:
    source = encoded(clip, model, tmp_path) if command == "decode" else clip
    target = tmp_path / ("new.ecdc" if command == "encode" else "new.wav")
    before = set(tmp_path.iterdir())

    def stop(*_: Audio | AudioWriter | int) -> None:
        raise kind

    if command == "encode":
        monkeypatch.setattr(audio.reader, "mix", stop)
    else:
        monkeypatch.setattr(audio.AudioWriter, "write", stop)
    arguments = () if command == "decode" else ("-b", 2)
    result = run(command, source, target, "--model", model, *arguments)
    if kind is KeyboardInterrupt:
        assert result.exit_code == 130
    else:
        assert "No space left on device" in sentence(result)
    assert set(tmp_path.iterdir()) == before


def test_clipping_is_said(
    clip: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encodec_rt.streaming.streams import StreamDecoder

    push = StreamDecoder.push
    monkeypatch.setattr(StreamDecoder, "push", lambda *given: 1000 * push(*given))
    target = tmp_path / "x.wav"
    result = run("roundtrip", clip, target, "-b", 2, "--model", model)
    assert re.search(r"warning: \d+ samples .* clipped", result.stderr)


def facts(result: Result, exit_code: int = 0) -> dict[str, str]:
    assert result.exit_code == exit_code, result.output
    return dict(re.split("  +", line, maxsplit=1) for line in result.stdout.splitlines())


def test_info_tells_of_audio_streams_and_checkpoints(
    clip: Path, model: Path, tmp_path: Path
) -> None:
    said = facts(run("info", clip))
    assert (said["kind"], said["rate"], said["channels"]) == ("audio", f"{RATE} Hz", "1")
    file = encoded(clip, model, tmp_path)
    said = facts(run("info", file, "--model", model))
    assert said["state"] == "complete"
    assert said["length"] == f"{SAMPLES / RATE:.3f} s at {RATE} Hz"
    assert "name it with --model" in facts(run("info", file, "--model", tmp_path))["length"]
    file.write_bytes(file.read_bytes()[:-1])
    assert "ends before" in facts(run("info", file, "--model", model), 2)["state"]
    said = facts(run("info", model / "model.safetensors"))
    assert said["name"] == model_name(EncodecModel.from_pretrained(model))
    assert len(said["sha256 of file"]) == 64
    assert said["bandwidths"] == "1 kbps (2), 2 kbps (5)"
    assert facts(run("info", model))["sha256 of weights"] == said["sha256 of weights"]


def test_info_of_a_hostile_length_ends_at_once(tmp_path: Path) -> None:
    from encodec_rt.bitstream.ecdc import EcdcHeader

    file = tmp_path / "x.ecdc"
    for name in PRESETS:
        file.write_bytes(EcdcHeader(name, 2**53, 2).to_bytes() + b"\x3f\x80\0\0" + bytes(99))
        assert "ends before" in facts(run("info", file), 2)["state"]


def test_usage_errors_exit_with_2_and_help_with_0() -> None:
    assert run("encode").exit_code == 2
    assert run("nonsense").exit_code == 2
    assert run("--help").exit_code == 0


def spawn(
    *arguments: object, stdin: int | None = None, stdout: int | None = None
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "encodec_rt", *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)


def endless_wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(0), RATE, format="WAV")
    return file.getvalue()[:-4] + b"\xff" * 4


def test_control_c_ends_an_encode_with_130_and_no_file(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.ecdc"
    process = spawn("encode", "-", target, "-b", 2, "--model", model, stdin=subprocess.PIPE)
    pipe = present(process.stdin)
    pipe.write(endless_wav())
    # More than a pipe holds: when it has gone in, the encoder is at work.
    pipe.write(bytes(100_000))
    pipe.flush()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_ends_the_decoder_quietly(
    clip: Path, model: Path, tmp_path: Path
) -> None:
    file = encoded(clip, model, tmp_path)
    process = spawn("decode", file, "-", "--model", model, stdout=subprocess.PIPE)
    present(process.stdout).close()
    _, said = process.communicate()
    assert process.returncode == 1
    assert said == b""


@pytest.mark.parametrize("command", ["encode", "roundtrip"])
def test_damage_is_warned_of_and_strict_refuses_it(
    model: Path, tmp_path: Path, command: str
) -> None:
    source = tmp_path / "x.wav"
    soundfile.write(source, np.zeros(SAMPLES, np.float32), RATE)
    source.write_bytes(source.read_bytes()[:-400])
    target = tmp_path / ("y.ecdc" if command == "encode" else "y.wav")
    arguments = (command, source, target, "-b", 2, "--model", model)
    assert "x.wav ends after 2.25 s" in sentence(run(*arguments, "--strict"))
    assert not target.exists()
    result = run(*arguments)
    assert result.exit_code == 0
    assert "warning: " in result.stderr
    assert "x.wav ends after 2.25 s; its header announces 2.50 s" in result.stderr


def test_raw_samples_go_in_and_out(clip: Path, model: Path, tmp_path: Path) -> None:
    wanted = encoded(clip, model, tmp_path).read_bytes()
    samples = soundfile.read(clip, dtype="int16")[0].astype("<i2").tobytes()
    raw = ("--raw", "s16le", "--rate", RATE, "--channels", 1)
    given = run(
        "encode", "-", "-", "-b", 2, "--model", model, "--format", "ecdc", *raw, stdin=samples
    )
    assert given.stdout_bytes == wanted
    heard = run("decode", "-", "-", "--model", model, "--raw", "s16le", stdin=wanted)
    target = tmp_path / "x.wav"
    assert run("decode", tmp_path / "clip.ecdc", target, "--model", model).exit_code == 0
    pcm = soundfile.read(target, dtype="int16")[0]
    assert np.array_equal(np.frombuffer(heard.stdout_bytes, "<i2"), pcm)
    assert "s16le" in sentence(run("encode", clip, tmp_path / "z.ecdc", "--raw", "pcm"))


def shell(line: str, folder: Path, **places: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which {rt} is the command, in ``folder``."""
    script = line.format(rt=f"{sys.executable} -m encodec_rt", **places)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{rt} encode - x.ecdc <&-", "standard input is closed"),
        ("{rt} decode {file} - --model {model} >&-", "standard output is closed"),
        ("{rt} decode {file} - --model {model} >/dev/full", "standard output: No space left"),
        (
            "{rt} encode {clip} - --format ecdc -b 2 --model {model} >/dev/full",
            "standard output: No space left",
        ),
        ("{rt} decode {file} /dev/full --model {model}", "/dev/full: No space left on device"),
        ("ulimit -f 1; {rt} decode {file} x.wav --model {model}", "x.wav: File too large"),
    ],
)
def test_what_the_shell_may_do_to_a_command_is_one_sentence(
    clip: Path, model: Path, tmp_path: Path, line: str, said: str
) -> None:
    file = encoded(clip, model, tmp_path)
    before = set(tmp_path.iterdir())
    result = shell(line, tmp_path, file=file, model=model, clip=clip)
    (printed,) = result.stderr.splitlines()
    assert printed.startswith(f"encodec-rt: {said}")
    assert result.returncode == 2
    assert set(tmp_path.iterdir()) == before


def test_substituted_files_named_pipes_and_devices_are_inputs_and_outputs(
    clip: Path, model: Path, tmp_path: Path
) -> None:
    wanted = encoded(clip, model, tmp_path).read_bytes()
    lines = (
        "{rt} encode <(cat {clip}) a.ecdc -b 2 --model {model}",
        "{rt} encode /dev/stdin b.ecdc -b 2 --model {model} <{clip}",
        "mkfifo f; cat {clip} >f & {rt} encode f c.ecdc -b 2 --model {model}",
        "{rt} encode {clip} /dev/stdout --format ecdc -b 2 --model {model} | cat >d.ecdc",
    )
    result = shell("set -e; " + "; ".join(lines), tmp_path, clip=clip, model=model)
    assert result.returncode == 0, result.stderr
    for name in "abcd":
        assert (tmp_path / f"{name}.ecdc").read_bytes() == wanted
    assert run("encode", clip, "/dev/null", "-b", 2, "--model", model).exit_code == 0


def test_names_of_255_bytes_and_names_that_are_not_utf8_work(
    clip: Path, model: Path, tmp_path: Path
) -> None:
    lines = (
        "cp {clip} $'\\xff\\xe9.wav'",
        "{rt} encode $'\\xff\\xe9.wav' $'\\xfe.ecdc' -b 2 --model {model}",
        "long=$(printf 'a%.0s' {{1..251}}).wav",
        "{rt} decode $'\\xfe.ecdc' $long --model {model}",
        "{rt} info $'\\xff\\xe9.wav'",
    )
    result = shell("set -e; " + "; ".join(lines), tmp_path, clip=clip, model=model)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / ("a" * 251 + ".wav")).stat().st_size == 44 + 2 * SAMPLES
    missing = shell("{rt} info $'\\xff.wav'", tmp_path)
    assert (missing.returncode, "does not exist" in missing.stderr) == (2, True)


def test_output_keeps_the_permissions_of_the_file_that_it_replaces(
    clip: Path, model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "x.ecdc"
    target.touch(0o600)
    assert run("encode", clip, target, "-b", 2, "--model", model, "--force").exit_code == 0
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "enough memory",
        ),
        (ImportError("libtorch_cpu.so: failed to map segment"), "libtorch_cpu.so"),
    ],
    ids=["python", "torch", "library"],
)
def test_a_machine_that_is_too_small_is_told_so_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["encodec_rt.cli.info"], "_facts", failing)
    result = run("info", "default")
    assert result.exit_code == 2
    assert told in sentence(result)


def test_codes_on_standard_input_are_described_as_codes(clip: Path, model: Path) -> None:
    for kind in ("encodec", "ecdc"):
        coded = run("encode", clip, "-", "--format", kind, "-b", 2, "--model", model)
        told = run("info", "-", "--model", model, stdin=coded.stdout_bytes)
        assert told.exit_code == 0, told.output
        assert f".{kind}, version" in told.stdout
