"""Audio files of many kinds, made in memory, and standard input as a pipe."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from encodec_rt.audio import AudioReader
from encodec_rt.errors import InputError

Floats = NDArray[np.float32]


class Pipe(io.RawIOBase):
    """Standard input that returns a few bytes at a time and cannot seek."""

    def __init__(self, data: bytes, piece: int = 997) -> None:
        self._file = io.BytesIO(data)
        self._piece = piece

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size if size > 0 else self._piece, self._piece))


def from_stdin(monkeypatch: Any, data: bytes, piece: int = 997) -> None:
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=Pipe(data, piece)))


def tone(
    samples: int, channels: int = 1, rate: int = 24_000, peak: float = 0.5, hz: float = 300
) -> Floats:
    """A sine per channel, 200 Hz apart, [channels, samples]."""
    time = np.arange(samples) / rate
    rows = [np.sin(2 * np.pi * (hz + 200 * row) * time) for row in range(channels)]
    return (peak * np.stack(rows)).astype(np.float32)


def read_all(
    source: Any, rate: int | None = None, channels: int | None = None, **options: Any
) -> Floats:
    with AudioReader(source, **options) as reader:
        blocks = list(reader.blocks(rate or reader.rate_hz, channels or reader.channels))
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((channels or 1, 0), np.float32)


def outcome(source: Any, **options: Any) -> tuple[Any, ...]:
    """Everything that a reader reports about ``source``, or the error message if it refuses."""
    try:
        with AudioReader(source, **options) as reader:
            blocks = list(reader.blocks(reader.rate_hz, reader.channels))
            audio = np.concatenate(blocks, axis=1).tobytes() if blocks else b""
            said = [text.replace(reader.name, "IT") for text in reader.warnings]
            return reader.rate_hz, reader.channels, reader.description, audio, said
    except InputError as error:
        name = "standard input" if source == "-" else str(source)
        return (str(error).replace(name, "IT"),)


@dataclass(frozen=True)
class Kind:
    """A kind of file: how to make one from [channels, n] at a rate, and what reading it returns.

    ``error`` is the largest error of a sample, None for lossy kinds; ``padding`` how many extra
    samples may come out; ``joins`` whether two files in a row read as one; ``aligned`` whether the
    format stores its encoder's delay; ``shortest`` the fewest samples that it can hold.
    """

    name: str
    make: Callable[[Floats, int], bytes]
    error: float | None
    padding: int = 0
    joins: bool = False
    mono: bool = False
    aligned: bool = True
    shortest: int = 1


def with_soundfile(container: str, subtype: str, endian: str = "FILE") -> Any:
    def make(audio: Floats, rate: int) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, audio.T, rate, subtype, endian, container)
        return file.getvalue()

    return make


def with_ffmpeg(container: str, codec: str, sample: str, **options: str) -> Any:
    def make(audio: Floats, rate: int) -> bytes:
        file = io.BytesIO()
        with av.open(file, "w", format=container, options=options) as output:
            layout = {1: "mono", 2: "stereo", 8: "7.1"}[len(audio)]
            stream = output.add_stream(codec, rate=rate, layout=layout)
            assert isinstance(stream, av.AudioStream)
            values: NDArray[Any] = audio
            if not sample.startswith("flt"):
                values = np.rint(audio * 32767).astype(np.int16)
            if not sample.endswith("p"):
                values = values.T.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(values), sample, layout)
            frame.sample_rate, frame.pts = rate, 0
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                output.mux(packet)
        return file.getvalue()

    return make


def raw_wav(
    data: bytes,
    *,
    tag: int = 1,
    bits: int = 16,
    channels: int = 1,
    rate: int = 24_000,
    before: bytes = b"",
    data_size: int | None = None,
    order: str = "little",
) -> bytes:
    """A WAV file with any format chunk, any chunks ``before`` the data, and any declared size."""

    def number(value: int, size: int) -> bytes:
        return value.to_bytes(size, order)  # type: ignore[arg-type]

    align = channels * -(-bits // 8)
    form = number(tag, 2) + number(channels, 2) + number(rate, 4) + number(rate * align, 4)
    form += number(align, 2) + number(bits, 2)
    size = len(data) if data_size is None else data_size
    body = b"WAVEfmt " + number(len(form), 4) + form + before + b"data" + number(size, 4) + data
    name = b"RIFF" if order == "little" else b"RIFX"
    return name + number(len(body) & 0xFFFFFFFF, 4) + body


KINDS = [
    Kind("wav u8", with_soundfile("WAV", "PCM_U8"), 1 / 127, joins=True),
    Kind("wav s16", with_soundfile("WAV", "PCM_16"), 1 / 32767, joins=True),
    Kind("wav s24", with_soundfile("WAV", "PCM_24"), 1e-6, joins=True),
    Kind("wav s32", with_soundfile("WAV", "PCM_32"), 1e-6, joins=True),
    Kind("wav f32", with_soundfile("WAV", "FLOAT"), 0.0, joins=True),
    Kind("wav f64", with_soundfile("WAV", "DOUBLE"), 0.0, joins=True),
    Kind("wav mu-law", with_soundfile("WAV", "ULAW"), 0.03, joins=True),
    Kind("wav A-law", with_soundfile("WAV", "ALAW"), 0.03, joins=True),
    Kind("wav extensible", with_soundfile("WAVEX", "PCM_24"), 1e-6, joins=True),
    Kind("wav big-endian", with_soundfile("WAV", "PCM_16", "BIG"), 1 / 32767, joins=True),
    Kind("rf64", with_soundfile("RF64", "PCM_16"), 1 / 32767, joins=True),
    Kind("wav adpcm", with_soundfile("WAV", "IMA_ADPCM"), None, padding=4096),
    Kind("wav g721", with_soundfile("WAV", "G721_32"), None, padding=240, mono=True),
    Kind("aiff", with_soundfile("AIFF", "PCM_16"), 1 / 32767),
    Kind("au", with_soundfile("AU", "PCM_16"), 1 / 32767),
    Kind("caf", with_soundfile("CAF", "PCM_16"), 1 / 32767),
    Kind("caf alac", with_soundfile("CAF", "ALAC_16"), 1 / 32767),
    Kind("w64", with_soundfile("W64", "PCM_16"), 1 / 32767),
    Kind("flac 16", with_soundfile("FLAC", "PCM_16"), 1 / 32767, joins=True),
    Kind("flac 24", with_soundfile("FLAC", "PCM_24"), 1e-6, joins=True),
    Kind("vorbis", with_soundfile("OGG", "VORBIS"), None, joins=True),
    Kind("opus", with_soundfile("OGG", "OPUS"), None, padding=5, joins=True),
    Kind("mp3", with_soundfile("MP3", "MPEG_LAYER_III"), None, joins=True),
    Kind("aac", with_ffmpeg("adts", "aac", "fltp"), None, padding=2048, joins=True, aligned=False),
    # An edit list counts in milliseconds, so a shorter one is empty.
    Kind("m4a", with_ffmpeg("ipod", "aac", "fltp"), None, padding=2048, shortest=24),
    Kind("m4a alac", with_ffmpeg("ipod", "alac", "s16p"), 1 / 32767),
    Kind("webm opus", with_ffmpeg("webm", "libopus", "flt"), None, padding=1920),
    Kind("matroska pcm", with_ffmpeg("matroska", "pcm_s16le", "s16"), 1 / 32767),
    Kind("avi pcm", with_ffmpeg("avi", "pcm_s16le", "s16"), 1 / 32767),
]
