"""One unit from its sources to its output: what every process runs, local or Ray's."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from encodec_rt.corpus.clips import ChannelChoice, Feed, Treatment, feeds
from encodec_rt.corpus.manifest import OutputFolder
from encodec_rt.corpus.records import Done, Tally
from encodec_rt.corpus.rows import CodesInfo, SinkContext, StoredClip
from encodec_rt.corpus.sinks import UnitWriter, open_sink
from encodec_rt.corpus.slots import Coded, clip_encoder
from encodec_rt.corpus.sources import clips_of
from encodec_rt.corpus.units import Unit
from encodec_rt.extras import needed_for
from encodec_rt.streaming.codec import Codec

with needed_for("a corpus"):
    import pyarrow as pa

OUTPUT_FAULTS = frozenset((28, 30, 122))
"""ENOSPC, EROFS, EDQUOT: later clips would fail too."""
NAME_FAULTS = frozenset((17, 20, 21))
"""EEXIST, ENOTDIR, EISDIR."""


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know, as values. ``columns`` is an Arrow schema, in base64."""

    out: str
    bandwidth_kbps: float
    sink: str = "parquet"
    channels: ChannelChoice = "mix"
    loudness_lufs: float | None = None
    strict: bool = False
    audio_column: str | None = None
    columns: str = ""

    @property
    def treatment(self) -> Treatment:
        """How clips are made ready."""
        return Treatment(self.channels, self.loudness_lufs, self.strict)


class Tokenizer:
    """Works on units with one codec: the work function."""

    def __init__(
        self, settings: Settings, codec: Codec, datasets: Mapping[str, Any] | None = None
    ) -> None:
        self._settings, self._codec = settings, codec
        self._datasets = datasets or {}
        self._out = OutputFolder(settings.out)
        self._encoder = clip_encoder(codec, settings.bandwidth_kbps)
        info = CodesInfo.of(codec, settings.bandwidth_kbps)
        self._context = SinkContext(self._out.data, info, unpacked(settings.columns), codec)

    def __call__(self, unit: Unit) -> Done:
        """Write the unit's output, and then its record. Raises OSError if that is impossible."""
        wall, cpu = time.perf_counter(), time.process_time()
        tally = Tally(self._context.info.codebooks, self._context.info.codebook_size)
        with open_sink(self._settings.sink, self._context, unit.name) as writer:
            for feed, outcome in self._in_order(unit, tally):
                _put(writer, feed, outcome, tally)
        record = tally.record(unit, writer.bytes_written, writer.files, self._out.data)
        self._out.finish(unit.index, asdict(record))
        return Done(record, time.perf_counter() - wall, time.process_time() - cpu)

    def _in_order(self, unit: Unit, tally: Tally) -> Iterator[tuple[Feed, Coded]]:
        """The clips that could be encoded, in the unit's order; the others go to ``tally``."""
        numbers: dict[int, int] = {}
        done: dict[int, tuple[Feed, Coded] | None] = {}
        following = 0
        for feed, outcome in self._encoder.encode(self._feeds(unit, tally, numbers)):
            number = numbers.pop(id(feed))
            if isinstance(outcome, Coded):
                done[number] = feed, outcome
            else:
                _failed(tally, feed, outcome)
                done[number] = None
            while following in done:
                if ready := done.pop(following):
                    yield ready
                following += 1

    def _feeds(self, unit: Unit, tally: Tally, numbers: dict[int, int]) -> Iterator[Feed]:
        count = 0
        for clip in clips_of(unit, self._datasets, self._settings.audio_column):
            try:
                opened = feeds(clip, self._settings.treatment, self._codec.config)
            except Exception as error:  # noqa: BLE001 - whatever a file's decoder raises is its own
                tally.failed(clip.id, clip.source, error)
                continue
            for feed in opened:
                numbers[id(feed)] = count
                count += 1
                yield feed


def _put(writer: UnitWriter, feed: Feed, coded: Coded, tally: Tally) -> None:
    meta = dict(feed.clip.meta)
    try:
        writer.write(StoredClip(feed.id, coded.codes, coded.samples, coded.scales, meta))
    except OSError as error:
        long = len(feed.id.encode()) >= 200
        if error.errno in OUTPUT_FAULTS or not (long or error.errno in NAME_FAULTS):
            raise
        # A name that the output's file system does not take, or that is another clip's folder.
        _failed(tally, feed, error)
        return
    tally.add(coded.codes, coded.samples, coded.silent_frames)
    if feed.warnings:
        _failed(tally, feed, "; ".join(feed.warnings), kept=True)


def _failed(tally: Tally, feed: Feed, reason: Exception | str, *, kept: bool = False) -> None:
    tally.failed(feed.id, feed.clip.source, reason, kept=kept, seconds=feed.seconds)


def packed(columns: Mapping[str, Any]) -> str:
    """Metadata columns as text."""
    schema = pa.schema([pa.field(name, kind) for name, kind in columns.items()])
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def unpacked(text: str) -> dict[str, Any]:
    """What ``packed`` made."""
    if not text:
        return {}
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
    return {one.name: one.type for one in schema}
