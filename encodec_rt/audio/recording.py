"""Audio files that are valid while they grow, so that a killed program loses nothing."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from encodec_rt.atomic import GrowingFile, WholeWrites, is_stream
from encodec_rt.audio.pcm import SampleFormat
from encodec_rt.audio.sinks import SndfileSink
from encodec_rt.audio.source import PIPE
from encodec_rt.audio.wav import growing_wav_header
from encodec_rt.audio.writer import OUTPUT_FORMATS, AudioWriter, check_target_format
from encodec_rt.types import Audio

FLUSH_S = 1.0
"""Roughly how much audio a compressed file may lack when its program is killed."""

_PCM_16 = SampleFormat("s", 2)


class AudioRecording:
    """Audio of unknown length, written as it is heard.

    Until ``finish`` the file is NAME.PID.part.SUFFIX next to its target. A WAV file has the true
    length in its header after every ``write``, and becomes RF64 beyond 4 GiB; any other is readable
    up to its last page or block, about a second ago. No file is created before the first sample.
    """

    def __init__(
        self, path: str | Path, *, rate_hz: int, channels: int = 1, force: bool = False
    ) -> None:
        """A recording for ``path``, or directly to a pipe or device.

        Raises InputError if it cannot be created there, or for a suffix of no known format.
        """
        self.samples = 0
        self._rate_hz, self._channels = rate_hz, channels
        self._stack = ExitStack()
        self._file: GrowingFile | None = None
        self._writer: AudioWriter | None = None
        self._sink: SndfileSink | None = None
        self._unflushed = 0
        form = check_target_format(path, force=force)
        if str(path) == PIPE or is_stream(path):
            self._writer = AudioWriter(path, rate_hz=rate_hz, channels=channels)
            return
        self._file = GrowingFile(path, force=force)
        if form != OUTPUT_FORMATS[".wav"]:
            self._sink = SndfileSink(form, rate_hz, channels, {})
            self._sink.check(str(path))

    def write(self, audio: Audio) -> None:
        """Append ``audio`` float32 [channels, n], or [n] of one channel."""
        block = audio.reshape(self._channels, -1)
        if not block.shape[1]:
            return
        first = not self.samples
        self.samples += block.shape[1]
        if self._writer is not None:
            if first:
                self._stack.enter_context(self._writer)
            self._writer.write(block)
        elif self._sink is not None:
            self._compress(self._sink, block, first=first)
        else:
            self._append(block)

    def finish(self) -> None:
        """End the recording and give it its name; without samples there is no file."""
        try:
            self._stack.close()
        finally:
            if self._file is not None:
                self._file.finish()

    def _append(self, block: Audio) -> None:
        assert self._file is not None
        size = 2 * self._channels * self.samples
        raw = self._file.raw
        out = WholeWrites(raw, str(self._file.target))
        if not raw.tell():
            out.write(growing_wav_header(self._rate_hz, self._channels, 0))
        out.write(_PCM_16.encode(block))
        raw.seek(0)
        out.write(growing_wav_header(self._rate_hz, self._channels, size))
        raw.seek(0, os.SEEK_END)

    def _compress(self, sink: SndfileSink, block: Audio, *, first: bool) -> None:
        assert self._file is not None
        if first:
            # Closed by whoever gives the file its name.
            raw, name = self._file.raw, str(self._file.target)
            sink.begin(raw, name, can_seek=True, stack=self._stack)
            self._stack.callback(lambda: sink.end(complete=True, samples=self.samples))
        sink.write(block)
        self._unflushed += block.shape[1]
        if self._unflushed >= FLUSH_S * self._rate_hz:
            self._unflushed = 0
            sink.flush()
