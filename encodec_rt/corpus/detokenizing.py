"""A corpus of codes back to audio."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from encodec_rt.atomic import naming
from encodec_rt.audio import OUTPUT_FORMATS, AudioWriter
from encodec_rt.bitstream.ecdc import Block, segments
from encodec_rt.corpus.decoding_plan import decoding_units, with_replaced
from encodec_rt.corpus.decoding_queue import DecodingQueue, decodes_in_slots
from encodec_rt.corpus.job import JobRunner, RunProgress, begin, environment, keep_summary
from encodec_rt.corpus.labels import expanded, labelled
from encodec_rt.corpus.manifest import OutputFolder
from encodec_rt.corpus.records import Done, Tally, UnitRecord
from encodec_rt.corpus.rows import CodesInfo, StoredClip
from encodec_rt.corpus.sources import UnitSize
from encodec_rt.corpus.statistics import SilenceMeter
from encodec_rt.corpus.stored import info_of, read_rows
from encodec_rt.corpus.summary import Summary, summarise
from encodec_rt.corpus.units import FileEntry, Unit, state_of
from encodec_rt.corpus.work import OUTPUT_FAULTS
from encodec_rt.errors import CodecError, ConfigError, InputError
from encodec_rt.streaming.codec import Codec
from encodec_rt.transcode import bandwidth_for, decode_blocks
from encodec_rt.types import Audio


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
    drops the codebooks beyond it. Everything else is as in ``tokenize``. Raises CodecError, and
    OSError if ``out`` cannot be written.
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
        count = begin(folder, manifest, decoding_units(paths, size))
        runner.run(folder, count, Detokenizer, (settings, codec), codec)
        records = map(UnitRecord.from_json, folder.records())
        info = CodesInfo.of(codec, config.target_bandwidths[-1])
        summary = summarise(with_replaced(records, folder.units()), info, folder.path)
        # The codes may have fewer codebooks than the model.
        used = max(1, int(summary.counts.any(axis=1).sum()))
        summary.counts = summary.counts[:used]
        summary.info = CodesInfo.of(codec, bandwidth_for(config, used))
        keep_summary(folder, summary)
    return summary


class Detokenizer:
    """Works on units with one codec."""

    def __init__(self, settings: DecodeSettings, codec: Codec) -> None:
        self._settings, self._codec = settings, codec
        self._out = OutputFolder(settings.out)
        self._queue = DecodingQueue[_Item](codec) if decodes_in_slots(codec) else None

    def __call__(self, unit: Unit) -> Done:
        """Write the audio of a unit, and then its record."""
        wall, cpu = time.perf_counter(), time.process_time()
        config = self._codec.config
        tally = Tally(config.num_quantizers, config.codebook_size)
        opened: set[_Item] = set()
        files: dict[Path, int] = {}
        try:
            for clip, outcome in self._decoded(self._clips(unit, tally, opened)):
                opened.discard(clip)
                try:
                    if isinstance(outcome, Exception):
                        raise outcome
                    files[clip.path] = clip.finish()
                except Exception as error:
                    clip.drop()
                    if isinstance(error, OSError) and error.errno in OUTPUT_FAULTS:
                        raise
                    tally.failed(clip.name, unit.source, error)
                    continue
                tally.add(clip.codes, clip.samples, clip.silence.frames)
        finally:
            for clip in opened:
                clip.drop()
        os.sync()
        record = tally.record(unit, sum(files.values()), files, self._out.data)
        self._out.finish(unit.index, asdict(record))
        return Done(record, time.perf_counter() - wall, time.process_time() - cpu)

    def _decoded(self, clips: Iterator[_Item]) -> Iterator[tuple[_Item, Exception | None]]:
        """Each clip once all of its audio is written, or with what was wrong with it."""
        if self._queue is None:
            for clip in clips:
                yield clip, self._decode_alone(clip)
            return
        short: list[_Item] = []
        for clip, outcome in self._queue.decode(self._long_enough(clips, short)):
            yield clip, outcome if isinstance(outcome, Exception) else None
            while short:
                yield (clip := short.pop()), self._decode_alone(clip)
        while short:
            yield (clip := short.pop()), self._decode_alone(clip)

    def _long_enough(self, clips: Iterator[_Item], short: list[_Item]) -> Iterator[_Item]:
        assert self._queue is not None
        for clip in clips:
            if self._queue.takes(clip.codes):
                yield clip
            else:
                short.append(clip)

    def _decode_alone(self, clip: _Item) -> Exception | None:
        books = clip.codes.shape[1]
        try:
            for pcm in decode_blocks(self._codec, _blocks(clip.row, self._codec), codebooks=books):
                clip.write(pcm)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a row is its own
            return error
        return None

    def _clips(self, unit: Unit, tally: Tally, opened: set[_Item]) -> Iterator[_Item]:
        """The clips of a unit."""
        taken: set[Path] = set()
        for label, row in self._rows(unit, tally):
            name = f"{label}/{row.id}" if label else row.id
            given = StoredClip(
                name, row.codes[:, : self._settings.codebooks], row.samples, row.scales
            )
            try:
                path = self._path(name)
                if path in taken:
                    raise InputError(f"another clip of this file has the id {name!r} too")
                clip = _Item(given, self._codec, path)
                taken.add(path)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with a row is its own
                tally.failed(name, unit.source, error)
                continue
            opened.add(clip)
            yield clip

    def _path(self, name: str) -> Path:
        """Where a clip's audio goes. Raises InputError for an id that is not a valid name."""
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts or not parts or "\0" in name:
            raise InputError(f"the id {name!r} leads outside the folder, or is not a file name")
        suffix = self._settings.suffix
        return self._out.data / (name if name.endswith(suffix) else name + suffix)

    def _rows(self, unit: Unit, tally: Tally) -> Iterator[tuple[str, StoredClip]]:
        entries = unit.files or (FileEntry(unit.label, unit.source, unit.size, unit.mtime_ns),)
        for entry in entries:
            try:
                if state_of(entry.path) != (entry.size, entry.mtime_ns):
                    raise InputError("the file has changed since the run began")
                info = info_of(Path(entry.path))
                if info is not None:
                    info.check(self._codec)
                for row in read_rows(Path(entry.path), self._codec.config):
                    # A file with a single clip keeps its name.
                    yield ("", replace(row, id=entry.id)) if unit.files else (entry.id, row)
            except Exception as error:  # noqa: BLE001 - whatever a file's reader raises is its own
                tally.failed(entry.id, entry.path, error)


