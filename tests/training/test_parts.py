"""What travels in small files: checkpoints in parts, audio in shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from encodec_rt.errors import ConfigError, InputError
from encodec_rt.quality import si_sdr_db
from encodec_rt.training.data import index_sources
from encodec_rt.training.parts import join_file, split_file
from encodec_rt.training.shards import read_shards, write_shards
from encodec_rt.training.sources import Source
from encodec_rt.training.tables import load_index

ASSETS = Path(__file__).parents[2] / "encodec_rt" / "assets"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(np.random.default_rng(0).bytes(100_000))
    return path


@pytest.mark.parametrize("mib", [0.03, 0.095367431640625, 15])
def test_joined_parts_are_the_file(checkpoint: Path, tmp_path: Path, mib: float) -> None:
    count = split_file(checkpoint, tmp_path / "parts", part_mib=mib)
    parts = sorted((tmp_path / "parts").glob("part-*"))
    assert len(parts) == count
    assert max(part.stat().st_size for part in parts) <= mib * 2**20
    join_file(tmp_path / "parts", tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == checkpoint.read_bytes()


def test_an_empty_file_survives_splitting(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    split_file(tmp_path / "empty", tmp_path / "parts")
    join_file(tmp_path / "parts", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == b""


def test_damaged_missing_and_swapped_parts_leave_no_file(checkpoint: Path, tmp_path: Path) -> None:
    parts, target = tmp_path / "parts", tmp_path / "again.pt"
    split_file(checkpoint, parts, part_mib=0.03)
    whole = (parts / "part-001").read_bytes()
    for damaged, wanted in (
        (whole[:-1], "is damaged"),
        (whole[::-1], "is damaged"),
        (None, "is missing"),
    ):
        (parts / "part-001").unlink(missing_ok=True)
        if damaged is not None:
            (parts / "part-001").write_bytes(damaged)
        with pytest.raises(InputError, match=wanted):
            join_file(parts, target)
        assert not list(tmp_path.glob("*again*"))
    table = parts / "parts.json"
    table.write_text(table.read_text().replace("part-000", "../checkpoint.pt"))
    with pytest.raises(InputError):
        join_file(parts, target)
    table.write_text("{}")
    with pytest.raises(InputError, match=r"no parts\.json that can be read"):
        join_file(parts, target)


def test_nothing_is_overwritten_by_parts(checkpoint: Path, tmp_path: Path) -> None:
    split_file(checkpoint, tmp_path / "parts")
    with pytest.raises(InputError, match="not an empty folder"):
        split_file(checkpoint, tmp_path / "parts")
    with pytest.raises(InputError, match="--force"):
        join_file(tmp_path / "parts", checkpoint)
    with pytest.raises(InputError, match="not a file"):
        split_file(tmp_path / "none", tmp_path / "other")
    for mib in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="MiB"):
            split_file(checkpoint, tmp_path / "other", part_mib=mib)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    own = Source("bundled", "speech", "CC-BY", "two speakers")
    index_sources([(own, ASSETS)], folder)
    return folder


def test_shards_give_back_the_packed_audio_in_place(packed: Path, tmp_path: Path) -> None:
    shards = write_shards(packed, tmp_path / "shards", shard_mib=0.1)
    assert all(shard.stat().st_size <= 0.1 * 2**20 for shard in shards)
    read_shards(tmp_path / "shards", tmp_path / "again")
    (wanted,), (got,) = load_index(packed), load_index(tmp_path / "again")
    assert {c.path: (c.samples, c.spans, c.split) for c in got.clips} == {
        c.path: (c.samples, c.spans, c.split) for c in wanted.clips
    }
    before = np.fromfile(packed / "bundled.s16", "<i2").astype(np.float32)
    after = np.fromfile(tmp_path / "again" / "bundled.s16", "<i2").astype(np.float32)
    assert len(before) == len(after)
    places = {clip.path: clip.start for clip in got.clips}
    for clip in wanted.clips:
        ours = after[places[clip.path] : places[clip.path] + clip.samples]
        theirs = before[clip.start : clip.start + clip.samples]
        # 19 dB measured at 48 kbps; a shift by one sample costs 4 dB and more.
        assert si_sdr_db(theirs, ours) > 17


def test_a_damaged_shard_is_refused_by_name(packed: Path, tmp_path: Path) -> None:
    (shard,) = write_shards(packed, tmp_path / "shards", most=1)
    content = bytearray(shard.read_bytes())
    content[5_000] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"shard-000\.opus is damaged"):
        read_shards(tmp_path / "shards", tmp_path / "again")
    shard.unlink()
    with pytest.raises(InputError, match=r"^\S+shard-000\.opus is missing"):
        read_shards(tmp_path / "shards", tmp_path / "once more")
    with pytest.raises(InputError, match="holds no shards"):
        read_shards(tmp_path / "nowhere", tmp_path / "once more")
    for kbps in (0.0, float("nan"), 1e9):
        with pytest.raises(ConfigError, match="kbps"):
            write_shards(packed, tmp_path / "new", kbps=kbps)
