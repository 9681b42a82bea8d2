"""How samples are written: raw, as WAV, or by libsndfile, without missing any error."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from contextlib import ExitStack, nullcontext, suppress
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from encodec_rt.atomic import WholeWrites
from encodec_rt.audio.id3 import id3_tag
from encodec_rt.audio.pcm import SampleFormat
from encodec_rt.audio.source import PIECE_BYTES
from encodec_rt.audio.wav import DS64_BYTES, wav_header
from encodec_rt.errors import InputError
from encodec_rt.native_output import quietly
from encodec_rt.pcm import to_int16
from encodec_rt.types import Audio

_PCM_16 = SampleFormat("s", 2)
_ENCODER_FRAMES = 4096
"""libsndfile's Vorbis encoder puts everything from one call on its stack."""


class OutputFormat(NamedTuple):
    """libsndfile's names, and the most bytes of samples that the container can announce."""

    container: str
    subtype: str = "PCM_16"
    max_bytes: int | None = None


class RawSink:
    """Samples and nothing else."""

    def __init__(self, form: SampleFormat) -> None:
        self._form = form

    def begin(self, file: BinaryIO, name: str, *, can_seek: bool, stack: ExitStack) -> None:
        self._file, self._out = file, WholeWrites(file, name)

    def write(self, block: Audio) -> None:
        self._out.write(self._form.encode(block))

    def end(self, *, complete: bool, samples: int) -> None:
        if complete:
            _sync(self._file)


class WavSink(RawSink):
    """WAV, whose header is right from the start if the length is known, else fixed at the end."""

    def __init__(
        self, rate_hz: int, channels: int, samples: int | None, tags: dict[str, str]
    ) -> None:
        super().__init__(_PCM_16)
        self._rate_hz, self._channels, self._tags = rate_hz, channels, tags
        self._announced = None if samples is None else samples * channels * 2

    def begin(self, file: BinaryIO, name: str, *, can_seek: bool, stack: ExitStack) -> None:
        super().begin(file, name, can_seek=can_seek, stack=stack)
        self._can_seek = can_seek
        self._out.write(self._header(self._announced))

    def end(self, *, complete: bool, samples: int) -> None:
        if not complete:
            return
        size = samples * self._channels * 2
        if self._can_seek and size != self._announced:
            header = self._header(size)
            if len(header) != len(self._header(self._announced)):
                _make_room(self._file, self._out, DS64_BYTES)
            self._file.seek(0)
            self._out.write(header)
        super().end(complete=complete, samples=samples)

    def _header(self, data_bytes: int | None) -> bytes:
        return wav_header(self._rate_hz, self._channels, data_bytes, self._tags)


