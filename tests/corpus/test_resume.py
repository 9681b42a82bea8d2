"""Killed at any moment and started again, a run ends in what it would have been."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from encodec_rt.audio import AudioWriter
from encodec_rt.corpus import shards, sinks
from encodec_rt.corpus.detokenizing import detokenize
from encodec_rt.corpus.manifest import STATE, OutputFolder
from encodec_rt.corpus.pool import run_units
from encodec_rt.corpus.rows import CodesInfo, SinkContext, StoredClip
from encodec_rt.corpus.sources import UnitSize
from encodec_rt.corpus.tokenizing import tokenize
from encodec_rt.corpus.units import Unit
from encodec_rt.errors import ConfigError, InputError, StateError
from encodec_rt.streaming.codec import Codec
from tests.corpus.conftest import write_clip
from tests.corpus.faults import dying
from tests.corpus.test_tokenizing import rows_of, run
from tests.support.models import random_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, codec: Codec) -> Path:
    """Clips that take a second or two, one bad file, and the model."""
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(30):
        write_clip(folder / f"in/{index % 3}/{index}.flac", 2.0 + 4 * (index % 5), seed=index)
    (folder / "in/1/bad.wav").write_text("nothing")
    codec.model.save_pretrained(folder / "model")
    return folder


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def in_a_child(corpus: Path, out: Path, codec: Codec, sink: str) -> int:
    """The process of a run that does not begin with importing torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        status = 1
        try:
            run([corpus / "in"], out, codec, sink=sink, unit_size=UnitSize(clips=2))
            status = 0
        finally:
            os._exit(status)
    return pid


@pytest.mark.parametrize("sink", ["parquet", "npz"])
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes(
    corpus: Path, tmp_path: Path, codec: Codec, sink: str
) -> None:
    began = time.monotonic()
    run([corpus / "in"], tmp_path / "whole", codec, sink=sink, unit_size=UnitSize(clips=2))
    took = time.monotonic() - began
    rng = np.random.default_rng(len(sink))
    killed = 0
    for _ in range(8):
        pid = in_a_child(corpus, tmp_path / "out", codec, sink)
        time.sleep(float(rng.uniform(0, took / 2)))
        os.kill(pid, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert killed
    pid = in_a_child(corpus, tmp_path / "out", codec, sink)
    assert os.waitpid(pid, 0)[1] == 0
    wanted, found = contents(tmp_path / "whole"), contents(tmp_path / "out")
    assert set(found) == set(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert len(rows_of(tmp_path / "out", codec)) == 30


def test_two_processes_end_with_the_run_and_what_they_did_stays(
    corpus: Path, tmp_path: Path, codec: Codec
) -> None:
    """The command is killed; ``benches.corpus`` does so at twenty moments."""
    kbps = str(codec.config.target_bandwidths[-1])
    arguments = ["tokenize", corpus / "in", "--out", tmp_path / "out", "--model", corpus / "model"]
    arguments += ["-b", kbps, "-j", "2", "--shard-clips", "2", "--format", "npz"]
    process = subprocess.Popen(
        [sys.executable, "-m", "encodec_rt", *map(str, arguments)], cwd=ROOT, start_new_session=True
    )
    deadline = time.monotonic() + 100
    while not list((tmp_path / "out").rglob("*.npz")):
        time.sleep(0.02)
        assert time.monotonic() < deadline
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(20)
    assert len(workers) >= 2
    while any(map(alive, workers)):
        time.sleep(0.02)
        assert time.monotonic() < deadline
    settings = {"sink": "npz", "unit_size": UnitSize(clips=2)}
    run([corpus / "in"], tmp_path / "out", codec, **settings)
    run([corpus / "in"], tmp_path / "whole", codec, **settings)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(one) for one in text.split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize(("order", "kind", "said"), [
    ("die", StateError, "killed by SIGKILL.*part-000002.*run the same command again"),
    ("raise", InputError, "bad unit"),
])  # fmt: skip
def test_what_ends_a_worker_is_named(order: str, kind: type[Exception], said: str) -> None:
    units = [Unit(index, "files") for index in range(4)]
    with pytest.raises(kind, match=said):
        list(run_units(dying, (order,), units, 2))


@pytest.fixture
def done(codec: Codec, clips: Path, tmp_path: Path) -> Path:
    run([clips], tmp_path / "out", codec)
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bandwidth_kbps": 0}, "bandwidth_kbps"),
        ({"sink": "npz"}, 'sink "parquet", but this run has "npz"'),
        ({"channels": "each"}, "channels"),
        ({"loudness_lufs": -23.0}, "loudness_lufs null, but this run has -23.0"),
        ({"strict": True}, "strict"),
        ({"dedup": True}, "dedup"),
        ({"unit_size": UnitSize(clips=5)}, "unit.clips 3, but this run has 5"),
    ],
)
def test_another_setting_is_not_mixed_in(
    codec: Codec, clips: Path, done: Path, settings: dict[str, Any], said: str
) -> None:
    before = contents(done)
    if "bandwidth_kbps" in settings:
        settings = {"bandwidth_kbps": codec.config.target_bandwidths[0]}
    with pytest.raises(ConfigError, match=said):
        run([clips], done, codec, **settings)
    assert contents(done) == before


