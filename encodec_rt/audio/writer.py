"""Audio to a file named by its suffix, to a pipe, or to a device."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from encodec_rt.atomic import WholeWrites, check_target, is_stream, replacing, standard_output
from encodec_rt.audio.pcm import FULL_SCALE, RAW_OUTPUT_FORMATS, Audio, RawFormat, SampleFormat
from encodec_rt.audio.source import PIECE_BYTES, PIPE
from encodec_rt.audio.wav import DS64_BYTES, wav_header
from encodec_rt.errors import InputError


class OutputFormat(NamedTuple):
    """libsndfile's names, and the most bytes of samples that the container can announce."""

    container: str
    subtype: str = "PCM_16"
    max_bytes: int | None = None


OUTPUT_FORMATS = {
    ".wav": OutputFormat("WAV"),
    ".flac": OutputFormat("FLAC"),
    ".ogg": OutputFormat("OGG", "VORBIS"),
    ".opus": OutputFormat("OGG", "OPUS"),
    ".mp3": OutputFormat("MP3", "MPEG_LAYER_III"),
    ".aif": OutputFormat("AIFF", max_bytes=2**31 - 2**12),
    ".aiff": OutputFormat("AIFF", max_bytes=2**31 - 2**12),
    ".au": OutputFormat("AU", max_bytes=2**31 - 2**12),
    ".caf": OutputFormat("CAF"),
    ".w64": OutputFormat("W64"),
}
_WAV = OUTPUT_FORMATS[".wav"]
_PCM_16 = SampleFormat("s", 2)
_ENCODER_FRAMES = 4096
"""libsndfile's Vorbis encoder keeps on its stack all that it is given at once."""
_TAGS = ("title", "artist", "album", "comment", "date", "genre", "copyright", "tracknumber")


class AudioWriter:
    """Writes audio to a file named by its suffix, or WAV to standard output for "-".

    What is not compressed by a lossy codec has 16 bits. The file appears under its name when the
    ``with`` block ends well and what was written could be read again, and not at all otherwise.
    ``clipped`` counts samples beyond full scale; ``samples`` is the length to come, if known,
    which the header of a pipe needs. ``raw`` writes samples without a header.
    """

    def __init__(
        self,
        target: str | Path,
        *,
        rate_hz: int,
        channels: int,
        force: bool = False,
        samples: int | None = None,
        raw: RawFormat | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        self.clipped = 0
        self.samples = 0
        self._target = str(target)
        self._force = force
        self._stack = ExitStack()
        form = check_target_format(target, force=force, raw=raw)
        known = {name.lower(): text for name, text in (tags or {}).items()}
        kept = {name: known[name] for name in _TAGS if known.get(name)}
        self._sink: _Raw | _Wav | _Sndfile
        if raw is not None:
            self._sink = _Raw(RAW_OUTPUT_FORMATS[raw.name])
        elif form == _WAV:
            self._sink = _Wav(rate_hz, channels, samples, kept)
        else:
            self._sink = _Sndfile(form, rate_hz, channels, kept)
            self._sink.check(self._target)

    def __enter__(self) -> AudioWriter:
        """Self, ready to be written to."""
        with ExitStack() as opening:
            if self._target == PIPE:
                file, name = standard_output(), "standard output"
            else:
                path = opening.enter_context(replacing(self._target, force=self._force))
                name = self._target
                # A named pipe may be opened for writing only.
                mode = "wb" if is_stream(path) else "w+b"
                file = cast("BinaryIO", opening.enter_context(path.open(mode, buffering=0)))
            can_seek = self._target != PIPE and not is_stream(self._target)
            self._sink.begin(file, name, can_seek=can_seek, stack=opening)
            opening.push(self._finish)
            self._stack = opening.pop_all()
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        """Finish the file, or drop it if the block ended with an exception."""
        return self._stack.__exit__(*exception)

    def write(self, block: Audio) -> None:
        """Append ``block`` [channels, n], clipped to full scale."""
        self.clipped += int((np.abs(block) > 1.0).sum())
        self.samples += block.shape[1]
        if block.shape[1]:
            self._sink.write(block)

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        self._sink.end(complete=kind is None, samples=self.samples)


def check_target_format(
    target: str | Path, *, force: bool, raw: RawFormat | None = None
) -> OutputFormat:
    """The format that the suffix of ``target`` names; WAV for "-" and for devices.

    Raises InputError for another suffix, and where nothing may be written.
    """
    if raw is not None and raw.name not in RAW_OUTPUT_FORMATS:
        accepted = ", ".join(RAW_OUTPUT_FORMATS)
        raise InputError(f"raw format {raw.name!r} is not written; one of {accepted}")
    if str(target) == PIPE:
        _ = standard_output()
        return _WAV
    suffix = Path(target).suffix.lower()
    if suffix not in OUTPUT_FORMATS and raw is None and not is_stream(target):
        accepted = ", ".join(OUTPUT_FORMATS)
        raise InputError(f"{target}: {suffix!r} does not name an audio format; use {accepted}")
    check_target(target, force=force)
    return OUTPUT_FORMATS.get(suffix, _WAV)


class _Raw:
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


class _Wav(_Raw):
    """WAV, whose header is right at the start if the length is known, else put right at the end."""

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


class _Sndfile:
    """What libsndfile writes, by way of a file of ours that remembers why a write failed."""

    def __init__(
        self, form: OutputFormat, rate_hz: int, channels: int, tags: dict[str, str]
    ) -> None:
        self._form, self._rate_hz, self._channels, self._tags = form, rate_hz, channels, tags

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
        self._watched = _Watched(self._file)
        self._sound = self._open(self._watched)
        for tag, text in self._tags.items():
            with suppress(RuntimeError):  # A container that has no place for this tag.
                setattr(self._sound, tag, text.encode("utf-8", "replace").decode())

    def write(self, block: Audio) -> None:
        import soundfile

        if self._form.subtype == "PCM_16":
            pcm = np.clip(np.rint(block.T * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)
            samples = np.ascontiguousarray(pcm, dtype=np.int16)
        else:
            samples = np.ascontiguousarray(np.clip(block.T, -1.0, 1.0), dtype=np.float32)
        try:
            for start in range(0, len(samples), _ENCODER_FRAMES):
                self._sound.write(samples[start : start + _ENCODER_FRAMES])
        except (soundfile.LibsndfileError, AssertionError) as error:
            self._raise(error)
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
        limit = self._form.max_bytes
        if limit is not None and samples * self._channels * 2 > limit:
            raise InputError(
                f"{self._name}: {self._form.container} ends at {limit / 2**30:.0f} GiB; "
                "use .wav, .w64 or .flac"
            )
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
        """Read all of it again: some encoders do not report what could not be written."""
        import soundfile

        self._file.seek(0)
        read = 0
        try:
            with soundfile.SoundFile(io.BufferedReader(_Keep(self._file))) as written:
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
    """A file for libsndfile, in whose callbacks an exception would be lost."""

    def __init__(self, file: BinaryIO) -> None:
        self.error: OSError | None = None
        self._file = file
        self.read, self.seek, self.tell = file.read, file.seek, file.tell
        self.readinto = file.readinto  # type: ignore[attr-defined]

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
    """Move all of ``file`` up by ``size`` bytes, from its end on, in place."""
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
    """Let a disk say now what it would otherwise say when nobody listens any more."""
    with suppress(AttributeError, io.UnsupportedOperation):
        try:
            os.fsync(file.fileno())
        except OSError as error:
            # Pipes, terminals and some devices have nothing to let go to.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
                raise
