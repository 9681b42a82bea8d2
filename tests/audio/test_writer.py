from __future__ import annotations

import io
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

from encodec_rt.audio import RAW_OUTPUT_FORMATS, AudioReader, AudioWriter, RawFormat, wav
from encodec_rt.errors import InputError
from encodec_rt.types import Audio
from tests.support.audio_files import read_all, tone

ROOT = Path(__file__).parents[2]
SPEECH = ROOT / "encodec_rt" / "assets" / "speech_it.flac"
LOSSY = ("ogg", "opus", "mp3")


class Stdout:
    """Standard output that is a pipe."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()

    def isatty(self) -> bool:
        return False

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff", "au", "caf", "w64"])
def test_what_is_written_is_read_back_to_half_a_step(tmp_path: Path, suffix: str) -> None:
    audio = tone(50_000, 2)
    path = tmp_path / f"x.{suffix}"
    with AudioWriter(path, rate_hz=24_000, channels=2) as writer:
        for start in range(0, 50_000, 7_001):
            writer.write(audio[:, start : start + 7_001])
    back = read_all(path, 24_000, 2)
    assert back.shape == audio.shape
    assert np.abs(back - audio).max() <= 0.5 / 32768
    assert writer.clipped == 0
    assert soundfile.info(path).subtype == "PCM_16"


def test_clipping_is_counted_and_limited(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    with AudioWriter(path, rate_hz=24_000, channels=1) as writer:
        writer.write(np.array([[0.0, 1.0, 1.5, -3.0, 0.25]], np.float32))
    assert writer.clipped == 2
    assert soundfile.read(path, dtype="int16")[0].tolist() == [0, 32767, 32767, -32768, 8192]


def test_an_unknown_suffix_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"use \.wav, \.flac"):
        AudioWriter(tmp_path / "x.txt", rate_hz=24_000, channels=1)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays_without_force(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"mine")
    with (
        pytest.raises(InputError, match="--force"),
        AudioWriter(path, rate_hz=24_000, channels=1),
    ):
        pass
    assert path.read_bytes() == b"mine"
    with AudioWriter(path, rate_hz=24_000, channels=1, force=True) as writer:
        writer.write(tone(10))
    assert soundfile.info(path).frames == 10


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    path = tmp_path / "x.wav"
    writer = AudioWriter(path, rate_hz=24_000, channels=1)

    def interrupted() -> None:
        with writer:
            writer.write(tone(100))
            raise kind

    with pytest.raises(kind):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", LOSSY)
@pytest.mark.parametrize("channels", [1, 2])
def test_lossy_formats_are_written_by_suffix_and_keep_the_length(
    tmp_path: Path, suffix: str, channels: int
) -> None:
    audio = tone(60_001, channels)
    path = tmp_path / f"x.{suffix}"
    with AudioWriter(path, rate_hz=24_000, channels=channels) as writer:
        writer.write(audio)
    back = read_all(path, 24_000, channels)
    assert abs(back.shape[1] - audio.shape[1]) <= 2
    power = np.abs(np.fft.rfft(back[0]))
    assert np.argmax(power) * 24_000 / back.shape[1] == pytest.approx(300, rel=0.01)


def test_a_rate_that_a_format_lacks_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.opus.*800 Hz.*\.wav"):
        AudioWriter(tmp_path / "x.opus", rate_hz=800, channels=1)
    assert list(tmp_path.iterdir()) == []


def test_wav_beyond_four_gigabytes_becomes_rf64_whether_its_length_is_known_or_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(wav, "MAX_RIFF_BYTES", 100_000)
    audio = tone(200_000)
    for name, samples in (("known", 200_000), ("unknown", None), ("wrong", 10)):
        path = tmp_path / f"{name}.wav"
        with AudioWriter(path, rate_hz=24_000, channels=1, samples=samples) as writer:
            writer.write(audio)
        assert soundfile.info(path).format == "RF64"
        heard = soundfile.read(path, dtype="float32")[0]
        assert np.abs(heard - audio[0]).max() <= 0.5 / 32768
        assert np.array_equal(read_all(path, 24_000, 1)[0], heard)


def test_a_header_of_more_than_four_gigabytes_announces_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from encodec_rt.audio.source import ByteSource

    size = 6 * 10**9
    head = wav.wav_header(24_000, 1, size)
    assert head.startswith(b"RF64")
    stdin = types.SimpleNamespace(buffer=io.BytesIO(head + bytes(99)))
    monkeypatch.setattr(sys, "stdin", stdin)
    found = wav.read_wav_header(ByteSource("-"))
    assert found is not None
    assert (found.data_bytes, found.seconds) == (size, size / 48_000)
    # One byte less and the sum still fits; the plain header is kept as long as it can.
    assert wav.wav_header(24_000, 1, 2**32 - 38).startswith(b"RIFF")
    assert wav.wav_header(24_000, 1, 2**32 - 37).startswith(b"RF64")


def test_a_pipe_has_the_known_length_in_its_header_and_the_files_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    audio = tone(5_000, 2)
    written: list[bytes] = []
    for samples in (5_000, None):
        stdout = Stdout()
        monkeypatch.setattr(sys, "stdout", stdout)
        with AudioWriter("-", rate_hz=24_000, channels=2, samples=samples) as writer:
            writer.write(audio)
        written.append(stdout.buffer.getvalue())
    monkeypatch.undo()
    path = tmp_path / "x.wav"
    with AudioWriter(path, rate_hz=24_000, channels=2) as writer:
        writer.write(audio)
    assert written[0] == path.read_bytes()
    assert written[1][44:] == written[0][44:]
    assert written[1][40:44] == b"\xff" * 4
    assert soundfile.read(io.BytesIO(written[0]))[0].shape == (5_000, 2)


@pytest.mark.parametrize("name", RAW_OUTPUT_FORMATS)
def test_raw_samples_come_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.bin"
    raw = RawFormat(name, 24_000, 2)
    audio = tone(3_000, 2)
    with AudioWriter(path, rate_hz=24_000, channels=2, raw=raw) as writer:
        writer.write(audio)
    step = 0 if name.startswith("f") else 1 / 127 if "8" in name else 1 / 32767
    assert np.abs(read_all(path, 24_000, 2, raw=raw) - audio).max() <= step


@pytest.mark.parametrize("suffix", ["", ".flac", ".ogg"])
def test_devices_and_named_pipes_are_targets_and_stay_what_they_are(
    tmp_path: Path, suffix: str
) -> None:
    import stat
    import threading

    with AudioWriter("/dev/null", rate_hz=24_000, channels=1) as writer:
        writer.write(tone(3_000))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    fifo, copy = tmp_path / f"fifo{suffix}", tmp_path / "copy"
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: copy.write_bytes(fifo.read_bytes()))
    reader.start()
    with AudioWriter(fifo, rate_hz=24_000, channels=1) as writer:
        writer.write(tone(3_000))
    reader.join()
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert read_all(copy, 24_000, 1).shape == (1, 3_000)


def test_a_full_device_is_an_error_that_names_it() -> None:
    def fill(target: str) -> None:
        with AudioWriter(target, rate_hz=24_000, channels=1) as writer:
            for _ in range(20):
                writer.write(tone(24_000))

    with pytest.raises(OSError, match="No space left on device") as caught:
        fill("/dev/full")
    assert caught.value.filename == "/dev/full"


def test_a_full_disk_is_one_error_and_no_file_in_every_format(tmp_path: Path) -> None:
    """A limit on the size of files stands for a disk that is full."""
    code = """
