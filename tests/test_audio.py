import io
import sys
import types
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr

from encodec_rt.atomic import replacing
from encodec_rt.audio import AudioReader, AudioWriter, mix
from encodec_rt.errors import InputError

SPEECH = Path(__file__).resolve().parents[1] / "encodec_rt" / "assets" / "speech_en.flac"


class Pipe(io.RawIOBase):
    """Standard input that gives a few bytes at a time and cannot seek."""

    def __init__(self, data: bytes, piece: int = 997) -> None:
        self._file = io.BytesIO(data)
        self._piece = piece

    def readable(self):
        return True

    def seekable(self):
        return False

    def read(self, size=-1):
        return self._file.read(min(size if size > 0 else self._piece, self._piece))


def tone(samples, channels=1, rate=24_000, peak=0.5):
    time = np.arange(samples) / rate
    rows = [np.sin(2 * np.pi * (300 + 200 * row) * time) for row in range(channels)]
    return (peak * np.stack(rows)).astype(np.float32)


def store(path, audio, rate, **options):
    soundfile.write(path, audio.T, rate, **options)
    return path


def read_all(source, rate, channels):
    with AudioReader(source) as reader:
        blocks = list(reader.blocks(rate, channels))
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((channels, 0), np.float32)


def from_stdin(monkeypatch, data, **options):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=Pipe(data, **options)))


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff", "au", "caf", "w64"])
def test_what_is_written_is_read_back_to_half_a_step(tmp_path, suffix):
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


def test_resampling_in_blocks_equals_resampling_at_once(tmp_path):
    audio = tone(100_003, rate=44_100)
    path = store(tmp_path / "x.wav", audio, 44_100, subtype="FLOAT")
    streamed = read_all(path, 24_000, 1)
    whole = soxr.resample(audio[0], 44_100, 24_000)
    assert abs(streamed.shape[1] - 100_003 * 24_000 / 44_100) <= 1
    assert np.abs(streamed[0] - whole).max() < 1e-6


def test_channels_are_averaged_copied_or_folded():
    left, right, third, fourth = tone(8, 4)
    assert np.allclose(mix(np.stack([left, right]), 1), [(left + right) / 2])
    assert np.array_equal(mix(left[None], 2), [left, left])
    folded = mix(np.stack([left, right, third, fourth]), 2)
    assert np.allclose(folded[1], right / 2 + (third + fourth) / 4)
    assert mix(np.ones((6, 4), np.float32), 2).max() == 1.0


@pytest.mark.parametrize(("given", "wanted"), [(1, 2), (2, 1), (6, 2), (6, 1)])
def test_any_number_of_channels_becomes_the_models(tmp_path, given, wanted):
    path = store(tmp_path / "x.wav", tone(3_000, given), 24_000)
    assert read_all(path, 24_000, wanted).shape == (wanted, 3_000)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "AU"])
def test_a_pipe_is_read_like_the_file(monkeypatch, tmp_path, form):
    path = tmp_path / "x"
    soundfile.write(path, tone(20_000)[0], 24_000, format=form)
    from_stdin(monkeypatch, path.read_bytes())
    piped = read_all("-", 24_000, 1)
    filed = read_all(path, 24_000, 1)
    assert abs(piped.shape[1] - filed.shape[1]) <= 1024
    shared = min(piped.shape[1], filed.shape[1])
    assert np.abs(piped[:, :shared] - filed[:, :shared]).max() < 1e-4


def test_a_format_that_libsndfile_lacks_is_read(tmp_path):
    path = tmp_path / "x.mka"
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=24_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(24_000), format="fltp", layout="mono")
        frame.sample_rate = 24_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with AudioReader(path) as reader:
        assert (reader.rate_hz, reader.channels) == (24_000, 1)
        assert "AAC" in reader.description
    audio = read_all(path, 24_000, 1)
    assert abs(audio.shape[1] - 24_000) <= 2048
    assert np.sqrt(np.mean(audio**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_memory_does_not_hold_the_file(tmp_path):
    path = store(tmp_path / "x.wav", tone(200_000, 2), 48_000)
    with AudioReader(path) as reader:
        assert reader.duration_s == pytest.approx(200_000 / 48_000)
        assert max(block.shape[1] for block in reader.blocks(24_000, 1)) < 40_000


def test_clipping_is_counted_and_limited(tmp_path):
    path = tmp_path / "x.wav"
    with AudioWriter(path, rate_hz=24_000, channels=1) as writer:
        writer.write(np.array([[0.0, 1.0, 1.5, -3.0, 0.25]], np.float32))
    assert writer.clipped == 2
    assert soundfile.read(path, dtype="int16")[0].tolist() == [0, 32767, 32767, -32768, 8192]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.wav", None, "does not exist"),
        (".", None, "is no file"),
        ("x.wav", b"", "no audio of a known format"),
        ("x.wav", b"hello, world" * 99, "no audio of a known format"),
        ("x.raw", bytes(999), "no audio"),
    ],
)
def test_what_is_no_audio_is_refused_in_words(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_all(path, 24_000, 1)


def test_an_absurd_rate_is_refused(tmp_path):
    path = store(tmp_path / "x.wav", tone(10), 1)
    with pytest.raises(InputError, match="sampling rate of 1 Hz"):
        read_all(path, 24_000, 1)


@pytest.mark.parametrize("data", [b"", b"\0" * 5000, b"garbage" * 1000])
def test_a_pipe_of_no_audio_is_refused_in_words(monkeypatch, data):
    from_stdin(monkeypatch, data)
    with pytest.raises(InputError, match="standard input"):
        read_all("-", 24_000, 1)


def test_damaged_audio_gives_input_error_or_what_is_left(tmp_path):
    data = SPEECH.read_bytes()
    rng = np.random.default_rng(3)
    path = tmp_path / "x.flac"
    for cut in rng.integers(1, len(data), 20):
        path.write_bytes(data[:cut])
        try:
            audio = read_all(path, 24_000, 1)
        except InputError:
            continue
        assert np.isfinite(audio).all()


def test_an_unknown_suffix_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"one of \.wav, \.flac"):
        AudioWriter(tmp_path / "x.mp3", rate_hz=24_000, channels=1)
    assert list(tmp_path.iterdir()) == []


def test_more_than_four_gigabytes_of_wav_get_64_bit_sizes(tmp_path):
    path = tmp_path / "x.wav"
    with AudioWriter(path, rate_hz=24_000, channels=1, samples=3 * 10**9) as writer:
        writer.write(tone(10))
    assert soundfile.info(path).format == "RF64"


def test_an_existing_file_stays_without_force(tmp_path):
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
def test_an_interrupted_write_leaves_nothing(tmp_path, kind):
    path = tmp_path / "x.wav"
    writer = AudioWriter(path, rate_hz=24_000, channels=1)

    def interrupted():
        with writer:
            writer.write(tone(100))
            raise kind

    with pytest.raises(kind):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_never_replaced(tmp_path):
    with pytest.raises(InputError, match="no regular file"), replacing("/dev/null", force=True):
        pass
    with pytest.raises(InputError, match="no regular file"), replacing(tmp_path, force=True):
        pass
    with (
        pytest.raises(InputError, match="folder"),
        replacing(tmp_path / "none" / "x", force=True),
    ):
        pass


def test_a_link_keeps_pointing_to_the_new_content(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    with replacing(link, force=True) as part:
        part.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_an_empty_file_is_no_audio_samples(tmp_path):
    path = store(tmp_path / "x.wav", np.zeros((1, 0), np.float32), 44_100)
    assert read_all(path, 24_000, 1).shape == (1, 0)
