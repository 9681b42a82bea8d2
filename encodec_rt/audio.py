"""Audio files and pipes as blocks of float32 at a model's rate and channels, and back.

soundfile reads and writes what it can; PyAV does pipes and the other formats. soxr resamples.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from encodec_rt.atomic import check_target, replacing
from encodec_rt.errors import InputError
from encodec_rt.types import Audio

PIPE = "-"
RATES_HZ = (100, 10_000_000)
OUTPUT_FORMATS = {
    ".wav": "WAV",
    ".flac": "FLAC",
    ".aif": "AIFF",
    ".aiff": "AIFF",
    ".au": "AU",
    ".caf": "CAF",
    ".w64": "W64",
}

_BLOCK_SAMPLES = 1 << 14
_WAV_LIMIT_BYTES = 2**32 - 2**16
_FULL_SCALE = 32768.0


class AudioReader:
    """An audio file, or standard input for "-", whose ``blocks`` are read once.

    ``rate_hz`` and ``channels`` are the source's own; ``samples`` per channel is None where the
    source does not say. Close it, or use it in ``with``. Raises InputError for what is no audio.
    """

    rate_hz: int
    channels: int
    samples: int | None
    description: str

    def __init__(self, source: str | Path) -> None:
        self.name = "standard input" if str(source) == PIPE else str(source)
        self._stack = ExitStack()
        try:
            if str(source) == PIPE:
                self._open_av(sys.stdin.buffer)
            else:
                self._open_path(Path(source))
            if not RATES_HZ[0] <= self.rate_hz <= RATES_HZ[1]:
                raise InputError(f"{self.name} has a sampling rate of {self.rate_hz} Hz")
            if self.channels < 1:
                raise InputError(f"{self.name} has no audio channel")
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> AudioReader:
        """Self."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the source."""
        self.close()

    def close(self) -> None:
        """Close the source."""
        self._stack.close()

    @property
    def duration_s(self) -> float | None:
        """Seconds, where the source says how long it is."""
        return None if self.samples is None else self.samples / self.rate_hz

    def blocks(self, rate_hz: int, channels: int) -> Iterator[Audio]:
        """The audio as float32 [channels, n], resampled to ``rate_hz``, n varying.

        Several channels become one by their mean, one becomes two by copying; of more than two,
        the third and later ones are mixed into both sides, so that nothing is lost or clipped.
        """
        mixed = (mix(block, channels) for block in self._raw)
        if rate_hz == self.rate_hz:
            yield from mixed
            return
        import soxr

        resampler = soxr.ResampleStream(self.rate_hz, rate_hz, channels, dtype="float32")
        for block in mixed:
            yield _rows(resampler.resample_chunk(_rows(block)))
        end = np.empty((0, channels), np.float32)
        yield _rows(resampler.resample_chunk(end, last=True))

    def _open_path(self, path: Path) -> None:
        import soundfile

        if not path.is_file():
            problem = "is no file" if path.exists() else "does not exist"
            raise InputError(f"{path} {problem}; give an audio file, or '-' for standard input")
        try:
            file = self._stack.enter_context(soundfile.SoundFile(path))
        except (soundfile.LibsndfileError, TypeError):
            # Not one of libsndfile's formats; a headerless .raw gives TypeError.
            self._open_av(self._stack.enter_context(path.open("rb")))
            return
        self.rate_hz, self.channels = file.samplerate, file.channels
        self.samples = file.frames if 0 <= file.frames < 2**62 else None
        self.description = f"{file.format_info}, {file.subtype_info}"
        self._raw = self._soundfile_blocks(file)

    def _soundfile_blocks(self, file: Any) -> Iterator[Audio]:
        import soundfile

        while True:
            try:
                block = file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise InputError(f"{self.name} is damaged: {error}") from error
            if not len(block):
                return
            yield _rows(block)

    def _open_av(self, file: BinaryIO) -> None:
        import av

        try:
            container = self._stack.enter_context(av.open(file))
        except (av.FFmpegError, ValueError) as error:
            raise InputError(f"{self.name} is no audio of a known format") from error
        if not container.streams.audio:
            raise InputError(f"{self.name} has no audio in it")
        stream = container.streams.audio[0]
        self.rate_hz, self.channels = stream.rate or 0, stream.channels
        self.samples = None
        if stream.duration is not None and stream.time_base is not None:
            self.samples = int(stream.duration * stream.time_base * self.rate_hz)
        self.description = f"{container.format.long_name}, {stream.codec_context.codec.long_name}"
        self._raw = self._av_blocks(container, stream)

    def _av_blocks(self, container: Any, stream: Any) -> Iterator[Audio]:
        import av

        planar = av.AudioResampler(format="fltp")
        try:
            for decoded in itertools.chain(container.decode(stream), [None]):
                for frame in planar.resample(decoded):
                    yield np.asarray(frame.to_ndarray(), dtype=np.float32)
        except (av.FFmpegError, ValueError) as error:
            raise InputError(f"{self.name} is damaged: {error}") from error


