from __future__ import annotations

import resource
import struct
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from encodec_rt.audio import AudioRecording
from encodec_rt.bitstream.coding import RawCoder
from encodec_rt.bitstream.container_reader import CodeBlock, PacketReader, read_codes
from encodec_rt.bitstream.ecdc import EcdcHeader, EcdcReader, read_header
from encodec_rt.container_audio import header_for
from encodec_rt.errors import InputError
from encodec_rt.live.recording import ContainerRecording, EcdcRecording
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Codes
from tests.support.models import random_model, tiny_config
from tests.support.upstream import encodec

CONFIG = tiny_config()
HOP = CONFIG.hop_length


def wav_samples(path: Path) -> NDArray[np.int16]:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def ecdc_codes(path: Path) -> tuple[EcdcHeader, Codes]:
    with path.open("rb") as file:
        header = read_header(file)
        blocks = [block.codes for block in EcdcReader(file, header, CONFIG)]
    codes = np.concatenate(blocks) if blocks else np.zeros((0, header.codebooks), np.uint16)
    return header, codes


def random_codes(frames: int, books: int) -> Codes:
    return np.random.default_rng(frames).integers(
        0, CONFIG.codebook_size, (frames, books), np.uint16
    )


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_a_wav_is_whole_after_every_write_and_gets_its_name_at_the_end(tmp_path: Path) -> None:
    recording = AudioRecording(tmp_path / "out.wav", rate_hz=24_000)
    wanted = np.zeros(0)
    for number in range(1, 5):
        recording.write(np.full(100 * number, 0.1 * number, np.float32))
        wanted = np.append(wanted, np.full(100 * number, round(0.1 * number * 32768)))
        part = only_file(tmp_path)
        assert part.name.endswith(".part.wav")
        assert np.array_equal(wav_samples(part), wanted)
    recording.finish()
    assert only_file(tmp_path).name == "out.wav"
    assert np.array_equal(wav_samples(tmp_path / "out.wav"), wanted)


def test_a_wav_limits_what_is_beyond_full_scale(tmp_path: Path) -> None:
    recording = AudioRecording(tmp_path / "out.wav", rate_hz=24_000)
    recording.write(np.array([2.0, -2.0, 1.0, -1.0], np.float32))
    recording.finish()
    assert wav_samples(tmp_path / "out.wav").tolist() == [32767, -32768, 32767, -32768]


def test_a_wav_goes_on_beyond_4_gib_as_rf64(tmp_path: Path) -> None:
    recording = AudioRecording(tmp_path / "out.wav", rate_hz=24_000)
    recording.write(np.zeros(10, np.float32))
    before = only_file(tmp_path).read_bytes()
    recording.samples = 2**31
    recording.write(np.zeros(10, np.float32))
    after = only_file(tmp_path).read_bytes()
    assert (before[:4], before[12:16]) == (b"RIFF", b"JUNK")
    assert (after[:4], after[12:16]) == (b"RF64", b"ds64")
    assert struct.unpack_from("<QQ", after, 20) == (2 * (2**31 + 10) + 72, 2 * (2**31 + 10))
    assert len(after) == len(before) + 20
    recording.finish()


@pytest.mark.parametrize("books", [1, 2, 4])
def test_an_ecdc_is_whole_after_every_write_and_loses_at_most_a_started_byte(
    tmp_path: Path, books: int
) -> None:
    recording = EcdcRecording(tmp_path / "out.ecdc", CONFIG, "tiny", books)
    sent = random_codes(1200, books)
    for end in (1, 2, 3, 10, 99, 1200):
        recording.write(sent[recording.frames : end])
        header, codes = ecdc_codes(only_file(tmp_path))
        assert end - 1 <= len(codes) <= end
        assert np.array_equal(codes, sent[: len(codes)])
        assert header.samples == len(codes) * HOP
    recording.finish()
    header, codes = ecdc_codes(tmp_path / "out.ecdc")
    assert np.array_equal(codes, sent)
    assert (header.model, header.codebooks) == ("tiny", books)


