"""What is stored is encoded again and compared, in every format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encodec_rt.streaming.codec import Codec
from tests.corpus.conftest import SECONDS
from tests.corpus.test_tokenizing import SINKS, run


@pytest.mark.parametrize("sink", SINKS)
def test_a_sample_is_compared_and_nothing_differs(
    codec: Codec, clips: Path, tmp_path: Path, sink: str
) -> None:
    (clips / "aaa.wav").write_text("a file that has no codes must not shift the others")
    summary = run([clips], tmp_path / "out", codec, sink=sink, verify=5)
    assert summary.verified is not None
    assert summary.verified["clips"] == 5
    assert (summary.verified["differ"], summary.verified["ids"]) == (0, [])
    assert run([clips], tmp_path / "out", codec, sink=sink, verify=99).verified == {
        "clips": len(SECONDS), "frames": summary.frames, "differ": 0, "ids": [],
    }  # fmt: skip


def test_codes_that_were_changed_are_found(codec: Codec, clips: Path, tmp_path: Path) -> None:
    run([clips], tmp_path / "out", codec)
    path = tmp_path / "out/data/part-000001.parquet"
    table = pq.read_table(path)
    codes = table.column("codes").combine_chunks()
    flat = codes.values.to_numpy().copy()
    flat[1] = (flat[1] + 1) % 16
    changed = pa.ListArray.from_arrays(codes.offsets, pa.array(flat, pa.uint16()))
    pq.write_table(table.set_column(1, table.schema.field("codes"), changed), path)
    # As if it had been written so: a file of another size would be made again.
    (record,) = (tmp_path / "out").rglob("000001.json")
    facts = json.loads(record.read_text())
    record.write_text(json.dumps({**facts, "bytes": path.stat().st_size}))
    found = run([clips], tmp_path / "out", codec, verify=99).verified
    assert found is not None
    assert (found["differ"], found["ids"]) == (1, [table.column("id")[0].as_py()])


def test_stored_files_that_are_mixed_up_are_found(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    run([clips], tmp_path / "out", codec, sink="npy")
    data = tmp_path / "out/data"
    first, second = (data / f"speaker0/{name}.npy" for name in ("clip0.wav", "clip1.flac"))
    np.save(first, np.resize(np.load(second), np.load(first).shape))
    found = run([clips], tmp_path / "out", codec, sink="npy", verify=99).verified
    assert found is not None
    assert found["ids"] == ["speaker0/clip0.wav"]
    assert found["differ"] == len(np.load(first))
