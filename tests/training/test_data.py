from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from encodec_rt.errors import ConfigError, InputError
from encodec_rt.training.analysis import active_spans, bandwidth_hz
from encodec_rt.training.data import decode_mono, index_sources
from encodec_rt.training.fetch import fetch_package
from encodec_rt.training.sampler import MixConfig, Prefetcher, Sampler
from encodec_rt.training.sources import PACKAGES, Source, by_name
from encodec_rt.training.tables import load_index

ASSETS = Path(__file__).parents[2] / "encodec_rt" / "assets"
RATE = 24_000


def noise(seconds: float, rate: int = RATE, *, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(int(seconds * rate))).astype(np.float32)


def folder_source(name: str = "own", **settings: object) -> Source:
    return Source(name, "speech", "CC0-1.0", "nobody", **settings)  # type: ignore[arg-type]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "recordings"
    folder.mkdir()
    for number in range(8):
        soundfile.write(folder / f"good{number}.wav", noise(1.5, 48_000, seed=number), 48_000)
    return folder


def test_unusable_files_are_left_out_by_name_and_the_rest_is_kept(recordings: Path) -> None:
    (recordings / "broken.wav").write_bytes(b"RIFF and nothing more")
    (recordings / "empty.ogg").write_bytes(b"")
    (recordings / "notes.txt").write_text("no audio")
    soundfile.write(recordings / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(recordings / "short.wav", noise(0.1), RATE)
    soundfile.write(recordings / "phone.wav", noise(1.0, 8_000), 8_000)
    telephone = np.fft.irfft(np.where(np.arange(RATE + 1) < 3_400, 100, 0), 2 * RATE)
    soundfile.write(recordings / "upsampled.wav", np.tile(telephone, 2), RATE)
    (source,) = index_sources([(folder_source(), recordings)], recordings.parent / "packed")
    assert [clip.path for clip in source.clips] == [f"good{n}.wav" for n in range(8)]
    reasons = dict(source.left_out)
    assert set(reasons) == {
        "broken.wav", "empty.ogg", "silent.wav", "short.wav", "phone.wav", "upsampled.wav",
    }  # fmt: skip
    assert "silent" in reasons["silent.wav"]
    assert "too short" in reasons["short.wav"]
    assert "8000 Hz" in reasons["phone.wav"]
    assert "telephone band" in reasons["upsampled.wav"]
    assert "not audio" in reasons["broken.wav"]


def test_a_folder_without_usable_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.wav").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no usable audio"):
        index_sources([(folder_source(), tmp_path / "a")], tmp_path / "packed")
    with pytest.raises(InputError, match="data index"):
        load_index(tmp_path / "nowhere")


def test_what_is_packed_is_the_files_audio(recordings: Path) -> None:
    packed = recordings.parent / "packed"
    (source,) = index_sources([(folder_source(), recordings)], packed)
    assert load_index(packed) == (source,)
    samples = np.fromfile(packed / "own.s16", dtype="<i2")
    assert len(samples) == sum(clip.samples for clip in source.clips)
    clip = source.clips[3]
    audio, rate = decode_mono(recordings / clip.path, RATE)
    assert rate == 48_000
    assert clip.samples == len(audio) == 36_000
    cut = samples[clip.start : clip.start + clip.samples]
    assert np.abs(cut / 32768 - np.clip(audio, -1, 1)).max() < 1e-4


def test_held_out_files_and_voices_never_reach_training(recordings: Path) -> None:
    for number in range(3):
        soundfile.write(recordings / f"eve-{number}.wav", noise(1, seed=9 + number), RATE)
    own = folder_source(
        speaker=r"(eve)-", held_out_speakers=("own/eve",), held_out_files=("good5.wav",)
    )
    (source,) = index_sources([(own, recordings)], recordings.parent / "packed")
    held_out = {clip.path for clip in source.clips if clip.split == "held-out"}
    assert held_out >= {"good5.wav", "eve-0.wav", "eve-1.wav", "eve-2.wav"}
    # One more file, drawn by the hash of its name.
    assert len(held_out) == 5
    train = Sampler([source], recordings.parent / "packed", MixConfig(), crop=2_400, seed=0)
    drawn = {clip.path for pool in train.pools.values() for clip in pool.clips["own"]}
    assert drawn == {clip.path for clip in source.clips} - held_out


