"""WebDataset: a tar whose neighbouring members of one key make a sample."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, BinaryIO, NoReturn, cast

from encodec_rt.corpus.clips import CorpusClip
from encodec_rt.corpus.lists import META
from encodec_rt.corpus.units import Unit, as_id
from encodec_rt.errors import InputError
from encodec_rt.suffixes import AUDIO_SUFFIXES

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SPOOL_BYTES = 1 << 24
"""Of a member, as much is held in memory; a longer one lies in a temporary file."""
TEXTS = (".json", ".txt", ".cls", ".text")
"""Members of a sample that become its metadata."""


def tar_clips(unit: Unit) -> Iterator[CorpusClip]:
    """The audio of a tar in its order; the texts of its sample are its ``meta``, as JSON.

    A key that reappears after others, a name that leads outside the folder, and a tar that ends in
    the middle are each a clip that cannot be opened.
    """
    seen: set[str] = set()
    position = 0
    try:
        for sample in samples(unit.source):
            position += 1
            for suffix, spool in sample.audio:
                name = f"{as_id(sample.key)}.{suffix}"
                source = f"{unit.source}, {name}"
                if problem := _problem(sample.key, seen):
                    name = f"{unit.label}/sample {position}"
                    yield CorpusClip(name, source, refusing(f"{source}: {problem}"))
                    continue
                meta = {META: json.dumps(sample.meta, sort_keys=True)} if sample.meta else {}
                yield CorpusClip(f"{unit.label}/{name}", source, spool.open, meta=meta)
            seen.add(sample.key)
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = f"{unit.source} cannot be read beyond sample {position}: {error}"
        yield CorpusClip(f"{unit.label}/after sample {position}", unit.source, refusing(reason))


def refusing(reason: str) -> Callable[[], NoReturn]:
    """An ``open`` that raises InputError."""

    def refuse() -> NoReturn:
        raise InputError(reason)

    return refuse


@dataclass
class Sample:
    """What neighbouring members of one key hold: audio by suffix, and texts."""

    key: str
    audio: list[tuple[str, Spool]] = field(default_factory=list)
    meta: dict[str, object] = field(default_factory=dict)
    others: dict[str, bytes] = field(default_factory=dict)


def samples(path: str, others: tuple[str, ...] = ()) -> Iterator[Sample]:
    """The samples of a tar; members that end in one of ``others`` are held whole.

    Raises TarError, EOFError and OSError after the last sample that could be read.
    """
    sample: Sample | None = None
    try:
        with tarfile.open(path, "r|*", tarinfo=_Member, errorlevel=1) as tar:
            for member in tar:
                if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
                    continue
                key, suffix = _split(member.name)
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield sample
                    sample = Sample(key)
                file = cast("IO[bytes]", tar.extractfile(member))
                _add(sample, suffix, member.size, file, others)
    except (tarfile.TarError, EOFError, OSError):
        if sample is not None and sample.audio:
            yield sample
        raise
    if sample is not None:
        yield sample


class Spool:
    """A member's bytes, taken out of the tar, to be opened as often as is needed."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        """Raises EOFError where there are fewer than ``size``."""
        self.file = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115, closed with self
        weakref.finalize(self, self.file.close)
        shutil.copyfileobj(file, self.file, 1 << 20)
        if self.file.tell() != size:
            raise EOFError("a member is cut short")

    def open(self) -> BinaryIO:
        """A reader with a position of its own."""
        return cast("BinaryIO", _SpoolView(self))


class _SpoolView:
    def __init__(self, spool: Spool) -> None:
        self._spool, self._file, self._at = spool, spool.file, 0

    def read(self, size: int = -1) -> bytes:
        self._file.seek(self._at)
        data = self._file.read(size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._file.seek(self._at)
        self._file.seek(offset, whence)
        self._at = self._file.tell()
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        """Does nothing: the bytes are freed with their last reader."""


class _Member(tarfile.TarInfo):
    """A header; one that is damaged is an error, where tarfile takes it for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            reason = str(error)
            if reason == "empty header":
                reason = "it has no end mark, so it may have been cut short"
            raise tarfile.ReadError(reason) from error


def _split(name: str) -> tuple[str, str]:
    """The key and the suffix of a member: what is before and after the first dot of its name."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix


def _add(sample: Sample, suffix: str, size: int, file: IO[bytes], others: tuple[str, ...]) -> None:
    ending = "." + suffix.rpartition(".")[2].lower()
    if others and suffix.endswith(others):
        sample.others[suffix] = file.read()
    elif ending in AUDIO_SUFFIXES:
        sample.audio.append((suffix, Spool(file, size)))
    elif ending in TEXTS:
        text = file.read().decode("utf-8", "replace")
        sample.meta[suffix] = _as_json(text) if ending == ".json" else text.strip()


def _problem(key: str, seen: set[str]) -> str | None:
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in path.parts:
        return "the name leads outside the folder"
    if key in seen:
        return "its key came before; the members of a sample must be neighbours"
    return None


def _as_json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