def test_other_weights_are_not_mixed_in(clips: Path, done: Path, codec: Codec) -> None:
    other = Codec(random_model(codec.config, seed=1), backend="cpu")
    with pytest.raises(ConfigError, match=r"codes\.codes_sha256"):
        run([clips], done, other)


def test_a_corpus_that_changed_is_named(codec: Codec, clips: Path, done: Path) -> None:
    changes: list[tuple[Callable[[], object], str | None]] = [
        (lambda: write_clip(clips / "speaker0/clip1b.flac", 0.1), "clip1b.flac was added"),
        (lambda: (clips / "speaker0/clip1b.flac").unlink(), None),
        (lambda: os.utime(clips / "speaker1/clip0.flac", ns=(1, 1)), "clip0.flac was changed"),
        (lambda: (clips / "speaker0/clip0.wav").unlink(), "speaker0/clip0.wav was removed"),
    ]
    for change, said in changes:
        change()
        if said is None:
            run([clips], done, codec)
            continue
        with pytest.raises(InputError, match=said):
            run([clips], done, codec)


def test_a_file_that_changes_while_the_run_goes_on_is_an_error_of_its_own(
    codec: Codec, clips: Path, tmp_path: Path
) -> None:
    names = sorted(str(path) for path in clips.rglob("*.*"))

    def change(progress: Any) -> None:
        if not progress.finished:
            os.utime(names[-1], ns=(1, 1))
            os.unlink(names[-2])

    summary = run([clips], tmp_path / "out", codec, on_progress=change)
    assert summary.errors == 2


def test_two_runs_do_not_write_to_one_folder(codec: Codec, clips: Path, done: Path) -> None:
    with OutputFolder(done).locked(), pytest.raises(StateError, match="another run"):
        run([clips], done, codec)


def test_a_folder_of_other_things_is_left_alone(codec: Codec, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("\\begin{document}")
    with pytest.raises(InputError, match="is not empty and holds no corpus"):
        run([clips], tmp_path / "out", codec)
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]


@pytest.mark.parametrize("manifest", ['{"name": "a web page"}', '{"a": 1}\n{"a": 2}\n'])
def test_a_manifest_of_another_program_is_no_corpus(
    codec: Codec, clips: Path, tmp_path: Path, manifest: str
) -> None:
    other = tmp_path / "other"
    (other / "codes").mkdir(parents=True)
    (other / "manifest.json").write_text(manifest)
    (other / ".download.part").write_text("half of something")
    with pytest.raises(InputError, match="is not empty and holds no corpus"):
        run([clips], other, codec)
    assert sorted(os.listdir(other)) == [".download.part", "codes", "manifest.json"]
    np.save(other / "codes/one.npy", np.zeros((3, 4), np.uint16))
    for number, given in enumerate((other, other / "codes")):
        out = tmp_path / f"audio{number}"
        assert detokenize([given], out, codec=codec, jobs=1).clips == 1


@pytest.mark.parametrize("sink", ["parquet", "webdataset"])
@pytest.mark.parametrize("left", [None, 0, 100])
def test_a_shard_that_was_taken_away_or_cut_is_made_again(
    codec: Codec, clips: Path, tmp_path: Path, sink: str, left: int | None
) -> None:
    size, said = UnitSize(clips=3), list[str]()
    run([clips], tmp_path / "out", codec, sink=sink, unit_size=size)
    before = contents(tmp_path / "out")
    (path,) = (tmp_path / "out/data").glob("part-000001.*")
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:left])
    run([clips], tmp_path / "out", codec, sink=sink, unit_size=size, on_remark=said.append)
    assert contents(tmp_path / "out") == before
    assert "files of 1 shard in" in said[0]
    run([clips], tmp_path / "out", codec, sink=sink, unit_size=size, on_remark=said.append)
    assert len(said) == 1