def test_a_batch_depends_on_the_seed_and_the_step_alone(recordings: Path) -> None:
    packed = recordings.parent / "packed"
    sources = index_sources([(folder_source(), recordings)], packed)

    def sampler(seed: int) -> Sampler:
        return Sampler(sources, packed, MixConfig(), crop=9_600, seed=seed)

    first, again = sampler(1), sampler(1)
    for step in (0, 1, 2):
        first.batch(step, 4)
    assert first.batch(7, 4).equal(again.batch(7, 4))
    assert not first.batch(8, 4).equal(again.batch(7, 4))
    assert not sampler(2).batch(7, 4).equal(again.batch(7, 4))


def test_batches_drawn_ahead_are_the_samplers_own(recordings: Path) -> None:
    packed = recordings.parent / "packed"
    sources = index_sources([(folder_source(), recordings)], packed)
    sampler = Sampler(sources, packed, MixConfig(), crop=2_400, seed=1)
    ahead = Prefetcher(sampler)
    for step, items in ((0, 2), (1, 2), (2, 3), (7, 3), (2**40, 2), (8, 3), (3, 1)):
        assert ahead.batch(step, items).equal(sampler.batch(step, items)), step


def test_crops_longer_than_a_file_hold_all_of_it_and_zeros(recordings: Path) -> None:
    packed = recordings.parent / "packed"
    sources = index_sources([(folder_source(), recordings)], packed)
    batch = Sampler(sources, packed, MixConfig(two=0, three=0), crop=48_000, seed=0).batch(0, 6)
    assert batch.shape == (6, 1, 48_000)
    active = (batch != 0).sum(-1)
    assert bool(((active > 35_000) & (active <= 36_000)).all())


def test_no_crop_clips_however_loud_the_mix(recordings: Path) -> None:
    packed = recordings.parent / "packed"
    sources = index_sources([(folder_source(), recordings)], packed)
    loud = MixConfig(speech=0, music=0, two=0, three=1, level_dbfs=0)
    batch = Sampler(sources, packed, loud, crop=2_400, seed=0).batch(0, 8)
    assert 0.5 < float(batch.abs().max()) <= 0.9901


def test_an_unknown_source_in_the_mix_is_refused_by_name(recordings: Path) -> None:
    packed = recordings.parent / "packed"
    sources = index_sources([(folder_source(), recordings)], packed)
    with pytest.raises(ConfigError, match="voices-of-mars"):
        Sampler(sources, packed, MixConfig(weights={"voices-of-mars": 1.0}), crop=320, seed=0)


def test_spans_bridge_a_breath_but_not_a_pause() -> None:
    silence = np.zeros(RATE, dtype=np.float32)
    breath = np.concatenate([noise(1), silence[: RATE // 4], noise(1)])
    pause = np.concatenate([noise(1), silence, noise(1)])
    assert active_spans(breath, RATE) == [(0, 54_000 - 54_000 % 480)]
    assert [start // RATE for start, _ in active_spans(pause, RATE)] == [0, 2]
    assert active_spans(silence, RATE) == []


def test_the_true_bandwidth_of_the_bundled_speech_is_that_of_g722() -> None:
    audio, rate = decode_mono(ASSETS / "speech_en.flac", RATE)
    assert rate == RATE
    assert 6_500 < bandwidth_hz(audio, RATE) < 9_000
    assert bandwidth_hz(noise(1), RATE) > 11_500


def test_a_package_with_another_checksum_is_removed_and_refused(tmp_path: Path) -> None:
    source = folder_source("pack", version="1:2-3", sha256="0" * 64)

    def download(wanted: Source, folder: Path) -> Path:
        path = folder / f"{wanted.name}_1%3a2-3_all.deb"
        path.write_bytes(b"something else")
        return path

    with pytest.raises(InputError, match=r"pinned to 0000"):
        fetch_package(source, tmp_path, download)
    assert list((tmp_path / "deb").iterdir()) == []
    assert not (tmp_path / "raw" / "pack").exists()


def test_every_package_is_pinned_and_says_its_licence() -> None:
    for source in PACKAGES:
        assert len(source.sha256) == 64
        assert source.version
        assert source.licence
        assert source.authors
    archives = {(source.archive, source.version, source.sha256) for source in PACKAGES}
    assert len({archive for archive, _, _ in archives}) == len(archives)
    with pytest.raises(ConfigError, match="no training package is called nothing"):
        by_name(["nothing"])


def test_the_bundled_recordings_are_held_out() -> None:
    english, italian = by_name(["asterisk-core-sounds-en-g722", "asterisk-core-sounds-it-g722"])
    assert "usr/share/asterisk/sounds/en_US_f_Allison/vm-review.g722".endswith(
        english.held_out_files
    )
    assert italian.speaker_of("any/path.g722") in italian.held_out_speakers
