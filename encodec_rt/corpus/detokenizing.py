"""A corpus of codes back to audio."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from encodec_rt.atomic import naming
from encodec_rt.audio import OUTPUT_FORMATS, AudioWriter
from encodec_rt.bitstream.ecdc import Block, segments
from encodec_rt.corpus.job import JobRunner, RunProgress, begin, environment, keep_summary
from encodec_rt.corpus.manifest import OutputFolder
from encodec_rt.corpus.rows import CodesInfo, StoredClip
from encodec_rt.corpus.slots import SilenceMeter
from encodec_rt.corpus.sources import UnitSize, expanded, labelled
from encodec_rt.corpus.statistics import CodeCounts
from encodec_rt.corpus.stored import code_files, info_of, read_rows
from encodec_rt.corpus.summary import Summary, summarise
from encodec_rt.corpus.units import FileEntry, Unit, as_id, as_text, state_of
from encodec_rt.corpus.work import OUTPUT_FAULTS, Done, Failure, UnitRecord, told
from encodec_rt.errors import ConfigError, InputError
from encodec_rt.streaming.codec import Codec
from encodec_rt.transcode import bandwidth_for, decode_blocks

_SHARDS = (".parquet", ".tar")


@dataclass(frozen=True)
class DecodeSettings:
    """What a worker needs to know. ``codebooks`` None decodes all that a clip has."""

    out: str
    suffix: str
    codebooks: int | None


def detokenize(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    codec: Codec | None = None,
    audio_format: str = "wav",
    bandwidth_kbps: float | None = None,
    unit_size: UnitSize | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    on_progress: Callable[[RunProgress], None] = lambda _: None,
    on_remark: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Decode every clip of the codes in ``inputs`` into audio files in the folder ``out``.

    ``inputs`` are what ``tokenize`` made: its folders, or any of its files. ``bandwidth_kbps``
    leaves out the codebooks beyond it. All else is as in ``tokenize``. Raises CodecError, and
    OSError where ``out`` cannot be written.
    """
    codec = codec or Codec.load("default")
    config, suffix = codec.config, f".{audio_format.lower().lstrip('.')}"
    if suffix not in OUTPUT_FORMATS:
        accepted = ", ".join(known.lstrip(".") for known in OUTPUT_FORMATS)
        raise ConfigError(f"format {audio_format!r}; accepted: {accepted}")
    books = None if bandwidth_kbps is None else config.codebooks_for(bandwidth_kbps)
    runner = JobRunner(jobs, ray, on_progress, on_remark)
    settings = DecodeSettings(os.path.abspath(out), suffix, books)
    size = unit_size or UnitSize()
    size.check()
    paths = labelled([os.path.abspath(path) for path in expanded(inputs)])
    if not paths:
        raise InputError("there are no inputs; give folders or files of codes")
    manifest = {
        **environment(codec),
        "decodes": True,
        "weights_sha256": codec.weights_sha256,
        "audio_format": suffix,
        "codebooks": books,
        "inputs": [path for path, _ in paths],
        "unit": {"clips": size.clips, "mib": size.mib},
    }
    folder = OutputFolder(out)
    with folder.locked():
        count = begin(folder, manifest, _planned(paths, size))
        runner.run(folder, count, Detokenizer, (settings, codec), codec)
        records = map(UnitRecord.from_json, folder.records())
        info = CodesInfo.of(codec, config.target_bandwidths[-1])
        summary = summarise(records, info, folder.path)
        keep_summary(folder, summary)
    return summary


