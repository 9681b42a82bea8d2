from __future__ import annotations

import io
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from encodec_rt.audio import AudioReader, AudioWriter
from encodec_rt.bitstream.coding import CodeTables
from encodec_rt.bitstream.container_reader import PacketReader
from encodec_rt.bitstream.ogg import Page, PageReader
from encodec_rt.container_audio import ContainerAudio
from encodec_rt.lm.integer import IntegerLm
from encodec_rt.lm.tensors import LmConfig
from encodec_rt.streaming.codec import Codec
from tests.bitstream.test_container import assert_accepted
from tests.cli.test_cli import RATE, clip, facts, run, sentence
from tests.support.lms import SMALL, random_lm
from tests.support.models import random_model, speech, tiny_config
from tests.support.narrow import all_of, present

__all__ = ["clip"]


USE = ("--model", "{model}")
ENCODE = ("encode", "{clip}", "{new}.encodec", "-b", "2")
DECODE = ("decode", "{stream}", "{new}.wav")


@pytest.fixture
def stream(clip: Path, model: Path, tmp_path: Path) -> Path:
    target = tmp_path / "a.encodec"
    result = run("encode", clip, target, "-b", 2, "--model", model)
    assert result.exit_code == 0, result.output
    return target


def heard(file: Path, target: Path, *options: object) -> NDArray[np.int16]:
    result = run("decode", file, target, *options)
    assert result.exit_code == 0, result.output
    pcm: NDArray[np.int16] = soundfile.read(target, dtype="int16")[0]
    return pcm


def test_both_formats_give_the_same_sound(
    stream: Path, clip: Path, model: Path, tmp_path: Path
) -> None:
    assert run("encode", clip, tmp_path / "a.ecdc", "-b", 2, "--model", model).exit_code == 0
    ours = heard(stream, tmp_path / "1.wav", "--model", model)
    theirs = heard(tmp_path / "a.ecdc", tmp_path / "2.wav", "--model", model)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (0.5, 1.25), (2, None), (1.5, 99)])
def test_a_part_is_the_part_of_the_whole_but_for_the_pre_roll(
    begin: float, end: float | None, stream: Path, model: Path, tmp_path: Path
) -> None:
    whole = heard(stream, tmp_path / "1.wav", "--model", model)
    times = ["--from", begin] + (["--to", end] if end else [])
    part = heard(stream, tmp_path / "2.wav", "--model", model, *times)
    wanted = whole[round(begin * RATE) : None if end is None else round(end * RATE)]
    assert len(part) == len(wanted)
    error = part.astype(float) - wanted
    assert np.abs(error).mean() < 0.05 * np.abs(wanted.astype(float)).mean() + 1


def test_a_cut_sounds_as_a_part_does(stream: Path, model: Path, tmp_path: Path) -> None:
    part = heard(stream, tmp_path / "1.wav", "--model", model, "--from", 1.3, "--to", 2.2)
    cut = run("cut", stream, tmp_path / "b.encodec", "--from", 1.3, "--to", 2.2)
    assert cut.exit_code == 0, cut.output
    assert np.array_equal(heard(tmp_path / "b.encodec", tmp_path / "2.wav", "--model", model), part)


def test_what_was_joined_sounds_one_after_the_other(
    stream: Path, model: Path, tmp_path: Path
) -> None:
    once = heard(stream, tmp_path / "1.wav", "--model", model)
    assert run("cat", stream, stream, "-o", tmp_path / "b.encodec").exit_code == 0
    twice = heard(tmp_path / "b.encodec", tmp_path / "2.wav", "--model", model)
    assert np.array_equal(twice, np.concatenate([once, once]))
    second = heard(
        tmp_path / "b.encodec", tmp_path / "3.wav", "--model", model, "--from", len(once) / RATE
    )
    assert np.array_equal(second, once)


def test_a_scaled_stream_has_the_sound_of_its_bandwidth(
    stream: Path, clip: Path, model: Path, tmp_path: Path
) -> None:
    assert run("scale", stream, tmp_path / "b.encodec", "-b", 1).exit_code == 0
    low = tmp_path / "c.encodec"
    assert run("encode", clip, low, "-b", 1, "--model", model).exit_code == 0
    assert (tmp_path / "b.encodec").stat().st_size == low.stat().st_size
    ours = heard(tmp_path / "b.encodec", tmp_path / "1.wav", "--model", model)
    assert np.array_equal(ours, heard(low, tmp_path / "2.wav", "--model", model))


