from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr

from encodec_rt.audio import AudioReader, RawFormat, mix
from encodec_rt.errors import InputError, StateError
from encodec_rt.types import Audio
from tests.support.audio_files import KINDS, from_stdin, raw_wav, read_all, tone, with_ffmpeg

SPEECH = Path(__file__).resolve().parents[2] / "encodec_rt" / "assets" / "speech_en.flac"


def store(path: Path, audio: Audio, rate: int, **options: str) -> Path:
    soundfile.write(path, audio.T, rate, **options)
    return path


def test_resampling_in_blocks_equals_resampling_at_once(tmp_path: Path) -> None:
    audio = tone(100_003, rate=44_100)
    path = store(tmp_path / "x.wav", audio, 44_100, subtype="FLOAT")
    streamed = read_all(path, 24_000, 1)
    whole = soxr.resample(audio[0], 44_100, 24_000)
    assert abs(streamed.shape[1] - 100_003 * 24_000 / 44_100) <= 1
    assert np.abs(streamed[0] - whole).max() < 1e-6


def test_channels_are_averaged_copied_or_folded() -> None:
    left, right, third, fourth = tone(8, 4)
    assert np.allclose(mix(np.stack([left, right]), 1), [(left + right) / 2])
    assert np.array_equal(mix(left[None], 2), [left, left])
    folded = mix(np.stack([left, right, third, fourth]), 2)
    assert np.allclose(folded[1], right / 2 + (third + fourth) / 4)
    assert mix(np.ones((6, 4), np.float32), 2).max() == 1.0


@pytest.mark.parametrize(("given", "wanted"), [(1, 2), (2, 1), (6, 2), (6, 1)])
def test_any_number_of_channels_becomes_the_models(tmp_path: Path, given: int, wanted: int) -> None:
    path = store(tmp_path / "x.wav", tone(3_000, given), 24_000)
    assert read_all(path, 24_000, wanted).shape == (wanted, 3_000)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "AU"])
def test_a_pipe_is_read_like_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "x"
    soundfile.write(path, tone(20_000)[0], 24_000, format=form)
    from_stdin(monkeypatch, path.read_bytes())
    piped = read_all("-", 24_000, 1)
    filed = read_all(path, 24_000, 1)
    assert abs(piped.shape[1] - filed.shape[1]) <= 1024
    shared = min(piped.shape[1], filed.shape[1])
    assert np.abs(piped[:, :shared] - filed[:, :shared]).max() < 1e-4


def test_a_format_that_libsndfile_lacks_is_read(tmp_path: Path) -> None:
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


def test_memory_does_not_hold_the_file(tmp_path: Path) -> None:
    path = store(tmp_path / "x.wav", tone(200_000, 2), 48_000)
    with AudioReader(path) as reader:
        assert reader.duration_s == pytest.approx(200_000 / 48_000)
        assert max(block.shape[1] for block in reader.blocks(24_000, 1)) < 40_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.wav", None, "does not exist"),
        (".", None, "is a folder"),
        ("x.wav", b"", "is empty"),
        ("x.wav", b"hello, world" * 99, "not audio of a known format"),
        ("x.raw", bytes(999), "not audio"),
    ],
)
def test_what_is_no_audio_is_refused_in_words(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_all(path, 24_000, 1)


def test_an_absurd_rate_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "x.wav", tone(10), 1)
    with pytest.raises(InputError, match="sampling rate of 1 Hz"):
        read_all(path, 24_000, 1)


@pytest.mark.parametrize("data", [b"", b"\0" * 5000, b"garbage" * 1000])
def test_a_pipe_of_no_audio_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    from_stdin(monkeypatch, data)
    with pytest.raises(InputError, match="standard input"):
        read_all("-", 24_000, 1)


def test_damaged_audio_gives_input_error_or_what_is_left(tmp_path: Path) -> None:
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


def test_an_empty_file_is_no_audio_samples(tmp_path: Path) -> None:
    path = store(tmp_path / "x.wav", np.zeros((1, 0), np.float32), 44_100)
    assert read_all(path, 24_000, 1).shape == (1, 0)


@pytest.mark.parametrize("channels", [8, 9, 16, 24])
def test_many_channels_are_all_mixed_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, channels: int
) -> None:
    path = store(tmp_path / "x.wav", tone(3_000, channels), 24_000, subtype="FLOAT")
    wanted = tone(3_000, channels).mean(axis=0)
    assert np.abs(read_all(path, 24_000, 1)[0] - wanted).max() < 1e-6
    from_stdin(monkeypatch, path.read_bytes())
    assert np.abs(read_all("-", 24_000, 1)[0] - wanted).max() < 1e-6


@pytest.mark.parametrize("name", ["flac", "opus"])
def test_eight_channels_of_other_kinds_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x"
    if name == "flac":
        store(path, tone(24_000, 8), 24_000, format="FLAC")
    else:
        path.write_bytes(with_ffmpeg("webm", "libopus", "flt")(tone(48_000, 8, 48_000), 48_000))
    with AudioReader(path) as reader:
        assert reader.channels == 8
        audio = np.concatenate(list(reader.blocks(24_000, 2)), axis=1)
    assert audio.shape == (2, pytest.approx(24_000, abs=1_000))
    assert np.sqrt(np.mean(audio**2)) > 0.05


