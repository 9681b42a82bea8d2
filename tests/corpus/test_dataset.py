"""Stored codes as training reads them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from encodec_rt.corpus import CodesDataset, shards
from encodec_rt.corpus.stored import read_rows
from encodec_rt.errors import ConfigError, InputError, PacketError
from encodec_rt.streaming.codec import Codec
from tests.corpus.conftest import SECONDS
from tests.corpus.test_tokenizing import rows_of, run


@pytest.mark.parametrize("sink", ["parquet", "npz"])
def test_clips_come_whole_or_as_crops_of_their_first_codebooks(
    codec: Codec, clips: Path, tmp_path: Path, sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_CODES", 500)
    run([clips], tmp_path / "out", codec, sink=sink)
    rows = rows_of(tmp_path / "out", codec)
    whole = CodesDataset(tmp_path / "out")
    assert len(whole) == len(SECONDS)
    for item in (whole[index] for index in range(len(whole))):
        assert item["codes"].dtype == torch.int64
        assert np.array_equal(item["codes"].numpy(), rows[item["id"]].codes)
    crops = CodesDataset(tmp_path / "out", crop_frames=60, codebooks=2)
    assert len(crops) == sum(len(row.codes) >= 60 for row in rows.values())
    places = set()
    for _ in range(30):
        item = crops[-1]
        codes = rows[item["id"]].codes[:, :2]
        windows = np.lib.stride_tricks.sliding_window_view(codes, 60, axis=0)
        found = (windows == item["codes"].numpy().T).all(axis=(1, 2))
        assert found.any()
        places.add(int(found.argmax()))
    assert len(places) > 3
    assert whole[-1]["id"] == whole[len(whole) - 1]["id"]
    with pytest.raises(IndexError):
        whole[len(whole)]


def test_a_loader_makes_batches_in_processes_of_its_own(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    run([clips], tmp_path / "out", codec)
    dataset = CodesDataset(tmp_path / "out", crop_frames=100, pad=True)
    assert len(dataset) == len(SECONDS)
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    for batch in DataLoader(copy, batch_size=4):
        assert batch["codes"].shape == (4, 100, 4)
        assert len(batch["id"]) == 4
    short = next(dataset[i] for i in range(len(dataset)) if dataset[i]["id"].endswith("0.flac"))
    missing = (short["codes"] == -1).all(dim=1)
    assert missing.any()
    assert not (short["codes"] == -1)[~missing].any()


@pytest.mark.parametrize("sink", ["parquet", "npz"])
def test_any_stored_column_can_be_asked_for(
    codec: Codec, clips: Path, tmp_path: Path, sink: str
) -> None:
    run([clips], tmp_path / "out", codec, sink=sink)
    names = ["samples", "sampling_rate", "frames", "codebooks"]
    rows = rows_of(tmp_path / "out", codec)
    for item in map(CodesDataset(tmp_path / "out", columns=names).__getitem__, range(3)):
        row = rows[item["id"]]
        wanted = [row.samples, codec.config.sampling_rate, *row.codes.shape]
        assert [item[name] for name in names] == wanted
        assert set(item) == {"id", "codes", *names}


def test_damaged_files_are_refused_as_what_they_are(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    run([clips], tmp_path / "out", codec, sink="npz")
    first = next((tmp_path / "out/data").rglob("*.npz"))
    content = first.read_bytes()
    for damaged in (b"", b"PK", content[:40], content[: len(content) // 2], b"x" * 99):
        first.write_bytes(damaged)
        with pytest.raises(PacketError, match=first.name):
            list(read_rows(first))
    run([clips], tmp_path / "table", codec)
    with pytest.raises(ConfigError, match="no column 'none'"):
        CodesDataset(tmp_path / "table", columns=["none"])


def test_what_is_no_corpus_is_refused(codec: Codec, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no codes"):
        CodesDataset(clips)
    run([clips], tmp_path / "out", codec, sink="webdataset")
    with pytest.raises(InputError, match=r"reads \.parquet"):
        CodesDataset(tmp_path / "out")
    run([clips], tmp_path / "good", codec)
    with pytest.raises(ConfigError, match="codebooks=9"):
        CodesDataset(tmp_path / "good", codebooks=9)
    settings: list[dict[str, Any]] = [
        *({"crop_frames": wrong} for wrong in (0, 1.5, True)),
        *({"codebooks": wrong} for wrong in (0, 1.5, True)),
    ]
    for wrong in settings:
        with pytest.raises(ConfigError, match="=".join(map(str, next(iter(wrong.items()))))):
            CodesDataset(tmp_path / "good", **wrong)
    with pytest.raises(ConfigError, match="no clip of 100000 frames"):
        CodesDataset(tmp_path / "good", crop_frames=100_000)
    pq.write_table(pa.table({"text": ["other"]}), tmp_path / "good/data/other.parquet")
    with pytest.raises(InputError, match="holds no codes: the columns id, codes"):
        CodesDataset(tmp_path / "good")