def test_pipes_carry_what_files_do(stream: Path, clip: Path, model: Path, tmp_path: Path) -> None:
    options = ("--format", "encodec", "-b", 2, "--model", model)
    piped = run("encode", "-", "-", *options, stdin=clip.read_bytes())
    assert piped.stdout_bytes == stream.read_bytes()
    scaled = run("scale", "-", "-", "-b", 1, stdin=piped.stdout_bytes)
    assert scaled.exit_code == 0, scaled.output
    other = run("scale", "-", "-", "-b", 1, stdin=b"ECDC" + bytes(100))
    assert "but the beginning of an .ecdc file" in other.output
    wav = run("decode", "-", "-", "--model", model, stdin=scaled.stdout_bytes)
    assert wav.exit_code == 0, wav.output
    assert len(soundfile.read(io.BytesIO(wav.stdout_bytes))[0]) == 2003


def test_info_says_everything_without_the_model(stream: Path) -> None:
    said = facts(run("info", stream))
    assert said["kind"] == ".encodec, version 1"
    assert said["coding"] == "packed"
    assert said["audio"] == "800 Hz, 1 channel(s)"
    assert said["codebooks"] == "5 of 16"
    assert said["length"] == "2.504 s, 2003 samples"
    assert said["state"] == "complete"
    assert said["layers"].startswith("2 at 0.80 kbps")
    assert len(said["sha256 of encoder and codebooks"]) == 64


@pytest.mark.skipif(shutil.which("oggz") is None, reason="oggz-tools is not installed")
def test_independent_tools_accept_the_file(stream: Path) -> None:
    assert_accepted(stream)


def pages(path: Path) -> list[Page]:
    return all_of(Page, PageReader(io.BytesIO(path.read_bytes())))


def test_damage_is_refused_and_salvaged(stream: Path, model: Path, tmp_path: Path) -> None:
    data = bytearray(stream.read_bytes())
    # The first layer of the second of three packets.
    place = pages(stream)[-1].offset + 27 + len(pages(stream)[-1].segments)
    place += len(pages(stream)[-1].pieces()[0][0]) + 20
    data[place] ^= 1
    (tmp_path / "b.encodec").write_bytes(data)
    refused = run("decode", tmp_path / "b.encodec", tmp_path / "x.wav", "--model", model)
    assert "wrong checksum" in sentence(refused)
    assert not (tmp_path / "x.wav").exists()
    result = run(
        "decode", tmp_path / "b.encodec", tmp_path / "x.wav", "--model", model, "--salvage"
    )
    assert result.exit_code == 0, result.output
    assert "1.00 s were lost" in result.stderr
    assert soundfile.info(tmp_path / "x.wav").frames == 2003
    said = facts(run("info", tmp_path / "b.encodec"), exit_code=2)
    assert said["state"].startswith("damaged, 1.00 s lost")


def test_a_file_cut_off_has_its_whole_packets_or_nothing_to_salvage(
    stream: Path, model: Path, tmp_path: Path
) -> None:
    data, last = stream.read_bytes(), pages(stream)[-1]
    begin = last.offset + 27 + len(last.segments)
    second = begin + sum(len(piece) for piece, _ in last.pieces()[:2])
    for kept, samples in ((second, 1600), (begin, None)):
        (tmp_path / "b.encodec").write_bytes(data[:kept])
        target = tmp_path / f"{kept}.wav"
        given = "decode", tmp_path / "b.encodec", target, "--model", model
        assert "--salvage decodes what is whole" in sentence(run(*given))
        result = run(*given, "--salvage")
        if samples is None:
            assert "no part of the stream is intact" in sentence(result)
            assert not target.exists()
        else:
            assert result.exit_code == 0, result.output
            assert "the file ends within a page" in result.stderr
            assert soundfile.info(target).frames == samples


def test_info_finds_the_stream_behind_a_foreign_page(stream: Path, tmp_path: Path) -> None:
    first = pages(stream)[0]
    foreign = replace(first, serial=first.serial ^ 1, body=b"theora" + bytes(len(first.body) - 6))
    (tmp_path / "b.encodec").write_bytes(foreign.to_bytes() + stream.read_bytes())
    said = facts(run("info", tmp_path / "b.encodec"))
    assert said["kind"] == ".encodec, version 1"
    assert said["other streams"] == "1 pages"


