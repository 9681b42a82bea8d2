"""A summary of a corpus: a table, a picture, and a file of its errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from encodec_rt.atomic import replacing
from encodec_rt.corpus.records import Failure, UnitRecord
from encodec_rt.corpus.rows import CodesInfo
from encodec_rt.corpus.statistics import CodeCounts, Counts, book_uses, uses_as_json
from encodec_rt.extras import needed_for

with needed_for("a corpus"):
    import pyarrow as pa
    import pyarrow.parquet as pq

ERRORS = "errors.parquet"
DUPLICATES = "duplicates.parquet"
SUMMARY = "summary.json"
PICTURE = "codebooks.png"
_ROWS_AT_ONCE = 10_000
_ERRORS = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("kept", pa.bool_()),
        pa.field("seconds_decoded", pa.float64()),
    ]
)
_DUPLICATES = pa.schema([pa.field("id", pa.string()), pa.field("same_as", pa.string())])


@dataclass
class Summary:
    """The sums over all units of a corpus; ``errors`` counts the rows of errors.parquet.

    ``verified`` is the result of checking a sample, or None.
    """

    info: CodesInfo
    units: int = 0
    clips: int = 0
    frames: int = 0
    samples: int = 0
    silent_frames: int = 0
    bytes: int = 0
    errors: int = 0
    duplicates: int = 0
    left_out: int = 0
    counts: Counts = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    verified: dict[str, Any] | None = None

    @property
    def hours(self) -> float:
        """Hours of audio."""
        return self.samples / self.info.sampling_rate / 3600

    def as_json(self) -> dict[str, Any]:
        """All of it for JSON."""
        verified = {} if self.verified is None else {"verified": self.verified}
        return {
            "units": self.units,
            "clips": self.clips,
            "hours": round(self.hours, 6),
            "frames": self.frames,
            "samples": self.samples,
            "bytes": self.bytes,
            "silent_share": round(self.silent_frames / max(1, self.frames), 6),
            "errors": self.errors,
            "duplicates": self.duplicates,
            "left_out": self.left_out,
            "codebooks": uses_as_json(self.counts),
            **verified,
        }


def summarise(
    records: Iterable[UnitRecord], info: CodesInfo, folder: Path, *, left_out: int = 0
) -> Summary:
    """Sum the records of all units up, and write errors.parquet and duplicates.parquet."""
    summary = Summary(info, left_out=left_out)
    counts = CodeCounts(info.codebooks, info.codebook_size)
    with (
        _Rows(folder / ERRORS, _ERRORS) as errors,
        _Rows(folder / DUPLICATES, _DUPLICATES) as twins,
    ):
        for record in records:
            summary.units += 1
            summary.clips += record.clips
            summary.frames += record.frames
            summary.samples += record.samples
            summary.silent_frames += record.silent_frames
            summary.bytes += record.bytes
            counts.add_text(record.counts)
            errors.write([_error_row(one) for one in record.failures])
            twins.write([{"id": one, "same_as": other} for one, other in record.duplicates])
    summary.errors, summary.duplicates = errors.count, twins.count
    summary.counts = counts.counts
    return summary


def draw(summary: Summary, path: Path) -> None:
    """A PNG of how each codebook is used. Raises BackendUnavailable without matplotlib."""
    with needed_for("the picture"):
        from matplotlib.figure import Figure

    uses = book_uses(summary.counts)
    books = np.arange(1, len(uses) + 1)
    best = float(np.log2(summary.info.codebook_size))
    figure = Figure(figsize=(9, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.bar(books, [100 * use.used_share for use in uses], color="#3b6fb6")
    top.set(ylabel="entries used, %", ylim=(0, 100))
    bottom.bar(books, [use.entropy_bits for use in uses], color="#e08a3c")
    bottom.axhline(best, color="#b02a2a", linestyle="--", linewidth=1.2)
    bottom.set(
        ylabel="entropy, bits per code", xlabel="codebook", xticks=books, ylim=(0, best * 1.1)
    )
    bits = sum(use.entropy_bits for use in uses) * summary.info.sampling_rate
    kbps = bits / summary.info.hop_length / 1000
    figure.suptitle(
        f"{summary.hours:.3g} h, {summary.frames} frames at {summary.info.bandwidth_kbps:g} kbps; "
        f"entropy {kbps:.2f} kbps"
    )
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
    with replacing(path, force=True) as part:
        figure.savefig(part, dpi=110, format="png", metadata={"Software": None})


def _error_row(one: Failure) -> dict[str, Any]:
    return {
        "id": one.id,
        "source": one.source,
        "reason": one.reason,
        "kept": one.kept,
        "seconds_decoded": one.seconds,
    }


class _Rows:
    """A Parquet file of rows, of which about a thousand are held in memory.

    Without any row no file is written, and an old one is removed.
    """

    def __init__(self, path: Path, schema: Any) -> None:
        self.count = 0
        self._path, self._schema = path, schema
        self._rows: list[dict[str, Any]] = []
        self._part: Any = None
        self._writer: Any = None

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *exception: Any) -> None:
        if exception[0] is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()
            self._file.close()
            self._part.__exit__(*exception)
        elif exception[0] is None:
            self._path.unlink(missing_ok=True)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows += rows
        self.count += len(rows)
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            self._part = replacing(self._path, force=True)
            # As for codes: pyarrow opens no name that is not UTF-8.
            self._file = self._part.__enter__().open("wb")
            self._writer = pq.ParquetWriter(self._file, self._schema)
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []
