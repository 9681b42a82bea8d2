"""A corpus becomes codes: all of it, the offline model's, and bad files are named."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encodec_rt.audio import AudioReader
from encodec_rt.corpus.rows import StoredClip
from encodec_rt.corpus.sources import UnitSize
from encodec_rt.corpus.stored import code_files, info_of, read_rows
from encodec_rt.corpus.summary import Summary
from encodec_rt.corpus.tokenizing import tokenize
from encodec_rt.errors import ConfigError, InputError
from encodec_rt.streaming.codec import Codec
from encodec_rt.transcode import encode_blocks
from encodec_rt.types import Codes
from tests.corpus.conftest import SECONDS, write_clip

SINKS = ("parquet", "webdataset", "npz", "npy", "ecdc", "encodec")
AUDIO = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


def run(inputs: Any, out: Path, codec: Codec, **settings: Any) -> Summary:
    size = settings.pop("unit_size", UnitSize(clips=3))
    kbps = settings.pop("bandwidth_kbps", codec.config.target_bandwidths[-1])
    return tokenize(
        inputs, out, codec=codec, bandwidth_kbps=kbps, jobs=1, unit_size=size, **settings
    )


def rows_of(out: Path, codec: Codec) -> dict[str, StoredClip]:
    rows = [row for path in code_files(out) for row in read_rows(path, codec.config)]
    found = {row.id: row for row in rows}
    assert len(found) == len(rows)
    return found


def codes_of(path: Path, codec: Codec) -> Codes:
    """As ``encodec-rt encode`` has them."""
    with AudioReader(path) as reader:
        blocks = reader.blocks(codec.config.sampling_rate, codec.config.audio_channels)
        kbps = codec.config.target_bandwidths[-1]
        coded = [block.codes for block in encode_blocks(codec, blocks, bandwidth_kbps=kbps)]
    return np.concatenate(coded)


def errors_of(out: Path) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(out / "errors.parquet").to_pylist()
    return {row["id"]: row for row in rows}


@pytest.mark.parametrize("sink", SINKS)
def test_every_clip_of_a_folder_comes_out_with_its_codes(
    codec: Codec, clips: Path, tmp_path: Path, sink: str
) -> None:
    out = tmp_path / "out"
    (clips / "notes.txt").write_text("not audio")
    summary = run([clips], out, codec, sink=sink)
    files = {str(p.relative_to(clips)): p for p in clips.rglob("*.*") if p.suffix != ".txt"}
    rows = [row for path in code_files(out) for row in read_rows(path, codec.config)]
    assert len(rows) == len(files) == summary.clips == len(SECONDS)
    assert (summary.errors, summary.left_out) == (0, 1)
    assert not (out / "errors.parquet").exists()
    if sink in ("npy", "ecdc"):  # whose names are all that says which is which
        found = {str(p.relative_to(out / "data")): p for p in code_files(out)}
        rows_by_id = {
            name.removesuffix(f".{sink}"): next(iter(read_rows(p, codec.config)))
            for name, p in found.items()
        }
    else:
        rows_by_id = {row.id: row for row in rows}
    for name, path in files.items():
        assert np.array_equal(rows_by_id[name].codes, codes_of(path, codec))
    assert summary.frames == sum(len(row.codes) for row in rows)
    assert summary.counts.sum() == sum(row.codes.size for row in rows)
    info = info_of(next(iter(code_files(out))))
    assert info is not None
    assert info.codes_sha256 == codec.codes_sha256


def test_a_list_has_parts_of_files_with_their_columns(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    table = tmp_path / "clips" / "list.tsv"
    lines = ["path\tstart\tend\ttext", "speaker0/clip1.flac\t0.5\t1.25\tone, two"]
    lines += ["speaker0/clip1.flac\t1.25\t\tthree", "speaker1/clip1.wav\t\t0.1\tfour"]
    table.write_text("\n".join(lines) + "\n")
    run([table], tmp_path / "out", codec)
    rows = rows_of(tmp_path / "out", codec)
    kbps = codec.config.target_bandwidths[-1]
    with AudioReader(clips / "speaker0/clip1.flac") as reader:
        whole = np.concatenate(list(reader.blocks(codec.config.sampling_rate, 1)), axis=1)
    part = rows["speaker0/clip1.flac@0.5-1.25"]
    assert np.array_equal(part.codes, codec.encode(whole[:, 400:1000], kbps))
    assert part.samples == 600
    assert part.meta == {"text": "one, two"}
    assert np.array_equal(
        rows["speaker0/clip1.flac@1.25-"].codes, codec.encode(whole[:, 1000:], kbps)
    )


def test_lines_of_json_have_an_offset_a_duration_and_anything_else(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    table = clips / "list.jsonl"
    line = {"audio_filepath": "speaker0/clip1.flac", "offset": 1, "duration": 0.5, "n": [1, 2]}
    table.write_text(json.dumps({**line, "id": "a/b"}) + "\n\n" + json.dumps(line) + "\n")
    run([table], tmp_path / "out", codec)
    rows = rows_of(tmp_path / "out", codec)
    assert set(rows) == {"a/b", "speaker0/clip1.flac@1-1.5"}
    assert json.loads(str(rows["a/b"].meta["meta"])) == {"duration": 0.5, "n": [1, 2]}
    assert rows["a/b"].samples == 400


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,start\nx.wav,-1\n", "line 2: '-1' is not a number of seconds"),
        ("path,start,end\nx.wav,2,1\n", "the end must come after the start"),
        ("file,id\nx.wav,same\ny.wav,same\n", "the id 'same' occurs twice"),
        ("name\nx.wav\n", "no path"),
        ("path,text\nx.wav\n", "as many fields as the header has"),
        ("path,id\nx.wav,../../up\n", None),
        ("path,id\nx.wav,a/../../up\n", "leads outside the folder"),
        ("path,id\nx.wav,a\0b\n", "leads outside the folder|is not a list"),
    ],
)
def test_a_line_that_makes_no_sense_is_named(
    codec: Codec, tmp_path: Path, text: str, said: str | None
) -> None:
    (tmp_path / "list.csv").write_text(text)
    if said is None:
        run([tmp_path / "list.csv"], tmp_path / "out", codec)
        assert list(errors_of(tmp_path / "out")) == ["up"]
        return
    with pytest.raises(InputError, match=said):
        run([tmp_path / "list.csv"], tmp_path / "out", codec)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"path": "a\\u0000b"}', "a path with a zero byte"),
        ('{"path": "a.wav", "id": "a\\u0000b"}', "leads out"),
        ('{"path": "\\ud800"}', "is not a path"),
        ('{"path": "a.wav", "id": "\\ud800"}', "is not a path"),
        ("[" * 100_000, "is not a list of files"),
    ],
    ids=["zero path", "zero id", "half path", "half id", "deep"],
)
def test_a_line_of_json_that_makes_no_sense_is_named(
    codec: Codec, tmp_path: Path, line: str, said: str
) -> None:
    (tmp_path / "list.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=said):
        run([tmp_path / "list.jsonl"], tmp_path / "out", codec)


def test_lists_that_are_not_utf_8_keep_their_bytes_escaped(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    name = "clips/speaker0/clip1.flac"
    (tmp_path / "list.csv").write_bytes(f"path,t\xe9xt\n{name},caf\xe9\n".encode("latin-1"))
    (tmp_path / "list.jsonl").write_bytes(
        f'{{"path": "{name}", "id": "1", "text": "caf\xe9"}}\n'.encode("latin-1")
        + f'{{"path": "{name}", "id": "2", "text": "\\ud800"}}\n'.encode()
    )
    for at, (kind, clips_of_it) in enumerate({"csv": 1, "jsonl": 2}.items()):
        out = tmp_path / f"out{at}"
        assert run([tmp_path / f"list.{kind}"], out, codec).clips == clips_of_it
    (row,) = rows_of(tmp_path / "out0", codec).values()
    assert row.meta["t\\udce9xt"] == "caf\\udce9"


def test_a_clip_whose_name_is_another_clips_folder_is_that_clips_error(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    name = "clips/speaker0/clip1.flac"
    lines = [f'{{"path": "{name}", "id": "{id_}"}}\n' for id_ in ("x", "x.npz/y", "z")]
    (tmp_path / "list.jsonl").write_text("".join(lines))
    summary = run([tmp_path / "list.jsonl"], tmp_path / "out", codec, sink="npz")
    assert (summary.clips, list(errors_of(tmp_path / "out"))) == (2, ["x.npz/y"])


def test_a_tar_gives_its_samples_with_their_texts(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    shard = tmp_path / "shard-00.tar"
    with tarfile.open(shard, "w") as tar:
        for name in ("speaker0/clip1.flac", "speaker1/clip1.wav"):
            tar.add(clips / name, name)
            add(tar, name.split(".")[0] + ".json", json.dumps({"words": name}).encode())
            add(tar, name.split(".")[0] + ".txt", b"text\n")
    summary = run([shard], tmp_path / "out", codec, sink="webdataset")
    rows = rows_of(tmp_path / "out", codec)
    assert summary.units == 1
    row = rows["shard-00/speaker0/clip1.flac"]
    assert np.array_equal(row.codes, codes_of(clips / "speaker0/clip1.flac", codec))
    meta = {"json": {"words": "speaker0/clip1.flac"}, "txt": "text"}
    assert json.loads(str(row.meta["meta"])) == meta
    with tarfile.open(tmp_path / "out/data/part-000000.tar") as tar:
        assert tar.getnames()[:2] == [
            f"shard-00/speaker0/clip1.{end}" for end in ("codes.npy", "json")
        ]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def test_a_tar_that_is_out_of_order_or_ends_early_says_so(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    data = (clips / "speaker0/clip1.flac").read_bytes()
    shards = [tmp_path / f"{name}.tar" for name in ("mixed", "short", "endless", "noise", "broken")]
    with tarfile.open(shards[0], "w") as tar:
        for name in ("a.flac", "b.flac", "a.json", "a.wav", "../up.flac", "/abs.flac"):
            add(tar, name, data)
    with tarfile.open(shards[1], "w") as tar:
        for name in ("a.flac", "b.flac"):
            add(tar, name, data)
    whole = shards[1].read_bytes()
    member = 512 + -(-len(data) // 512) * 512
    shards[1].write_bytes(whole[: member + 1_000])
    shards[2].write_bytes(whole[: 2 * member])
    shards[3].write_bytes(np.random.default_rng(0).bytes(2_000))
    shards[4].write_bytes(whole[:member] + b"x" * 512 + whole[member + 512 :])
    run(shards, tmp_path / "out", codec, sink="npz")
    assert set(rows_of(tmp_path / "out", codec)) == {
        "mixed/a.flac", "mixed/b.flac", "short/a.flac", "endless/a.flac", "endless/b.flac",
        "broken/a.flac",
    }  # fmt: skip
    errors = errors_of(tmp_path / "out")
    assert "came before" in errors["mixed/sample 3"]["reason"]
    assert "leads out" in errors["mixed/sample 4"]["reason"]
    assert "leads out" in errors["mixed/sample 5"]["reason"]
    assert "beyond sample 1" in errors["short/after sample 1"]["reason"]
    assert "no end mark" in errors["endless/after sample 2"]["reason"]
    assert "noise/after sample 0" in errors
    assert "broken/after sample 1" in errors
    assert not any(row["kept"] for row in errors.values())


def hf_table(clips: Path, **columns: list[Any]) -> pa.Table:
    paths = [path for path in sorted(clips.rglob("*.*")) if path.suffix in (".flac", ".wav")]
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    features = {"info": {"features": {"speech": {"_type": "Audio", "sampling_rate": 1_000}}}}
    table = pa.table({"speech": pa.array(cells, AUDIO), **columns})
    return table.replace_schema_metadata({"huggingface": json.dumps(features)})


def test_parquet_in_hugging_face_s_layout_keeps_its_columns(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    table = hf_table(clips, id=list(range(8)), tags=[[str(n)] * n for n in range(8)])
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=3)
    summary = run([tmp_path / "train.parquet"], tmp_path / "out", codec)
    assert summary.units == 3
    made = pq.read_table(tmp_path / "out/data")
    assert made.column("source_id").to_pylist() == list(range(8))
    assert made.column("tags").to_pylist() == table.column("tags").to_pylist()
    assert made.column("id").to_pylist() == [f"train/{n:07d}" for n in range(8)]
    assert made.schema.field("codes").type == pa.list_(pa.uint16())
    rows = rows_of(tmp_path / "out", codec)
    first = sorted(clips.rglob("*.*"))[0]
    assert np.array_equal(rows["train/0000000"].codes, codes_of(first, codec))


def test_parquet_of_paths_and_of_nothing(codec: Codec, clips: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"audio": ["speaker0/clip1.flac", None]}), clips / "paths.parquet")
    (clips / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    inputs = [clips / "paths.parquet", clips / "broken.parquet"]
    run(inputs, tmp_path / "out", codec)
    rows = rows_of(tmp_path / "out", codec)
    wanted = codes_of(clips / "speaker0/clip1.flac", codec)
    assert np.array_equal(rows["paths/0000000"].codes, wanted)
    errors = errors_of(tmp_path / "out")
    assert "the cell is empty" in errors["paths/0000001"]["reason"]
    assert "not a Parquet file" in errors["broken"]["reason"]
    pq.write_table(pa.table({"x": [1]}), clips / "none.parquet")
    with pytest.raises(ConfigError, match="no audio column 'audio'"):
        run([clips / "none.parquet"], tmp_path / "other", codec)


def test_a_dataset_of_hugging_face_is_read_without_its_decoder(
    codec: Codec, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    pq.write_table(hf_table(clips, text=[f"t{n}" for n in range(8)]), tmp_path / "x.parquet")
    dataset = datasets.Dataset.from_parquet(
        str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache")
    ).select([5, 2])
    run([dataset], tmp_path / "out", codec)
    rows = rows_of(tmp_path / "out", codec)
    assert [row.meta["text"] for row in rows.values()] == ["t5", "t2"]
    run(datasets.DatasetDict(train=dataset), tmp_path / "dict", codec)
    assert set(rows_of(tmp_path / "dict", codec)) == {"train/0000000", "train/0000001"}
    with pytest.raises(InputError, match="IterableDataset does not"):
        run([dataset.to_iterable_dataset()], tmp_path / "stream", codec)
    paths = sorted(clips.rglob("*.*"))
    assert np.array_equal(rows["dataset-0/0000000"].codes, codes_of(paths[5], codec))


def test_each_channel_can_be_a_clip_of_its_own(codec: Codec, clips: Path, tmp_path: Path) -> None:
    run([clips], tmp_path / "out", codec, channels="each")
    rows = rows_of(tmp_path / "out", codec)
    assert len(rows) == len(SECONDS) + 1
    stereo = clips / "speaker0/clip2.flac"
    with AudioReader(stereo) as reader:
        both = np.concatenate(list(reader.blocks(codec.config.sampling_rate, 2)), axis=1)
    kbps = codec.config.target_bandwidths[-1]
    for channel in range(2):
        row = rows[f"speaker0/clip2.flac#{channel}"]
        assert np.array_equal(row.codes, codec.encode(both[channel], kbps))


def test_loudness_changes_the_codes_of_quiet_clips(codec: Codec, tmp_path: Path) -> None:
    write_clip(tmp_path / "in/a.wav", 3.0)
    for name, wanted in (("plain", None), ("loud", -10.0)):
        run([tmp_path / "in"], tmp_path / name, codec, loudness_lufs=wanted)
    plain, loud = (rows_of(tmp_path / name, codec)["a.wav"].codes for name in ("plain", "loud"))
    assert plain.shape == loud.shape
    assert not np.array_equal(plain, loud)


def test_bad_files_are_rows_of_errors_and_the_others_are_done(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    whole = (clips / "speaker0/clip3.wav").read_bytes()
    (clips / "empty.wav").write_bytes(b"")
    (clips / "text.wav").write_text("not audio at all")
    (clips / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (clips / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    write_clip(clips / "slow.wav", 10, rate_hz=10)
    write_clip(clips / "twice/clip1.flac", 0.1)
    odd = b"caf\xe9.wav"
    (clips / "speaker0/clip1.flac").rename(clips / odd.decode("utf-8", "surrogateescape"))
    summary = run([clips], tmp_path / "out", codec)
    errors = errors_of(tmp_path / "out")
    assert set(errors) == {"empty.wav", "text.wav", "cut.wav", "gone.wav", "slow.wav"}
    assert summary.errors == 5
    assert "is empty" in errors["empty.wav"]["reason"]
    assert "not audio" in errors["text.wav"]["reason"]
    assert "10 Hz" in errors["slow.wav"]["reason"]
    assert "does not exist" in errors["gone.wav"]["reason"]
    assert errors["cut.wav"]["kept"]
    assert 0 < errors["cut.wav"]["seconds_decoded"] < 2
    assert [row["kept"] for row in errors.values()].count(True) == 1
    rows = rows_of(tmp_path / "out", codec)
    assert {"cut.wav", "caf\\xe9.wav", "twice/clip1.flac"} < set(rows)
    strict = run([clips], tmp_path / "strict", codec, strict=True)
    assert "cut.wav" not in rows_of(tmp_path / "strict", codec)
    assert strict.errors == 5


def test_equal_files_are_left_out_where_that_is_asked_for(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    (clips / "speaker1/copy.flac").write_bytes((clips / "speaker0/clip1.flac").read_bytes())
    summary = run([clips], tmp_path / "out", codec, dedup=True)
    assert summary.duplicates == 1
    assert pq.read_table(tmp_path / "out/duplicates.parquet").to_pylist() == [
        {"id": "speaker1/copy.flac", "same_as": "speaker0/clip1.flac"}
    ]
    assert "speaker1/copy.flac" not in rows_of(tmp_path / "out", codec)


def test_clips_of_one_name_in_two_folders_stay_apart(codec: Codec, tmp_path: Path) -> None:
    for name in ("a/in/x.wav", "b/in/x.wav", "b/y.wav"):
        write_clip(tmp_path / name, 0.1)
    run([tmp_path / "a/in", tmp_path / "b/in", tmp_path / "b/y.wav"], tmp_path / "out", codec)
    assert set(rows_of(tmp_path / "out", codec)) == {"a/in/x.wav", "b/in/x.wav", "b/y.wav"}
    with pytest.raises(InputError, match="given twice"):
        run([tmp_path / "a", tmp_path / "a"], tmp_path / "other", codec)
    with pytest.raises(InputError, match="matches nothing"):
        run([tmp_path / "*.flac"], tmp_path / "other", codec)
    run([f"{tmp_path}/*/in/*.wav"], tmp_path / "globbed", codec)
    assert set(rows_of(tmp_path / "globbed", codec)) == {"a/in/x.wav", "b/in/x.wav"}


def test_lists_and_containers_of_one_name_keep_their_clips_apart(
    codec: Codec, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    write_clip(folder / "a/one.wav", 0.1)
    for name, mode in (("a.tar", "w"), ("b.tar", "w"), ("b.tar.gz", "w:gz")):
        with tarfile.open(folder / name, cast("Literal['w', 'w:gz']", mode)) as tar:
            tar.add(folder / "a/one.wav", "one.wav")
    assert run([folder], tmp_path / "out", codec, sink="npy").clips == 4
    ids = {"a/one.wav", "a.tar/one.wav", "b/one.wav", "b.tar.gz/one.wav"}
    made = (tmp_path / "out/data").rglob("*.npy")
    assert {str(path.relative_to(tmp_path / "out/data")) for path in made} == {
        f"{one}.npy" for one in ids
    }
    for name in ("train.csv", "test.csv", "test.tsv"):
        row = ("path", "id"), ("in/a/one.wav", "1")
        (tmp_path / name).write_text(
            "\n".join(("," if "csv" in name else "\t").join(x) for x in row)
        )
    lists = [tmp_path / name for name in ("train.csv", "test.csv", "test.tsv")]
    run(lists, tmp_path / "lists", codec)
    assert set(rows_of(tmp_path / "lists", codec)) == {"train/1", "test/1", "test.tsv/1"}
    run(lists[:1], tmp_path / "list", codec)
    assert set(rows_of(tmp_path / "list", codec)) == {"1"}


def test_a_folder_without_audio_is_refused_until_there_is_some(
    codec: Codec, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("no audio")
    with pytest.raises(InputError, match="nothing to work on"):
        run([tmp_path / "in"], tmp_path / "out", codec)
    write_clip(tmp_path / "in/a.wav", 0.1)
    assert run([tmp_path / "in"], tmp_path / "out", codec).clips == 1


def test_settings_that_cannot_be_are_refused(codec: Codec, clips: Path, tmp_path: Path) -> None:
    for settings in (
        {"sink": "pickle"}, {"channels": "left"}, {"loudness_lufs": 3.0}, {"bandwidth_kbps": 5.0},
        {"unit_size": UnitSize(clips=0)},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"accepted|at least|kbps"):
            run([clips], tmp_path / "out", codec, **settings)
    assert not (tmp_path / "out").exists()


def test_a_part_that_begins_after_the_end_of_its_file_is_that_clips_error(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    listed = clips / "list.tsv"
    lines = ["path\tstart\tend", "speaker0/clip1.flac\t0.5\t1.25"]
    listed.write_text("\n".join([*lines, "speaker0/clip1.flac\t900\t901"]))
    summary = run([listed], tmp_path / "out", codec)
    assert summary.errors == 1
    assert list(rows_of(tmp_path / "out", codec)) == ["speaker0/clip1.flac@0.5-1.25"]
    (error,) = errors_of(tmp_path / "out").values()
    assert "the clip begins at 900 s" in error["reason"]