import resource, sys, numpy as np
from encodec_rt.audio import AudioWriter, OUTPUT_FORMATS, RawFormat
noise = np.random.default_rng(0).uniform(-1, 1, (1, 48_000)).astype("f4")
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
for suffix in [*OUTPUT_FORMATS, ".raw"]:
    raw = RawFormat("s16le", 24_000, 1) if suffix == ".raw" else None
    try:
        with AudioWriter("x" + suffix, rate_hz=24_000, channels=1, raw=raw) as writer:
            for _ in range(5):
                writer.write(noise)
    except OSError as error:
        assert error.filename == "x" + suffix and error.errno == 27, error
        print("refused", suffix)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 11
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_back_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where a disk loses what it had accepted."""
    from encodec_rt.audio import sinks

    sync = sinks.SndfileSink._verify

    def lose(self: sinks.SndfileSink, samples: int) -> None:
        self._file.truncate(200)
        sync(self, samples)

    monkeypatch.setattr(sinks.SndfileSink, "_verify", lose)
    with (
        pytest.raises(OSError, match=r"only \d+ of 24000 samples|could not be written"),
        AudioWriter(tmp_path / "x.flac", rate_hz=24_000, channels=1) as writer,
    ):
        writer.write(tone(24_000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3"])
def test_tags_are_kept(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    tags = {"title": "Bücher", "artist": "Ärzte", "unheard-of": "x"}
    with AudioWriter(path, rate_hz=24_000, channels=1, tags=tags) as writer:
        writer.write(tone(24_000))
    with AudioReader(path) as reader:
        kept = {name.lower(): text for name, text in reader.tags.items()}
    assert (kept["title"], kept["artist"]) == ("Bücher", "Ärzte")
    assert len(read_all(path, 24_000, 1)[0]) == pytest.approx(24_000, abs=2)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
@pytest.mark.parametrize(
    "block",
    [np.zeros((2, 5), np.float32), np.full((1, 5), np.nan, np.float32), np.zeros((1, 5), np.int16)],
    ids=["stereo", "nan", "int16"],
)
def test_audio_that_does_not_fit_is_refused_and_leaves_no_file(
    tmp_path: Path, suffix: str, block: Audio
) -> None:
    writer = AudioWriter(tmp_path / f"x{suffix}", rate_hz=24_000, channels=1)
    with pytest.raises(InputError, match="audio"), writer:
        writer.write(block)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rate_hz", "channels"), [(0, 1), (-5, 1), (2**33, 1), (24_000, 0)])
def test_a_header_that_cannot_be_is_refused(tmp_path: Path, rate_hz: int, channels: int) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        AudioWriter(tmp_path / "x.wav", rate_hz=rate_hz, channels=channels)


def test_writing_an_mp3_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """mpg123, which reads it back, would complain of how LAME ends this clip."""
    clip, rate_hz = soundfile.read(SPEECH, dtype="float32", always_2d=True)
    with AudioWriter(tmp_path / "x.mp3", rate_hz=rate_hz, channels=1) as writer:
        writer.write(clip.T)
    assert capfd.readouterr() == ("", "")
    print("still there", file=sys.stderr)
    assert capfd.readouterr().err == "still there\n"