@pytest.mark.parametrize("sink", ["npy", "npz", "ecdc", "encodec"])
def test_a_clip_whose_file_was_taken_away_is_made_again(
    codec: Codec, clips: Path, tmp_path: Path, sink: str
) -> None:
    size, said = UnitSize(clips=3), list[str]()
    run([clips], tmp_path / "out", codec, sink=sink, unit_size=size)
    before = contents(tmp_path / "out")
    files = sorted(path for path in (tmp_path / "out/data").rglob("*") if path.is_file())
    files[0].unlink()
    files[-1].write_bytes(files[-1].read_bytes()[:-1])
    run([clips], tmp_path / "out", codec, sink=sink, unit_size=size, on_remark=said.append)
    assert contents(tmp_path / "out") == before
    assert "files of 2 shards in" in said[0]
    run([clips], tmp_path / "out", codec, sink=sink, unit_size=size, on_remark=said.append)
    assert len(said) == 1


def test_audio_that_was_taken_away_is_made_again(codec: Codec, clips: Path, tmp_path: Path) -> None:
    said = list[str]()
    run([clips], tmp_path / "codes", codec)
    detokenize([tmp_path / "codes"], tmp_path / "out", codec=codec, jobs=1)
    before = contents(tmp_path / "out")
    next((tmp_path / "out/data").rglob("*.wav")).unlink()
    detokenize([tmp_path / "codes"], tmp_path / "out", codec=codec, jobs=1, on_remark=said.append)
    assert contents(tmp_path / "out") == before
    assert "files of 1 shard in" in said[0]


def test_an_output_inside_the_corpus_is_not_part_of_it(codec: Codec, clips: Path) -> None:
    first = run([clips], clips / "codes", codec, sink="webdataset")
    again = run([clips], clips / "codes", codec, sink="webdataset")
    assert first.clips == again.clips


@pytest.mark.parametrize(
    ("sink", "writer"),
    [
        ("parquet", shards.ParquetWriter),
        ("webdataset", shards.TarWriter),
        ("npz", sinks.FileWriter),
    ],
)
def test_a_full_disk_ends_the_run_and_leaves_nothing_half_written(
    codec: Codec,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sink: str,
    writer: type[Any],
) -> None:
    whole = run([clips], tmp_path / "whole", codec, sink=sink)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write", full_after(4, writer.write))
        with pytest.raises(OSError, match="No space left"):
            run([clips], tmp_path / "out", codec, sink=sink)
    files = [path for path in (tmp_path / "out/data").rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert (
            path.read_bytes()
            == (tmp_path / "whole" / path.relative_to(tmp_path / "out")).read_bytes()
        )
    assert run([clips], tmp_path / "out", codec, sink=sink).as_json() == whole.as_json()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_ends_decoding_and_leaves_nothing_half_written(
    codec: Codec, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run([clips], tmp_path / "codes", codec)
    codes = [tmp_path / "codes"]
    whole = detokenize(codes, tmp_path / "whole", codec=codec, jobs=1)
    with monkeypatch.context() as patch:
        patch.setattr(AudioWriter, "write", full_after(6, AudioWriter.write))
        with pytest.raises(OSError, match="No space left"):
            detokenize(codes, tmp_path / "out", codec=codec, jobs=1)
    assert not list((tmp_path / "out").rglob("*.part"))
    assert detokenize(codes, tmp_path / "out", codec=codec, jobs=1).as_json() == whole.as_json()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("writer", "inner"), [(shards.ParquetWriter, "_writer"), (shards.TarWriter, "_tar")]
)
def test_a_disk_that_is_full_at_the_end_of_a_shard_is_named(
    codec: Codec, tmp_path: Path, writer: type[Any], inner: str
) -> None:
    info = CodesInfo.of(codec, codec.config.target_bandwidths[-1])
    rows = writer(SinkContext(tmp_path, info, {}, codec), "part")
    with rows:
        rows.write(StoredClip("a", np.zeros((3, 4), np.uint16), 24))
    whole = [path.read_bytes() for path in tmp_path.iterdir()]
    rows = writer(SinkContext(tmp_path, info, {}, codec), "part").__enter__()
    full = SimpleNamespace(close=full_after(0, None), write_table=lambda _: None)
    setattr(rows, inner, full)
    with pytest.raises(OSError, match=r"No space left.*part"):
        rows.__exit__(None, None, None)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == whole


def full_after(count: int, write: Any) -> Any:
    """``write``, until the disk is full after so many calls."""
    left = count

    def fill(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments)

    return fill


def test_an_output_that_cannot_be_written_is_named(codec: Codec, clips: Path) -> None:
    with pytest.raises(OSError, match="/proc"):
        tokenize([clips], "/proc/nowhere", codec=codec, bandwidth_kbps=0.404, jobs=1)


def test_a_damaged_state_is_named(codec: Codec, clips: Path, done: Path) -> None:
    record = next((done / STATE / "units").rglob("*.json"))
    held = record.read_text()
    record.write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        run([clips], done, codec)
    record.write_text(held)
    (done / "manifest.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="is damaged"):
        run([clips], done, codec)