class Detokenizer:
    """Works on units with one codec."""

    def __init__(self, settings: DecodeSettings, codec: Codec) -> None:
        self._settings, self._codec = settings, codec
        self._out = OutputFolder(settings.out)

    def __call__(self, unit: Unit) -> Done:
        """Write the audio of a unit, and then its record."""
        wall, cpu = time.perf_counter(), time.process_time()
        config = self._codec.config
        counts = CodeCounts(config.num_quantizers, config.codebook_size)
        failures: list[Failure] = []
        clips = frames = samples = silent = size = 0
        for label, row in self._rows(unit, failures):
            name = f"{label}/{row.id}" if label else row.id
            try:
                given = row.codes[:, : self._settings.codebooks]
                made = self._decode(name, StoredClip(name, given, row.samples, row.scales))
            except Exception as error:
                if isinstance(error, OSError) and error.errno in OUTPUT_FAULTS:
                    raise
                failures.append(Failure(name, unit.source, told(error), False, 0.0))
                continue
            counts.add(given)
            clips, frames = clips + 1, frames + len(given)
            samples, silent, size = samples + made[0], silent + made[1], size + made[2]
        record = UnitRecord(
            unit.index, clips, frames, samples, silent, size, counts.to_text(), failures
        )
        self._out.finish(unit.index, asdict(record))
        return Done(record, time.perf_counter() - wall, time.process_time() - cpu)

    def _rows(self, unit: Unit, failures: list[Failure]) -> Iterator[tuple[str, StoredClip]]:
        entries = unit.files or (FileEntry(unit.label, unit.source, unit.size, unit.mtime_ns),)
        for entry in entries:
            try:
                if state_of(entry.path) != (entry.size, entry.mtime_ns):
                    raise InputError("the file has changed since the run began")
                info = info_of(Path(entry.path))
                if info is not None:
                    info.check(self._codec)
                for row in read_rows(Path(entry.path), self._codec.config):
                    # A file of one clip is called what its name says.
                    yield ("", _renamed(row, entry.id)) if unit.files else (entry.id, row)
            except Exception as error:  # noqa: BLE001 - whatever a file's reader raises is its own
                failures.append(Failure(entry.id, as_text(entry.path), told(error), False, 0.0))

    def _decode(self, name: str, row: StoredClip) -> tuple[int, int, int]:
        """(samples, silent frames, bytes) of the audio of a row, now in a file."""
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts or not parts:
            raise InputError(f"the id {name!r} leads out of the folder")
        config, suffix = self._codec.config, self._settings.suffix
        path = self._out.data / (name if name.endswith(suffix) else name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        silence = SilenceMeter(config.hop_length)
        books = row.codes.shape[1]
        bandwidth_for(config, books)
        writer = AudioWriter(
            path, rate_hz=config.sampling_rate, channels=config.audio_channels, force=True
        )
        with naming(path), writer:
            for pcm in decode_blocks(self._codec, _blocks(row, self._codec), codebooks=books):
                silence.add(pcm)
                writer.write(pcm)
        return writer.samples, silence.frames, path.stat().st_size


def _renamed(row: StoredClip, name: str) -> StoredClip:
    return StoredClip(name, row.codes, row.samples, row.scales)


def _blocks(row: StoredClip, codec: Codec) -> Iterator[Block]:
    """A row as its segments, or as one block."""
    config = codec.config
    samples = len(row.codes) * config.hop_length if row.samples is None else row.samples
    if not codec.segmented:
        if len(row.codes) != -(-samples // config.hop_length) or not samples:
            raise InputError(f"{len(row.codes)} frames for {samples} samples; the row is damaged")
        yield Block(row.codes, None, samples)
        return
    if row.samples is None:
        raise InputError("codes of segments without their number of samples; use another format")
    at = 0
    for index, (length, frames) in enumerate(segments(config, samples)):
        scale = row.scales[index] if config.normalize else None
        yield Block(row.codes[at : at + frames], scale, length)
        at += frames


def _planned(paths: Sequence[tuple[str, str]], size: UnitSize) -> Iterator[Unit]:
    """A unit for each shard, and for some files of a clip each."""
    index, entries = 0, list[FileEntry]()
    for path, label in paths:
        for file in code_files(path):
            base = _base(Path(path))
            inside = str(file.relative_to(base)) if os.path.isdir(path) else ""
            name = as_id("/".join(part for part in (label, inside) if part))
            state = state_of(str(file))
            if file.suffix in _SHARDS:
                stem = as_id(label) if inside else ""
                yield Unit(index, "codes", str(file), stem, size=state[0], mtime_ns=state[1])
                index += 1
                continue
            entries.append(FileEntry(name.removesuffix(file.suffix), str(file), *state))
            if len(entries) >= size.clips:
                yield Unit(index, "codes", files=tuple(entries))
                index, entries = index + 1, []
    if entries:
        yield Unit(index, "codes", files=tuple(entries))


def _base(path: Path) -> Path:
    """The folder that names are relative to: a corpus has its codes in one of its own."""
    return path / "data" if (path / "data").is_dir() else path