class SndfileSink:
    """Formats of libsndfile, through our own file object that remembers why a write failed."""

    def __init__(
        self, form: OutputFormat, rate_hz: int, channels: int, tags: dict[str, str]
    ) -> None:
        self._form, self._rate_hz, self._channels, self._tags = form, rate_hz, channels, tags
        self._bytes = 0

    def check(self, target: str) -> None:
        """Raises InputError if the format has no such rate; libsndfile only knows by trying."""
        import soundfile

        try:
            with self._open(io.BytesIO()):
                pass
        except soundfile.LibsndfileError as error:
            raise InputError(
                f"{target}: {self._form.container} cannot be written at {self._rate_hz} Hz with "
                f"{self._channels} channel(s); .wav and .flac can"
            ) from error

    def begin(self, file: BinaryIO, name: str, *, can_seek: bool, stack: ExitStack) -> None:
        self._target, self._out, self._name = file, WholeWrites(file, name), name
        self._file = file
        if not can_seek:
            self._file = stack.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
        # libsndfile knows only ID3v1 for MP3: 30 characters, at the end.
        start = id3_tag(self._tags) if self._form.container == "MP3" else b""
        WholeWrites(self._file, name).write(start)
        self._watched = _Watched(self._file, len(start))
        self._sound = self._open(self._watched)
        for tag, text in () if start else self._tags.items():
            with suppress(RuntimeError):  # A container that has no place for this tag.
                setattr(self._sound, tag, text.encode("utf-8", "replace").decode())

    def write(self, block: Audio) -> None:
        import soundfile

        self._bytes += 2 * block.size
        limit = self._form.max_bytes
        if limit is not None and self._bytes > limit:
            raise InputError(
                f"{self._name}: {self._form.container} cannot grow beyond {limit / 2**30:.0f} GiB; "
                "use .wav, .w64 or .flac"
            )
        if self._form.subtype == "PCM_16":
            samples = np.ascontiguousarray(to_int16(block.T))
        else:
            samples = np.ascontiguousarray(np.clip(block.T, -1.0, 1.0), dtype=np.float32)
        try:
            for start in range(0, len(samples), _ENCODER_FRAMES):
                self._sound.write(samples[start : start + _ENCODER_FRAMES])
        except (soundfile.LibsndfileError, AssertionError) as error:
            self._raise(error)
        if self._watched.error:
            self._raise(None)

    def flush(self) -> None:
        """Bring the file up to date, including the length in its header."""
        self._sound.flush()
        if self._watched.error:
            self._raise(None)

    def end(self, *, complete: bool, samples: int) -> None:
        import soundfile

        try:
            self._sound.close()
        except soundfile.LibsndfileError as error:
            if complete:
                self._raise(error)
        if not complete:
            return
        if self._watched.error:
            self._raise(None)
        self._verify(samples)
        if self._target is not self._file:
            self._file.seek(0)
            while data := self._file.read(PIECE_BYTES):
                self._out.write(data)
        _sync(self._target)

    def _open(self, file: Any) -> Any:
        import soundfile

        return soundfile.SoundFile(
            file,
            "w",
            self._rate_hz,
            self._channels,
            self._form.subtype,
            format=self._form.container,
        )

    def _verify(self, samples: int) -> None:
        """Read everything back: some encoders do not report failed writes."""
        import soundfile

        self._file.seek(0)
        read = 0
        try:
            with (
                # mpg123 complains of the last frame that LAME writes, which is as it should be.
                quietly() if self._form.container == "MP3" else nullcontext(),
                soundfile.SoundFile(io.BufferedReader(_Keep(self._file))) as written,
            ):
                while len(block := written.read(_ENCODER_FRAMES * 16, dtype="int16")):
                    read += len(block)
        except soundfile.LibsndfileError as error:
            self._raise(error)
        if read < samples:
            raise OSError(5, f"only {read} of {samples} samples could be written", self._name)

    def _raise(self, error: Exception | None) -> None:
        failed = self._watched.error
        if failed is not None:
            raise OSError(failed.errno, failed.strerror, self._name) from failed
        raise OSError(5, f"could not be written: {error}", self._name) from error


class _Watched:
    """A file from byte ``start`` on, for libsndfile, in whose callbacks an exception is lost."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self.error: OSError | None = None
        self._file, self._start = file, start
        self.read = file.read
        self.readinto = file.readinto  # type: ignore[attr-defined]

    def seek(self, offset: int, whence: int = 0) -> int:
        offset += self._start if whence == os.SEEK_SET else 0
        return self._file.seek(offset, whence) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start

    def write(self, data: bytes) -> int:
        try:
            rest = memoryview(data)
            while len(rest):
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            self.error = self.error or error
            return 0
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


class _Keep(io.RawIOBase):
    """A view of a file that does not close it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)


def _make_room(file: BinaryIO, out: WholeWrites, size: int) -> None:
    """Move the content of ``file`` up by ``size`` bytes in place, starting at its end."""
    end = file.seek(0, os.SEEK_END)
    for start in range((end - 1) // PIECE_BYTES * PIECE_BYTES, -1, -PIECE_BYTES):
        file.seek(start)
        data = _read_exactly(file, min(PIECE_BYTES, end - start))
        file.seek(start + size)
        out.write(data)


def _read_exactly(file: BinaryIO, size: int) -> bytes:
    pieces = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _sync(file: BinaryIO) -> None:
    """Make a disk report errors now rather than when nobody would notice."""
    with suppress(AttributeError, io.UnsupportedOperation):
        try:
            os.fsync(file.fileno())
        except OSError as error:
            # Pipes, terminals and some devices cannot be synced.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
                raise