class AudioWriter:
    """Writes 16-bit PCM to a file named by its suffix, or WAV to standard output for "-".

    The file appears under its name when the ``with`` block ends well, and not at all otherwise.
    ``clipped`` counts samples beyond full scale; ``samples`` is the length to come, if known.
    """

    def __init__(
        self,
        target: str | Path,
        *,
        rate_hz: int,
        channels: int,
        force: bool = False,
        samples: int | None = None,
    ) -> None:
        self.clipped = 0
        self.samples = 0
        self._target = str(target)
        self._rate_hz = rate_hz
        self._channels = channels
        self._force = force
        self._stack = ExitStack()
        self._format = check_target_format(target, force=force)
        # RF64 is WAV with 64-bit sizes; the plain header cannot say more than 4 GiB.
        if self._format == "WAV" and (samples or 0) * channels * 2 > _WAV_LIMIT_BYTES:
            self._format = "RF64"

    def __enter__(self) -> AudioWriter:
        """Self, ready to be written to."""
        if self._target == PIPE:
            self._open_pipe()
        else:
            self._open_file()
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        """Finish the file, or drop it if the block ended with an exception."""
        return self._stack.__exit__(*exception)

    def write(self, block: Audio) -> None:
        """Append ``block`` [channels, n], clipped to full scale."""
        self.clipped += int((np.abs(block) > 1.0).sum())
        self.samples += block.shape[1]
        pcm = np.clip(np.rint(block * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1)
        if pcm.size:
            self._write(np.ascontiguousarray(pcm.T, dtype=np.int16))

    def _open_file(self) -> None:
        import soundfile

        with ExitStack() as opening:
            path = opening.enter_context(replacing(self._target, force=self._force))
            file = soundfile.SoundFile(
                path, "w", self._rate_hz, self._channels, "PCM_16", format=self._format
            )
            self._write = opening.enter_context(file).write
            self._stack = opening.pop_all()

    def _open_pipe(self) -> None:
        import av

        layout = "mono" if self._channels == 1 else "stereo"
        # "bitexact" leaves out the library's version, so that equal audio is equal bytes.
        container = av.open(sys.stdout.buffer, "w", format="wav", options={"fflags": "+bitexact"})
        stream = container.add_stream("pcm_s16le", rate=self._rate_hz, layout=layout)

        def write(pcm: NDArray[np.int16]) -> None:
            frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout=layout)
            frame.sample_rate = self._rate_hz
            container.mux(stream.encode(frame))

        def close(kind: type[BaseException] | None, *_: object) -> None:
            # After a broken pipe closing fails too, and would hide why.
            with nullcontext() if kind is None else suppress(av.FFmpegError):
                container.close()

        self._write = write
        self._stack.push(close)


def check_target_format(target: str | Path, *, force: bool) -> str:
    """libsndfile's name for the format that the suffix of ``target`` names; WAV for "-".

    Raises InputError for another suffix, and where nothing may be written.
    """
    if str(target) == PIPE:
        if sys.stdout.isatty():
            raise InputError("standard output is a terminal; redirect it, or give a file name")
        return "WAV"
    suffix = Path(target).suffix.lower()
    if suffix not in OUTPUT_FORMATS:
        accepted = ", ".join(OUTPUT_FORMATS)
        raise InputError(f"{target}: no audio format is known by {suffix!r}; one of {accepted}")
    check_target(target, force=force)
    return OUTPUT_FORMATS[suffix]


def mix(block: Audio, channels: int) -> Audio:
    """``block`` [C, n] as [channels, n], for one or two ``channels``; see AudioReader.blocks."""
    given = len(block)
    if given == channels:
        return block
    if channels == 1:
        return np.asarray(block.mean(axis=0, keepdims=True), dtype=np.float32)
    if given == 1:
        return np.repeat(block, 2, axis=0)
    rest = block[2:].mean(axis=0, keepdims=True)
    return np.asarray(0.5 * (block[:2] + rest), dtype=np.float32)


def _rows(block: NDArray[Any]) -> Audio:
    """[n, C] -> [C, n] float32, or back, laid out as the libraries want it."""
    return np.ascontiguousarray(block.T, dtype=np.float32)
