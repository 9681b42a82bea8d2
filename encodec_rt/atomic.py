"""Files that appear under their name only when complete, and targets that are not files."""

from __future__ import annotations

import io
import itertools
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from encodec_rt.errors import CodecError, InputError

MAX_NAME_BYTES = 255
"""The longest file name that Linux file systems take."""

_STREAM_FOLDERS = (Path("/dev/fd"), Path("/proc/self/fd"))
_STREAMS = (Path("/dev/stdout"), Path("/dev/stderr"))


def is_stream(path: str | Path) -> bool:
    """Whether ``path`` is written to directly: a device, a named pipe, or an open descriptor.

    Its bytes are streamed; nothing is renamed and nothing can be overwritten.
    """
    path = Path(path)
    if path in _STREAMS or path.parent in _STREAM_FOLDERS:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def check_target(path: str | Path, *, force: bool) -> Path:
    """Where a new file ``path`` will be, with links resolved.

    Raises InputError if it exists and ``force`` is not set, if its folder does not exist, or if
    it is a folder, a disk or a socket. A device such as /dev/null and a named pipe are accepted.
    """
    if is_stream(path):
        return Path(path)
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise InputError(f"{path}: the folder {target.parent} does not exist")
    if target.exists() and not target.is_file():
        raise InputError(
            f"{path} is not a regular file; give a file name, or '-' for standard output"
        )
    if target.exists() and not force:
        raise _exists(path)
    return target


def part_name(target: Path, suffix: str = ".part", *, hidden: bool = True) -> Path:
    """An unused name next to ``target`` for the growing file, never longer than allowed."""
    stem = (b"." if hidden else b"") + os.fsencode(target.name)
    for more in itertools.chain([""], (f"-{number}" for number in itertools.count(1))):
        end = os.fsencode(f".{os.getpid()}{more}{suffix}")
        part = target.with_name(os.fsdecode(stem[: MAX_NAME_BYTES - len(end)] + end))
        if not os.path.lexists(part):
            return part
    raise AssertionError


@contextmanager
def replacing(path: str | Path, *, force: bool, durable: bool = False) -> Iterator[Path]:
    """A temporary file next to ``path``, renamed to it when the block succeeds.

    It inherits the permissions of a file that it replaces. Without ``force`` nothing is replaced,
    not even a file that appeared while the block ran: InputError. An exception or an interrupt
    removes the temporary file and leaves ``path`` as it was. If ``path`` is a device or a named
    pipe, the block writes to it directly. An OSError in the block that names no file is made to
    name ``path``.

    With ``durable`` the file is on the disk before it is renamed, so that not even a crash of the
    machine leaves half of it.
    """
    target = check_target(path, force=force)
    if is_stream(target):
        with naming(path):
            yield target
        return
    before = target.stat() if target.exists() else None
    part = _create(target, path, 0o666 if before is None else 0o600)
    try:
        with naming(path):
            yield part
            if before is not None:
                _hand_on(before, part)
            if durable:
                flush_to_disk(part)
            publish(part, target, force=force, named=path)
            if durable:
                flush_to_disk(target.parent)
    finally:
        part.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Wait until what was written to a file, or which names are in a folder, survives a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(part: Path, target: Path, *, force: bool, named: str | Path | None = None) -> None:
    """Rename ``part`` to ``target`` atomically.

    Raises InputError, which calls the target ``named``, if it exists and ``force`` is not set.
    """
    if force:
        os.replace(part, target)
        return
    try:
        os.link(part, target)
    except FileExistsError as error:
        raise _exists(named or target) from error
    except OSError:
        # The file system has no hard links: claim the name with an empty new file.
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError as error:
            raise _exists(named or target) from error
        os.replace(part, target)
        return
    part.unlink()


class GrowingFile:
    """A recording: an unbuffered file NAME.PID.part.SUFFIX that gets its own name when it ends.

    It exists from the first use of ``raw`` on, and stays where it is if the process is killed.
    """

    def __init__(self, path: str | Path, *, force: bool) -> None:
        """Raises InputError as ``check_target`` does, and for what is not a file."""
        if is_stream(path):
            raise InputError(
                f"{path}: a recording needs a regular file, since its header is rewritten as it "
                "grows"
            )
        self.target = check_target(path, force=force)
        suffix = self.target.suffix
        self.part = part_name(self.target.with_suffix(""), f".part{suffix}", hidden=False)
        self._named, self._force = path, force
        self._raw: io.FileIO | None = None

    @property
    def raw(self) -> io.FileIO:
        """The file itself."""
        if self._raw is None:
            with naming(self._named):
                self._raw = self.part.open("x+b", buffering=0)
        return self._raw

    def finish(self) -> None:
        """Give the file its final name. Repeating this is harmless.

        Raises InputError if the name is taken by then; the part stays.
        """
        raw, self._raw = self._raw, None
        if raw is None:
            return
        raw.close()
        try:
            publish(self.part, self.target, force=self._force, named=self._named)
        except InputError as error:
            raise InputError(f"{error}; the recording stays in {self.part}") from None


def abandoned_recordings(folder: Path) -> list[Path]:
    """The parts that killed processes' ``GrowingFile``s left in ``folder``."""
    found = sorted(folder.glob("*.part.*"))
    parts = [(path, re.fullmatch(r".+\.(\d+)(-\d+)?\.part\.\w+", path.name)) for path in found]
    return [path for path, match in parts if match and not _is_another(int(match[1]))]


def _is_another(pid: int) -> bool:
    """Whether another process with that number is running."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def standard_output() -> BinaryIO:
    """Standard output for bytes, unbuffered if possible, so that no error is raised at exit.

    Raises InputError if it is closed, or is a terminal.
    """
    if sys.stdout is None:
        raise InputError("standard output is closed; open it, or give a file name")
    if sys.stdout.isatty():
        raise InputError("standard output is a terminal; redirect it, or give a file name")
    sys.stdout.flush()
    return getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)


class WholeWrites(io.RawIOBase):
    """An unbuffered ``file`` whose ``write`` writes everything, in as many calls as it takes.

    An OSError of writing names the file ``name``; a broken pipe stays BrokenPipeError. The file
    itself is closed by whoever opened it.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._file = file

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Write all of ``data``; returns its size."""
        rest = memoryview(data).cast("B")
        with naming(self.name):
            while len(rest):
                rest = rest[self._file.write(rest) or 0 :]
        return memoryview(data).nbytes


def _create(target: Path, path: str | Path, mode: int) -> Path:
    while True:
        part = part_name(target)
        try:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        except FileExistsError:
            continue
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        return part


def _hand_on(before: os.stat_result, part: Path) -> None:
    """Copy the owner, if allowed, and then the permissions, as a change of owner resets some."""
    now = part.stat()
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        with suppress(OSError):
            os.chown(part, before.st_uid, before.st_gid)
    part.chmod(stat.S_IMODE(before.st_mode))


def _exists(path: str | Path) -> InputError:
    return InputError(f"{path} exists; --force replaces it")


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Make an OSError in the block name ``path`` if it names no file, or a temporary one."""
    try:
        yield
    except (CodecError, BrokenPipeError):
        raise
    except OSError as error:
        if error.errno is None or (error.filename and not _is_part(error.filename)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _is_part(name: object) -> bool:
    return isinstance(name, (str, os.PathLike)) and os.fspath(name).endswith(".part")
