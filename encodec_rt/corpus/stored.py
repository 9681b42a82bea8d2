"""Reading codes back from what the sinks write, a row at a time."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from encodec_rt.bitstream.coding import coder_for
from encodec_rt.bitstream.container_reader import CodeBlock, PacketReader, read_codes
from encodec_rt.bitstream.ecdc import EcdcReader, read_header
from encodec_rt.config import EncodecConfig
from encodec_rt.corpus.rows import INFO_KEY, OWN_COLUMNS, CodesInfo, StoredClip
from encodec_rt.corpus.tables import open_parquet
from encodec_rt.corpus.tars import samples
from encodec_rt.errors import CodecError, InputError, PacketError
from encodec_rt.extras import needed_for
from encodec_rt.types import Codes

with needed_for("a corpus"):
    import pyarrow as pa

CODE_SUFFIXES = (".parquet", ".tar", ".npz", ".npy", ".ecdc", ".encodec")
MANIFEST = "manifest.json"
_ROWS_AT_ONCE = 64
_DAMAGE: tuple[type[Exception], ...] = (
    *(ValueError, LookupError, TypeError, AttributeError, EOFError, RecursionError),
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, pa.ArrowException),
)
"""What the libraries below raise for bytes that are not in their format."""


def code_files(path: str | Path) -> Iterator[Path]:
    """The files of codes in a folder, or the one that is named, in order. Raises InputError."""
    root = Path(path)
    if root.is_file():
        yield root
        return
    if not root.is_dir():
        raise InputError(f"{path} does not exist; give a folder or a file of codes")
    for folder, names, files in os.walk(code_folder(root)):
        names.sort()
        for name in sorted(files):
            if name.endswith(CODE_SUFFIXES) and not name.startswith("."):
                yield Path(folder, name)


def code_folder(path: Path) -> Path:
    """The folder that names of clips are relative to: a corpus keeps its codes in a subfolder."""
    return path / "data" if manifest_of(path) is not None else path


def info_of(path: Path) -> CodesInfo | None:
    """What made the codes in a file, according to the file or the manifest of its corpus."""
    if path.suffix == ".parquet":
        described = (open_parquet(str(path)).schema_arrow.metadata or {}).get(INFO_KEY)
        if described is not None:
            return CodesInfo.from_json(described, str(path))
    for folder in path.resolve().parents:
        held = manifest_of(folder)
        if held is not None:
            return CodesInfo.from_json(json.dumps(held["codes"]), str(folder / MANIFEST))
    return None


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of a corpus of codes in ``folder``; other programs use the same file name."""
    try:
        held = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return held if isinstance(held, dict) and isinstance(held.get("codes"), dict) else None


def read_rows(path: Path, config: EncodecConfig | None = None) -> Iterator[StoredClip]:
    """The rows of a file of codes. Raises PacketError and InputError for any other file.

    ``config`` is the model's, which .ecdc needs.
    """
    try:
        yield from _rows(path, config)
    except (CodecError, OSError):
        raise
    except _DAMAGE as error:
        raise PacketError(f"{path} cannot be read: {error or type(error).__name__}") from error


def _rows(path: Path, config: EncodecConfig | None) -> Iterator[StoredClip]:
    readers = {".parquet": _parquet, ".tar": _tar, ".npz": _npz, ".npy": _npy}
    if path.suffix in readers:
        yield from readers[path.suffix](path)
    elif path.suffix == ".ecdc" and config is not None:
        yield _ecdc(path, config)
    elif path.suffix == ".encodec":
        yield _encodec(path)
    else:
        raise InputError(f"{path}: codes are read from {', '.join(CODE_SUFFIXES)}")


def row_from_parquet(batch: Any, index: int, *, meta: bool = True) -> StoredClip:
    """Row ``index`` of a record batch."""
    cell = batch.column("codes")[index].values
    if cell is None:
        raise PacketError(f"row {index} has no codes")
    flat = cell.to_numpy(zero_copy_only=False)
    frames = batch.column("frames")[index].as_py()
    scales = batch.column("scales")[index].as_py() if "scales" in batch.schema.names else ()
    own = {name for name in batch.schema.names if name in OWN_COLUMNS} if meta else None
    rest = {} if own is None else _rest(batch, index, own)
    return StoredClip(
        batch.column("id")[index].as_py(),
        flat.astype(np.uint16).reshape(frames, batch.column("codebooks")[index].as_py()),
        batch.column("samples")[index].as_py(),
        tuple(scales or ()),
        rest,
    )


