"""The bytes of a file, a pipe or standard input, read once from front to back.

Decoders always see the same: bytes of unknown length, without seeking. So a file gives the same
audio by name and through a pipe.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from encodec_rt.atomic import naming
from encodec_rt.errors import InputError

PIPE = "-"
PIECE_BYTES = 1 << 16
_REWIND_BYTES = 1 << 24


class ByteSource:
    """``source``, a path or "-", as bytes. Close it. Raises InputError if it cannot be opened.

    A seekable file object may be given instead, called ``name``; whoever opened it closes it.
    Until ``commit`` is called, ``rewind`` goes back to the first byte, so that one decoder after
    another may try.
    """

    def __init__(self, source: str | Path | BinaryIO, name: str | None = None) -> None:
        self._stack = ExitStack()
        if isinstance(source, (str, Path)):
            piped = str(source) == PIPE
            self.name = name or ("standard input" if piped else str(source))
            self._file = standard_input() if piped else self._open(Path(source))
            self._is_file = not piped and _is_regular(self._file)
        else:
            piped, self.name = False, name or "a file object"
            self._file, self._is_file = source, True
        self.suffix = "" if piped else Path(self.name).suffix.lower()
        self._ahead = b""
        self._given: list[bytes] | None = []
        self._given_bytes = 0

    def close(self) -> None:
        """Close what was opened; standard input stays open."""
        self._stack.close()

    def peek(self, size: int) -> bytes:
        """The next ``size`` bytes, or fewer at the end, which the next read gives again."""
        pieces, held = [self._ahead], len(self._ahead)
        while held < size and (piece := self._read(max(PIECE_BYTES, size - held))):
            pieces.append(piece)
            held += len(piece)
        self._ahead = b"".join(pieces)
        return self._ahead[:size]

    def read(self, size: int = PIECE_BYTES) -> bytes:
        """Up to ``size`` bytes, as soon as there are any; none at the end."""
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        if not data:
            data = self._read(size)
        if self._given is not None and not self._is_file:
            self._given.append(data)
            self._given_bytes += len(data)
            if self._given_bytes > _REWIND_BYTES:
                self._given = None
        return data

    def skip(self, size: int) -> None:
        """Skip ``size`` bytes, or as many as there are."""
        while size > 0 and (data := self.read(min(size, PIECE_BYTES))):
            size -= len(data)

    def rewind(self) -> None:
        """Go back to the first byte."""
        if self._is_file:
            self._file.seek(0)
            self._ahead = b""
        elif self._given is None:
            raise InputError(f"{self.name} is not audio of a known format")
        else:
            self._ahead = b"".join([*self._given, self._ahead])
        self._given, self._given_bytes = [], 0

    def commit(self) -> None:
        """Stop keeping what was read; ``rewind`` is then impossible for a pipe."""
        self._given = None

    def seekable(self) -> BinaryIO:
        """All of it from the first byte on, seekable; piped data is first copied to a file.

        That file is an unnamed temporary file.
        """
        self.rewind()
        if not self._is_file:
            spool: BinaryIO = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
            self.commit()
            with naming(self.name):
                shutil.copyfileobj(self, spool, PIECE_BYTES)
            self._file, self._is_file = spool, True
            self.rewind()
        return self._file

    def _open(self, path: Path) -> BinaryIO:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give an audio file, or '-' for standard input")
        try:
            return self._stack.enter_context(path.open("rb"))
        except FileNotFoundError as error:
            raise InputError(
                f"{path} does not exist; give an audio file, or '-' for standard input"
            ) from error

    def _read(self, size: int) -> bytes:
        # A pipe's read1 returns what is available; read would wait for all of it.
        read = getattr(self._file, "read1", self._file.read)
        with naming(self.name):
            return bytes(read(size) or b"")


def standard_input() -> BinaryIO:
    """Standard input for bytes. Raises InputError if it is closed, or is a terminal."""
    if sys.stdin is None:
        raise InputError("standard input is closed; pipe something into it, or give a file name")
    file: BinaryIO = sys.stdin.buffer
    if file.isatty():
        raise InputError("standard input is a terminal; pipe something into it, or name a file")
    return file


def _is_regular(file: BinaryIO) -> bool:
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