@pytest.mark.parametrize(("size", "said"), [(0, ["never finished"]), (0xFFFFFFFF, []), (99, None)])
def test_a_wav_header_without_a_length_is_read_to_the_end(
    tmp_path: Path, size: int, said: list[str] | None
) -> None:
    path = tmp_path / "x.wav"
    samples = np.arange(1, 48_001, dtype=np.int16)
    path.write_bytes(raw_wav(samples.tobytes(), data_size=size))
    with AudioReader(path) as reader:
        (audio,) = np.concatenate(list(reader.blocks(24_000, 1)), axis=1)
        warnings = reader.warnings
    if said is None:
        assert len(audio) == 49
        assert "continues beyond" in warnings[0]
    else:
        assert np.array_equal(audio * 32768, samples)
        assert len(warnings) == len(said)
        assert all(word in warning for word, warning in zip(said, warnings, strict=True))


def test_a_cut_wav_says_how_much_is_there_and_strict_refuses_it(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(raw_wav(bytes(48_000), data_size=96_000))
    with AudioReader(path) as reader:
        assert sum(block.shape[1] for block in reader.blocks(24_000, 1)) == 24_000
        assert reader.warnings == [f"{path} ends after 1.00 s; its header announces 2.00 s"]
    with pytest.raises(InputError, match="--strict"):
        read_all(path, 24_000, 1, strict=True)


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"bits": 12}, 32768),
        ({"before": b"JUNK\x1c\0\0\0" + bytes(28)}, 32768),
        ({"before": b"odd \x03\0\0\0abc\0"}, 32768),
        ({"before": b"odd \x03\0\0\0abc"}, 32768),
        ({"before": b"LIST\x04\0\0\0INFO"}, 32768),
    ],
)
def test_odd_wav_headers_are_understood(
    tmp_path: Path, options: dict[str, bytes] | dict[str, int], scale: int
) -> None:
    path = tmp_path / "x.wav"
    samples = np.arange(-999, 1_000, dtype=np.int16)
    path.write_bytes(raw_wav(samples.tobytes(), **options))
    assert np.array_equal(read_all(path, 24_000, 1)[0] * scale, samples)


@pytest.mark.parametrize(("tag", "subtype"), [(6, "ALAW"), (7, "ULAW")])
def test_g711_is_what_libsndfile_makes_of_it(tmp_path: Path, tag: int, subtype: str) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(raw_wav(bytes(range(256)), tag=tag, bits=8))
    assert soundfile.info(path).subtype == subtype
    assert np.array_equal(read_all(path, 24_000, 1)[0], soundfile.read(path, dtype="float32")[0])


def test_a_flac_of_unknown_length_is_read(tmp_path: Path) -> None:
    (kind,) = [kind for kind in KINDS if kind.name == "flac 16"]
    data = bytearray(kind.make(tone(72_000), 24_000))
    # The last 36 bits of 8 of STREAMINFO's fields are the number of samples.
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path = tmp_path / "x.flac"
    path.write_bytes(data)
    assert read_all(path, 24_000, 1).shape == (1, 72_000)


def test_tags_that_are_not_utf8_do_not_refuse_the_audio(tmp_path: Path) -> None:
    path = tmp_path / "x.mka"
    with av.open(path, "w") as container:
        container.metadata["title"] = "AAAAAAAA"
        stream = container.add_stream("pcm_s16le", rate=24_000, layout="mono")
        pcm = np.zeros((1, 24_000), np.int16)
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate = 24_000
        container.mux(stream.encode(frame))
    path.write_bytes(path.read_bytes().replace(b"AAAAAAAA", b"\xdcbung\xe9\xff\xfe"))
    assert read_all(path, 24_000, 1).shape == (1, 24_000)


@pytest.mark.parametrize("name", ["aac", "mp3", "flac 16", "vorbis", "opus"])
def test_damaged_bytes_cost_only_their_place_and_the_warning_names_it(
    tmp_path: Path, name: str
) -> None:
    (kind,) = [kind for kind in KINDS if kind.name == name]
    rng = np.random.default_rng(5)
    noise = (0.1 * rng.standard_normal((1, 240_000))).astype(np.float32)
    data = bytearray(kind.make(noise, 24_000))
    at = len(data) // 2
    data[at : at + 200] = rng.bytes(200)
    path = tmp_path / "x"
    path.write_bytes(data)
    with AudioReader(path) as reader:
        seconds = sum(block.shape[1] for block in reader.blocks(24_000, 1)) / 24_000
        (warning,) = reader.warnings
    assert 8.9 < seconds < 10.1
    place = float(warning.split("missing at ")[1].split(" s")[0])
    assert place == pytest.approx(5, abs=1.1)
    assert str(path) in warning
    with pytest.raises(InputError, match="leave out --strict"):
        read_all(path, 24_000, 1, strict=True)