def test_the_original_package_reads_the_header_while_it_grows(tmp_path: Path) -> None:
    recording = EcdcRecording(tmp_path / "out.ecdc", CONFIG, "encodec_24khz", 2)
    recording.write(random_codes(7, 2))
    with only_file(tmp_path).open("rb") as file:
        header = encodec.binary.read_ecdc_header(file)
    assert header == {"m": "encodec_24khz", "al": 7 * HOP, "nc": 2, "lm": False}
    recording.finish()


def test_a_finished_ecdc_has_the_true_length_of_its_audio(tmp_path: Path) -> None:
    recording = EcdcRecording(tmp_path / "out.ecdc", CONFIG, "tiny", 2)
    recording.write(random_codes(5, 2))
    recording.finish(5 * HOP - 3)
    header, codes = ecdc_codes(tmp_path / "out.ecdc")
    assert (header.samples, len(codes)) == (5 * HOP - 3, 5)


def test_a_recording_without_a_sample_makes_no_file(tmp_path: Path) -> None:
    AudioRecording(tmp_path / "out.wav", rate_hz=24_000).finish()
    EcdcRecording(tmp_path / "out.ecdc", CONFIG, "tiny", 2).finish()
    assert not list(tmp_path.iterdir())


def make(kind: str, path: Path, *, force: bool = False) -> EcdcRecording | AudioRecording:
    if kind == "wav":
        return AudioRecording(path, rate_hz=24_000, force=force)
    return EcdcRecording(path, CONFIG, "tiny", 2, force=force)


@pytest.mark.parametrize("kind", ["wav", "ecdc"])
def test_what_exists_is_kept_unless_it_may_be_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"out.{kind}"
    path.write_text("precious")
    with pytest.raises(InputError, match="--force"):
        make(kind, path)
    recording = make(kind, path, force=True)
    if isinstance(recording, AudioRecording):
        recording.write(np.zeros(9, np.float32))
    else:
        recording.write(random_codes(9, 2))
    assert path.read_text() == "precious"
    recording.finish()
    assert len(path.read_bytes()) > 20
    assert only_file(tmp_path) == path


@pytest.mark.parametrize(("kind", "name"), [("ecdc", "out.wav"), ("ecdc", "o")])
def test_another_kind_of_name_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    with pytest.raises(InputError, match=f"must end in .{kind}"):
        make(kind, tmp_path / name)
    assert not list(tmp_path.iterdir())


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Within the block, the disk is full for every file of so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_all(recording: EcdcRecording | ContainerRecording, codes: Codes) -> None:
    for frame in codes:
        recording.write(frame[None])


@pytest.mark.parametrize("size", [0, 100, 1_500, 1_501, 2_047])
@pytest.mark.parametrize("kind", ["encodec", "ecdc"])
def test_a_full_disk_ends_a_recording_with_what_it_took(
    tmp_path: Path, kind: str, size: int
) -> None:
    path, codec = tmp_path / f"out.{kind}", Codec(random_model(CONFIG), backend="cpu")
    recording: EcdcRecording | ContainerRecording
    if kind == "ecdc":
        recording = EcdcRecording(path, CONFIG, "model", CONFIG.num_quantizers)
    else:
        header = header_for(codec, CONFIG.num_quantizers, start="primed")
        recording = ContainerRecording(path, header, RawCoder(CONFIG.codebook_size))
    given = random_codes(4_000, CONFIG.num_quantizers)
    with files_end_at(size):
        with pytest.raises(OSError, match=f"out.{kind}"):
            write_all(recording, given)
        recording.write(given[:1])
        recording.finish()
    assert only_file(tmp_path) == path
    if kind == "ecdc" and size > 100:
        codes = ecdc_codes(path)[1]
    elif size > 100:
        with path.open("rb") as file:
            reader = PacketReader(file)
            blocks = list(
                read_codes(reader, reader.header, RawCoder(CONFIG.codebook_size), salvage=False)
            )
        codes = np.concatenate([block.codes for block in blocks if isinstance(block, CodeBlock)])
    else:
        return
    assert len(codes) > 100
    assert np.array_equal(codes, given[: len(codes)])