def test_a_stream_without_an_end_is_decoded_with_a_warning(
    stream: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "b.encodec").write_bytes(b"".join(page.to_bytes() for page in pages(stream)[:2]))
    result = run("decode", tmp_path / "b.encodec", tmp_path / "x.wav", "--model", model)
    assert result.exit_code == 0, result.output
    assert "no end mark" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("decode", "{other}", "{new}.wav", *USE), "made by m with weights 0001"),
        ((*DECODE, "--from", "9", *USE), "ends after 2.50 s"),
        ((*DECODE, "--from", "2", "--to", "1", *USE), "has to be after"),
        (("scale", "{stream}", "{new}.encodec", "-b", "0.1"), "first layer has 0.8 kbps"),
        (("scale", "{clip}", "{new}.encodec", "-b", "1"), "not an Ogg page"),
        (("scale", "{stream}", "{new}.ecdc", "-b", "1"), "name this output .encodec"),
        (("cut", "{stream}", "{new}.encodec", "--from", "3"), "ends after"),
        (("cat", "{stream}", "{none}", "-o", "{new}.encodec"), "does not exist"),
        (("encode", "{clip}", "-", "-b", "2", *USE), "--format"),
        ((*ENCODE, "--format", "ecdc", *USE), "suffix"),
        ((*ENCODE, "--coding", "tables", *USE), "no code tables"),
        ((*ENCODE, "--coding", "best", *USE), "auto, raw, tables, lm"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_sentence(
    stream: Path, clip: Path, model: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    from tests.support.streams import mono_stream

    places = {
        "stream": stream, "clip": clip, "model": model, "none": tmp_path / "none",
        "new": tmp_path / "new", "other": tmp_path / "other.encodec",
    }  # fmt: skip
    places["other"].write_bytes(mono_stream(3000).data)
    before = set(tmp_path.iterdir())
    assert message in sentence(run(*(argument.format(**places) for argument in arguments)))
    assert set(tmp_path.iterdir()) == before


def test_tables_in_the_models_folder_are_used_both_ways(
    clip: Path, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    codec = Codec.load(folder)
    codes = codec.stream_encoder(2.0).push(speech(20_000).numpy())
    tables = CodeTables.from_codes(codes, 16, bytes.fromhex(codec.codes_sha256))
    tables.save(folder / "code_tables-1.safetensors")
    target = tmp_path / "a.encodec"
    assert run("encode", clip, target, "-b", 2, "--model", folder).exit_code == 0
    said = facts(run("info", target))
    assert said["coding"] == "tables"
    assert said["sha256 of coding"] == tables.sha256.hex()
    coded = heard(target, tmp_path / "1.wav", "--model", folder)
    options = ("-b", 2, "--model", folder, "--coding", "raw")
    assert run("encode", clip, tmp_path / "b.encodec", *options).exit_code == 0
    assert np.array_equal(
        coded, heard(tmp_path / "b.encodec", tmp_path / "2.wav", "--model", folder)
    )
    lost = run("decode", target, tmp_path / "x.wav", "--model", model)
    assert "needs the code tables" in sentence(lost)


@pytest.fixture
def lm(model: Path, tmp_path: Path) -> Path:
    """A folder of the model with a language model of random weights beside it."""
    folder = tmp_path / "with-lm"
    shutil.copytree(model, folder)
    weights = bytes.fromhex(Codec.load(model).codes_sha256)
    found = random_lm(LmConfig((2, 3), 16, (12, 8), (1, 2)))
    found = IntegerLm(found.tensors, found.config, codes_sha256=weights)
    found.save(folder / "code_lm-1.safetensors")
    return folder


def test_a_language_model_changes_the_bytes_and_not_the_sound(
    clip: Path, lm: Path, model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "a.encodec"
    assert run("encode", clip, target, "-b", 2, "--model", lm).exit_code == 0
    said = facts(run("info", target))
    assert said["coding"] == "language model"
    options = ("-b", 2, "--model", lm, "--coding", "raw")
    assert run("encode", clip, tmp_path / "b.encodec", *options).exit_code == 0
    wanted = heard(tmp_path / "b.encodec", tmp_path / "1.wav", "--model", model)
    assert np.array_equal(heard(target, tmp_path / "2.wav", "--model", lm), wanted)
    named = ("--model", model, "--lm", lm / "code_lm-1.safetensors")
    assert np.array_equal(heard(target, tmp_path / "3.wav", *named), wanted)
    missing = run("decode", target, tmp_path / "x.wav", "--model", model)
    assert f"needs the language model {said['sha256 of coding'][:16]}" in sentence(missing)
    random_lm(SMALL, seed=5).save(tmp_path / "other.safetensors")
    other = run(
        "decode",
        target,
        tmp_path / "x.wav",
        "--model",
        model,
        "--lm",
        tmp_path / "other.safetensors",
    )
    assert "needs the language model" in sentence(other)


def test_a_coded_stream_is_scaled_and_cut_without_its_models(
    clip: Path, lm: Path, tmp_path: Path
) -> None:
    target, low = tmp_path / "a.encodec", tmp_path / "low.encodec"
    assert run("encode", clip, target, "-b", 2, "--model", lm).exit_code == 0
    assert run("scale", target, low, "-b", 1).exit_code == 0
    direct = tmp_path / "direct.encodec"
    assert run("encode", clip, direct, "-b", 1, "--model", lm).exit_code == 0
    assert low.stat().st_size == direct.stat().st_size
    sound = heard(low, tmp_path / "1.wav", "--model", lm)
    assert np.array_equal(sound, heard(direct, tmp_path / "2.wav", "--model", lm))
    part = heard(target, tmp_path / "3.wav", "--model", lm, "--from", 1.5, "--to", 2.25)
    assert run("cut", target, tmp_path / "c.encodec", "--from", 1.5, "--to", 2.25).exit_code == 0
    assert np.array_equal(heard(tmp_path / "c.encodec", tmp_path / "4.wav", "--model", lm), part)


def test_segments_are_sought_to_the_bit(tmp_path: Path) -> None:
    config = tiny_config(
        audio_channels=2, normalize=True, chunk_length_s=0.5, overlap=0.01,
        norm_type="time_group_norm", use_causal_conv=False,
    )  # fmt: skip
    random_model(config).save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "a.wav", speech(2, 1993).numpy().T, RATE)
    bandwidth = config.target_bandwidths[1]
    target = tmp_path / "a.encodec"
    options = ("-b", bandwidth, "--model", tmp_path / "model")
    result = run("encode", tmp_path / "a.wav", target, *options)
    assert result.exit_code == 0, result.output
    assert run("encode", tmp_path / "a.wav", tmp_path / "a.ecdc", *options).exit_code == 0
    whole = heard(target, tmp_path / "1.wav", "--model", tmp_path / "model")
    theirs = heard(tmp_path / "a.ecdc", tmp_path / "2.wav", "--model", tmp_path / "model")
    assert np.array_equal(whole, theirs)
    part = heard(
        target, tmp_path / "3.wav", "--model", tmp_path / "model", "--from", 1.1, "--to", 1.9
    )
    assert np.array_equal(part, whole[880:1520])


def test_a_long_gap_is_silence_of_bounded_length(stream: Path, model: Path) -> None:
    # A position that leaps by a month where a page was lost.
    given = pages(stream)
    moved = b"".join(
        page.to_bytes()
        for page in [
            *given[:2],
            type(given[2])(given[2].serial, 9, 2**60, given[2].segments, given[2].body, last=True),
        ]
    )
    sound = ContainerAudio(Codec.load(model), io.BytesIO(moved), salvage=True)
    samples = sum(pcm.shape[1] for pcm in sound)
    assert samples <= 62 * RATE + 2003
    assert any("page 9 follows" in problem for problem in sound.reader.problems)


def test_a_killed_encoder_leaves_pages_that_can_be_read(
    clip: Path, model: Path, tmp_path: Path
) -> None:
    import sys

    target = tmp_path / "pages"
    command = [sys.executable, "-m", "encodec_rt", "encode", "-", "-", "--format", "encodec"]
    with target.open("wb") as file:
        arguments = [*command, "-b", "2", "--model", str(model)]
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=file)
        pipe = present(process.stdin)
        pipe.write(endless(clip))
        pipe.flush()
        while target.stat().st_size < 2000:
            assert process.poll() is None
            pipe.write(bytes(16_000))
            pipe.flush()
        process.kill()
        process.wait()
        pipe.close()
    reader = PacketReader(io.BytesIO(target.read_bytes()))
    assert len(list(reader)) >= 8


def endless(clip: Path) -> bytes:
    """A WAV header that announces no length, and the clip."""
    data = clip.read_bytes()
    return data[:40] + b"\xff" * 4 + data[44:]


def test_tags_go_with_the_audio_into_a_container_and_out_of_it(
    clip: Path, model: Path, tmp_path: Path
) -> None:
    tagged, coded, back = tmp_path / "in.flac", tmp_path / "x.encodec", tmp_path / "out.flac"
    samples, rate_hz = soundfile.read(clip, dtype="float32")
    with AudioWriter(
        tagged, rate_hz=rate_hz, channels=1, tags={"title": "A tale", "artist": "Nobody"}
    ) as writer:
        writer.write(samples[None])
    assert run("encode", tagged, coded, "-b", 2, "--model", model).exit_code == 0
    assert re.search("TITLE +A tale", run("info", coded).stdout)
    assert run("decode", coded, back, "--model", model).exit_code == 0
    with AudioReader(back) as reader:
        kept = {name.lower(): text for name, text in reader.tags.items()}
    assert (kept["title"], kept["artist"]) == ("A tale", "Nobody")


def test_a_pipe_is_told_the_length_of_what_a_container_holds(
    stream: Path, model: Path, tmp_path: Path
) -> None:
    for part in ((), ("--from", 0.5), ("--from", 0.2, "--to", 0.7)):
        command = [sys.executable, "-m", "encodec_rt", "decode", stream, "-", "--model", model]
        piped = subprocess.run([*map(str, command), *map(str, part)], capture_output=True).stdout
        assert struct.unpack_from("<I", piped, 40)[0] == len(piped) - 44
        # In a process of its own as well: another number of threads rounds some samples otherwise.
        target = tmp_path / f"{len(part)}.wav"
        command[5] = target
        subprocess.run([*map(str, command), *map(str, part)], capture_output=True, check=True)
        assert piped == target.read_bytes()


def test_what_is_wrong_names_the_file_that_it_is_in(
    stream: Path, model: Path, tmp_path: Path
) -> None:
    bad, new = tmp_path / "bad.encodec", tmp_path / "new.encodec"
    bad.write_bytes(stream.read_bytes()[:-20])
    ways: list[tuple[object, ...]] = [
        ("decode", bad, tmp_path / "new.wav", "--model", model),
        ("scale", bad, new, "-b", 1),
        ("cut", bad, new, "--to", 99),
        ("cat", stream, bad, stream, "-o", new),
    ]
    for way in ways:
        result = run(*way)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"encodec-rt: {bad}: "), way
    assert run("cat", stream, stream, "-o", new).exit_code == 0


def test_no_tag_and_no_name_of_a_file_steers_the_terminal(
    clip: Path, model: Path, tmp_path: Path
) -> None:
    samples, rate_hz = soundfile.read(clip)
    tagged, coded = tmp_path / "tagged.flac", tmp_path / "a.encodec"
    with soundfile.SoundFile(tagged, "w", rate_hz, 1) as file:
        file.title = "red \x1b[31m, bell \a\nstate  complete"
        file.write(samples)
    assert run("encode", tagged, coded, "-b", 2, "--model", model).exit_code == 0
    for shown in (run("info", tagged).stdout, run("info", coded).stdout):
        assert "\\x1b[31m" in shown
        assert not set(shown) & {"\x1b", "\a"}
        assert sum(line.startswith("state ") for line in shown.splitlines()) == 1
    missing = run("info", tmp_path / "\x1b[2J\nencodec-rt: all is well")
    assert len(missing.stderr.splitlines()) == 1
    assert "\x1b" not in missing.stderr


def test_more_streams_are_joined_than_files_can_be_open(stream: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 16
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
    try:
        result = run("cat", *[stream] * 40, "-o", tmp_path / "all.encodec")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert result.exit_code == 0, result.output
    assert facts(run("info", tmp_path / "all.encodec"))["links"].startswith("40;")
