"""Codes become audio again, from everything that they were stored in."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from encodec_rt.corpus.detokenizing import detokenize
from encodec_rt.errors import ConfigError, InputError
from encodec_rt.streaming.codec import Codec
from tests.corpus.conftest import SECONDS, write_clip
from tests.corpus.test_tokenizing import SINKS, codes_of, errors_of, run
from tests.support.models import random_model, tiny_config


@pytest.mark.parametrize("sink", SINKS)
def test_every_clip_comes_back_as_the_codec_decodes_it(
    codec: Codec, clips: Path, tmp_path: Path, sink: str
) -> None:
    run([clips], tmp_path / "codes", codec, sink=sink)
    summary = detokenize([tmp_path / "codes"], tmp_path / "out", codec=codec, jobs=1)
    assert (summary.clips, summary.errors) == (len(SECONDS), 0)
    for path in clips.rglob("*.*"):
        name = str(path.relative_to(clips))
        made = tmp_path / "out/data" / (name if name.endswith(".wav") else f"{name}.wav")
        codes = codes_of(path, codec)
        samples = None if sink == "npy" else round(soundfile.info(path).frames * 0.8)
        audio, rate_hz = soundfile.read(made, dtype="float32")
        assert rate_hz == codec.config.sampling_rate
        wanted = codec.decode(codes, samples)
        assert len(audio) == len(wanted)
        assert np.abs(audio - np.clip(wanted, -1, 32767 / 32768)).max() <= 0.51 / 32768


def test_a_model_of_segments_comes_back_with_its_scales(tmp_path: Path) -> None:
    config = tiny_config(
        audio_channels=2, normalize=True, use_causal_conv=False, norm_type="time_group_norm",
        chunk_length_s=0.5, overlap=0.1,
    )  # fmt: skip
    codec = Codec(random_model(config))
    for index, seconds in enumerate((0.3, 0.5, 1.7)):
        write_clip(tmp_path / f"in/{index}.wav", seconds, channels=2, rate_hz=800, seed=index)
    for sink in SINKS[:3] + SINKS[4:]:
        run([tmp_path / "in"], tmp_path / sink, codec, sink=sink, verify=3)
        detokenize([tmp_path / sink], tmp_path / f"{sink}-out", codec=codec, jobs=1)
        for index, seconds in enumerate((0.3, 0.5, 1.7)):
            files = [tmp_path / f"{each}-out/data/{index}.wav" for each in ("parquet", sink)]
            one, other = (soundfile.read(file)[0] for file in files)
            assert one.shape == (round(seconds * 800), 2)
            assert np.array_equal(one, other)


def test_fewer_codebooks_are_those_of_the_bandwidth(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    run([clips], tmp_path / "codes", codec)
    kbps = codec.config.target_bandwidths[0]
    settings = {"codec": codec, "bandwidth_kbps": kbps, "audio_format": "flac", "jobs": 1}
    detokenize([tmp_path / "codes"], tmp_path / "out", **settings)  # type: ignore[arg-type]
    audio, _ = soundfile.read(tmp_path / "out/data/speaker0/clip1.flac", dtype="float32")
    wanted = codec.decode(codes_of(clips / "speaker0/clip1.flac", codec)[:, :1], len(audio))
    assert np.abs(audio - np.clip(wanted, -1, 32767 / 32768)).max() <= 0.51 / 32768


def test_codes_that_cannot_be_decoded_are_named(codec: Codec, clips: Path, tmp_path: Path) -> None:
    run([clips], tmp_path / "codes", codec, sink="npz")
    data = tmp_path / "codes/data"
    (data / "speaker0/clip1.flac.npz").write_bytes(b"PK not an archive")
    np.save(data / "floats.npy", np.zeros((3, 4)))
    np.save(data / "large.npy", np.full((3, 4), 999, np.uint16))
    np.save(data / "wide.npy", np.zeros((3, 99), np.uint16))
    (data / "empty.ecdc").write_bytes(b"")
    pq.write_table(pa.table({"text": ["no codes"]}), data / "other.parquet")
    summary = detokenize([tmp_path / "codes"], tmp_path / "out", codec=codec, jobs=1)
    errors = errors_of(tmp_path / "out")
    assert len(errors) == summary.errors == 6
    assert "float64 (3, 4)" in errors["floats"]["reason"]
    assert summary.clips == len(SECONDS) - 1


DESCRIPTIONS = (
    {"samples": "3200"},
    {"samples": 24.0},
    {"samples": -1},
    {"samples": [1]},
    {"samples": 24, "id": "a\0b"},
    {"samples": 24, "scales": ["x"]},
)


@pytest.mark.parametrize("told", DESCRIPTIONS, ids=str)
def test_a_description_that_cannot_be_is_that_clips_error(
    codec: Codec, tmp_path: Path, told: object
) -> None:
    codes, folder = np.zeros((3, 4), np.uint16), tmp_path / "codes"
    folder.mkdir()
    with tarfile.open(folder / "one.tar", "w") as tar:
        for key, rest in (("a", told), ("b", {"samples": 3 * codec.config.hop_length, "id": "b"})):
            file = io.BytesIO()
            np.save(file, codes)
            data = {"codes.npy": file.getvalue(), "json": json.dumps(rest).encode()}
            for suffix, content in data.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    summary = detokenize([folder], tmp_path / "out", codec=codec, jobs=1)
    assert summary.errors == 1
    reasons = [row["reason"] for row in errors_of(tmp_path / "out").values()]
    assert not any(reason.startswith(("TypeError", "ValueError")) for reason in reasons)


def test_files_of_one_name_and_two_kinds_do_not_replace_each_other(
    codec: Codec, tmp_path: Path
) -> None:
    codes, folder = np.zeros((3, 4), np.uint16), tmp_path / "codes"
    folder.mkdir()
    np.save(folder / "a.npy", codes)
    np.savez(folder / "a.npz", codes=codes[:2])
    assert detokenize([folder], tmp_path / "out", codec=codec, jobs=1).clips == 2
    names = sorted(path.name for path in (tmp_path / "out/data").iterdir())
    assert names == ["a.npz.wav", "a.wav"]


def test_shards_of_two_corpora_with_the_same_ids_do_not_replace_each_other(
    codec: Codec, tmp_path: Path
) -> None:
    for seed, name in enumerate(("a", "b")):
        write_clip(tmp_path / name / "clip.wav", 0.3, rate_hz=800, seed=seed)
        run([tmp_path / name], tmp_path / f"codes-{name}", codec)
    shards = [next(tmp_path.glob(f"codes-{name}/data/*.parquet")) for name in ("a", "b")]
    summary = detokenize(shards, tmp_path / "out", codec=codec, jobs=1)
    assert (summary.clips, summary.errors) == (2, 0)
    one, other = (soundfile.read(path)[0] for path in sorted(tmp_path.glob("out/data/**/*.wav")))
    assert not np.array_equal(one, other)


def test_a_folder_of_two_corpora_with_the_same_ids_gives_the_clips_of_both(
    codec: Codec, tmp_path: Path
) -> None:
    for seed, name in enumerate(("a", "b")):
        write_clip(tmp_path / name / "clip.wav", 0.3, rate_hz=800, seed=seed)
        run([tmp_path / name], tmp_path / "codes" / name, codec)
    (tmp_path / "codes/a/errors.parquet").unlink(missing_ok=True)
    assert detokenize([tmp_path / "codes"], tmp_path / "out", codec=codec, jobs=1).errors == 0
    made = sorted((tmp_path / "out/data").rglob("*.wav"))
    names = ["a/data/clip.wav", "b/data/clip.wav"]
    assert [str(path.relative_to(tmp_path / "out/data")) for path in made] == names
    one, other = (soundfile.read(path)[0] for path in made)
    assert not np.array_equal(one, other)


def test_clips_of_one_id_in_one_folder_are_an_error(codec: Codec, tmp_path: Path) -> None:
    write_clip(tmp_path / "in/clip.wav", 0.3, rate_hz=800)
    run([tmp_path / "in"], tmp_path / "codes", codec)
    table = pq.read_table(shard := next((tmp_path / "codes/data").iterdir()))
    pq.write_table(table, shard.with_name("other.parquet"))
    summary = detokenize([tmp_path / "codes"], tmp_path / "out", codec=codec, jobs=1)
    assert (summary.clips, summary.errors) == (2, 1)
    assert (
        "decode these shards into separate folders"
        in errors_of(tmp_path / "out")["clip.wav"]["reason"]
    )
    shard.with_name("other.parquet").unlink()
    pq.write_table(pa.concat_tables([table, table]), shard)
    summary = detokenize([tmp_path / "codes"], tmp_path / "again", codec=codec, jobs=1)
    assert (summary.clips, summary.errors) == (1, 1)
    assert "has the id 'clip.wav' too" in errors_of(tmp_path / "again")["clip.wav"]["reason"]


def test_the_summary_has_the_codebooks_that_were_decoded(codec: Codec, tmp_path: Path) -> None:
    write_clip(tmp_path / "in/clip.wav", 0.3, rate_hz=800)
    run([tmp_path / "in"], tmp_path / "codes", codec)
    kbps = codec.config.target_bandwidths[0]
    made = detokenize(
        [tmp_path / "codes"], tmp_path / "out", codec=codec, bandwidth_kbps=kbps, jobs=1
    )
    assert len(made.as_json()["codebooks"]) == codec.config.codebooks_for(kbps) < 4
    assert made.info.bandwidth_kbps == kbps


def test_a_folder_with_a_folder_called_data_is_read_whole(codec: Codec, tmp_path: Path) -> None:
    (tmp_path / "codes/data").mkdir(parents=True)
    for name in ("one.npy", "data/two.npy"):
        np.save(tmp_path / "codes" / name, np.zeros((3, 4), np.uint16))
    assert detokenize([tmp_path / "codes"], tmp_path / "out", codec=codec, jobs=1).clips == 2
    assert (tmp_path / "out/data/data/two.wav").exists()


def test_codes_of_other_weights_and_ids_that_lead_out_are_refused(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    run([clips], tmp_path / "codes", codec)
    other = Codec(random_model(codec.config, seed=1), backend="cpu")
    assert detokenize([tmp_path / "codes"], tmp_path / "out", codec=other, jobs=1).clips == 0
    reasons = [row["reason"] for row in errors_of(tmp_path / "out").values()]
    assert all("give the right ones with --model" in reason for reason in reasons)
    path = next((tmp_path / "codes/data").glob("*.parquet"))
    table = pq.read_table(path)
    evil = pa.array(["../../up"] * len(table), pa.string())
    pq.write_table(table.set_column(0, "id", evil), path)
    detokenize([path], tmp_path / "safe", codec=codec, jobs=1)
    assert "leads out" in errors_of(tmp_path / "safe")["../../up"]["reason"]
    assert not (tmp_path / "up.wav").exists()


def test_what_makes_no_sense_is_refused(codec: Codec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        detokenize([tmp_path / "nothing"], tmp_path / "out", codec=codec)
    with pytest.raises(ConfigError, match="accepted: wav"):
        detokenize([tmp_path], tmp_path / "out", codec=codec, audio_format="exe")