class _Item:
    """A row on its way to a file, which appears once it is finished.

    Raises InputError and PacketError for a row that cannot be decoded.
    """

    def __init__(self, row: StoredClip, codec: Codec, path: Path) -> None:
        self.row, self.name, self.codes = row, row.id, row.codes
        for _ in _blocks(row, codec):
            pass
        hop = codec.config.hop_length
        self.samples = len(row.codes) * hop if row.samples is None else row.samples
        self.silence = SilenceMeter(hop)
        bandwidth_for(codec.config, row.codes.shape[1])
        self.path, self._config = path, codec.config
        self._writer: AudioWriter | None = None

    def write(self, pcm: Audio) -> None:
        """Append audio [channels, n]."""
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            rate_hz, channels = self._config.sampling_rate, self._config.audio_channels
            with naming(self.path):
                self._writer = AudioWriter(
                    self.path, rate_hz=rate_hz, channels=channels, force=True
                ).__enter__()
        self.silence.add(pcm)
        with naming(self.path):
            self._writer.write(pcm)

    def finish(self) -> int:
        """Give the file its name -> its bytes."""
        assert self._writer is not None, "a clip has at least one frame"
        writer, self._writer = self._writer, None
        with naming(self.path):
            writer.__exit__(None, None, None)
        return self.path.stat().st_size

    def drop(self) -> None:
        """Remove an unfinished file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError, CodecError):
                writer.__exit__(InputError, InputError("dropped"), None)


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