def _rest(batch: Any, index: int, own: set[str]) -> dict[str, object]:
    names = [name for name in batch.schema.names if name not in own]
    return {name: batch.column(name)[index].as_py() for name in names}


def _parquet(path: Path) -> Iterator[StoredClip]:
    file = open_parquet(str(path))
    missing = [name for name in OWN_COLUMNS[:5] if name not in file.schema_arrow.names]
    if missing:
        raise PacketError(f"{path} holds no codes: the columns {', '.join(missing)} are missing")
    for batch in file.iter_batches(_ROWS_AT_ONCE):
        for index in range(batch.num_rows):
            yield row_from_parquet(batch, index)


def _tar(path: Path) -> Iterator[StoredClip]:
    for sample in samples(str(path), others=("codes.npy",)):
        if "codes.npy" not in sample.others:
            continue
        codes = _as_codes(np.load(io.BytesIO(sample.others["codes.npy"]), allow_pickle=False), path)
        rest = sample.meta.get("json")
        yield _row(sample.key, codes, rest if isinstance(rest, dict) else {})


def _npz(path: Path) -> Iterator[StoredClip]:
    with path.open("rb") as file, _opened(file, path) as held:
        rest = json.loads(str(held["json"])) if "json" in held else {}
        yield _row(path.stem, _as_codes(held["codes"], path), rest)


def _npy(path: Path) -> Iterator[StoredClip]:
    with path.open("rb") as file:
        codes = _as_codes(_opened(file, path), path)
    yield StoredClip(path.stem, codes, None)


def _opened(file: BinaryIO, path: Path) -> Any:
    # Opened by name it would stay open if it is not an archive.
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise PacketError(f"{path} is not a file of arrays: {error}") from error


def _row(key: str, codes: Codes, rest: dict[str, Any]) -> StoredClip:
    known = ("id", "samples", "sampling_rate", "scales", "encodec_rt")
    meta = {name: value for name, value in rest.items() if name not in known}
    count, scales = rest.get("samples"), rest.get("scales") or ()
    if count is not None and (not isinstance(count, int) or count < 0):
        raise PacketError(f"{key}: {str(count)[:40]} is not a number of samples")
    if not all(isinstance(scale, (int, float)) for scale in scales):
        raise PacketError(f"{key}: a scale that is not a number")
    return StoredClip(str(rest.get("id", key)), codes, count, tuple(scales), meta)


def _as_codes(array: Any, path: Path) -> Codes:
    if array.ndim != 2 or array.dtype != np.uint16 or not array.shape[1]:
        raise PacketError(
            f"{path} holds {array.dtype} {array.shape}; codes are uint16 [frames, codebooks]"
        )
    codes: Codes = array
    return codes


def _ecdc(path: Path, config: EncodecConfig) -> StoredClip:
    with path.open("rb") as file:
        header = read_header(file)
        blocks = list(EcdcReader(file, header, config))
    if not blocks:
        raise PacketError(f"{path} has no frames")
    codes = np.concatenate([block.codes for block in blocks])
    scales = tuple(block.scale for block in blocks if block.scale is not None)
    return StoredClip(path.stem, codes, header.samples, scales)


def _encodec(path: Path) -> StoredClip:
    with path.open("rb") as file:
        reader = PacketReader(file)
        head = reader.header
        coder = coder_for(head.coding, head.coder_sha256, head.codebook_size)
        blocks = [
            each
            for each in read_codes(reader, head, coder, salvage=False)
            if isinstance(each, CodeBlock)
        ]
        name = reader.comments.get("ID") or path.stem
    if not blocks:
        raise PacketError(f"{path} has no frames")
    scales = tuple(each.scale for each in blocks if each.scale is not None)
    codes = np.concatenate([each.codes for each in blocks])
    return StoredClip(name, codes, blocks[-1].end - head.pre_skip, scales)