@pytest.mark.parametrize("name", ["vorbis", "opus", "flac 16", "m4a", "aiff"])
def test_what_is_cut_at_its_end_says_so(tmp_path: Path, name: str) -> None:
    (kind,) = [kind for kind in KINDS if kind.name == name]
    noise = np.random.default_rng(5).uniform(-0.1, 0.1, (1, 240_000)).astype(np.float32)
    data = kind.make(noise, 24_000)
    path = tmp_path / "x"
    # The table of an MP4 file lies at its end.
    path.write_bytes(data[: len(data) * 3 // 4] if name != "m4a" else data)
    with AudioReader(path) as reader:
        seconds = sum(block.shape[1] for block in reader.blocks(24_000, 1)) / 24_000
        assert bool(reader.warnings) == reader.damaged == (name != "m4a")
    assert seconds > 6


def test_samples_in_other_units_are_warned_of(tmp_path: Path) -> None:
    path = store(tmp_path / "x.wav", 32_768 * tone(1_000), 24_000, subtype="FLOAT")
    with AudioReader(path) as reader:
        list(reader.blocks(24_000, 1))
        assert "times full scale" in reader.warnings[0]
        assert not reader.damaged


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_samples_that_are_no_audio_are_refused_with_their_time(
    tmp_path: Path, value: float
) -> None:
    audio = tone(24_000)
    audio[0, 12_000] = value
    path = store(tmp_path / "x.wav", audio, 24_000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"sample at 0\.50 s"):
        read_all(path, 24_000, 1)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("s16le", "<i2"), ("s16be", ">i2"), ("s32le", "<i4"), ("f32le", "<f4"), ("f64be", ">f8")],
)
def test_raw_samples_are_read_as_they_are_said_to_be(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: str
) -> None:
    audio = tone(1_000, 2)
    scale = 1 if "f" in name else 2 ** (8 * np.dtype(dtype).itemsize - 1)
    from_stdin(monkeypatch, np.round(audio.T * scale, 7).astype(dtype).tobytes())
    back = read_all("-", 16_000, 2, raw=RawFormat(name, 16_000, 2))
    assert np.abs(back - audio).max() < 2 / scale + 1e-6


def test_an_unknown_raw_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(99))
    with pytest.raises(InputError, match="s16le"):
        AudioReader(path, raw=RawFormat("s17", 24_000, 1))


def test_a_named_pipe_is_read(tmp_path: Path) -> None:
    import os
    import threading

    path, fifo = store(tmp_path / "x.wav", tone(30_000), 24_000), tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(path.read_bytes()))
    writer.start()
    audio = read_all(fifo, 24_000, 1)
    writer.join()
    assert np.array_equal(audio, read_all(path, 24_000, 1))


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    store(tmp_path / "secret.wav", tone(1_000), 24_000)
    path = tmp_path / "x.m3u8"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.wav\n")
    with pytest.raises(InputError, match="not audio"):
        read_all(path, 24_000, 1)


def test_without_pyav_wav_and_flac_are_read_and_others_name_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from encodec_rt.audio import reader

    monkeypatch.setattr(reader, "find_spec", lambda name: None)
    wav, flac = (store(tmp_path / f"x.{end}", tone(3_000), 24_000) for end in ("wav", "flac"))
    by_name = read_all(flac, 24_000, 1)
    # libsndfile rounds when it writes FLAC, and cuts off when it writes WAV.
    assert np.abs(read_all(wav, 24_000, 1) - by_name).max() <= 1 / 32768
    from_stdin(monkeypatch, flac.read_bytes())
    assert np.array_equal(by_name, read_all("-", 24_000, 1))
    path = tmp_path / "x.m4a"
    path.write_bytes(with_ffmpeg("ipod", "aac", "fltp")(tone(3_000), 24_000))
    with pytest.raises(InputError, match=r"encodec-rt\[files\]"):
        read_all(path, 24_000, 1)


def test_memory_of_an_hour_is_that_of_a_minute(tmp_path: Path) -> None:
    import tracemalloc

    def peak(seconds: int) -> int:
        path = tmp_path / "x.wav"
        path.write_bytes(raw_wav(bytes(16_000 * seconds), rate=8_000))
        tracemalloc.start()
        with AudioReader(path) as reader:
            assert sum(block.shape[1] for block in reader.blocks(8_000, 1)) == 8_000 * seconds
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)
    assert peak(600) < 1.5 * peak(60)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "CAF"])
def test_a_reader_that_was_closed_gives_an_error_and_no_crash(tmp_path: Path, form: str) -> None:
    path = tmp_path / "x"
    soundfile.write(path, tone(200_000)[0], 24_000, format=form)
    begun, unread = AudioReader(path), AudioReader(path)
    blocks = begun.blocks(24_000, 1)
    next(blocks)
    for reader in (begun, unread):
        reader.close()
    for rest in (blocks, unread.blocks(24_000, 1)):
        with pytest.raises(StateError, match="was closed"):
            list(rest)
