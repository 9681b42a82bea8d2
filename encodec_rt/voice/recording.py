"""The codes of a call, recorded: what was heard, hop by hop as it was played, and what was said.

A recording has its own thread, so that neither its coding nor a slow disk delays the call.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import numpy as np

from encodec_rt.errors import CodecError, InputError
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Codes

HELD_FRAMES = 5
"""How many missing frames the last one replaces: as long as concealment holds it at full level."""
SILENT_FRAMES = 16
MAX_WAITING = 4500
"""Frames that may wait to be written: half a minute of both directions at 75 a second each."""


class CodesSink(Protocol):
    """A recording of codes."""

    def write(self, codes: Codes) -> None:
        """Append ``codes`` uint16 [frames, codebooks]."""

    def finish(self, samples: int | None = None) -> None:
        """End it, and give it its name."""


@dataclass(frozen=True, eq=False)
class StandIns:
    """Codes for what did not arrive: ``silence`` [Q] for a frame, ``least`` [Q] for codebooks.

    ``least`` are the entries nearest to zero, which change the sound least.
    """

    silence: Codes
    least: Codes

    @classmethod
    def of(cls, codec: Codec, bandwidth_kbps: float) -> StandIns:
        """Those of a model, from digital silence and from its codebooks."""
        encoder = codec.stream_encoder(bandwidth_kbps)
        hop, channels = codec.config.hop_length, codec.config.audio_channels
        silence = encoder.push(np.zeros((channels, SILENT_FRAMES * hop), np.float32))[-1]
        stages = codec.model.quantizer.stages[: encoder.codebooks]
        norms = [stage.codebook.embed.float().square().sum(dim=1) for stage in stages]
        return cls(silence, np.array([int(norm.argmin()) for norm in norms], np.uint16))

    def whole(self, codes: Codes) -> Codes:
        """Frames [frames, any number of codebooks] with all codebooks."""
        missing = self.least[codes.shape[1] :]
        return np.concatenate([codes, np.tile(missing, (len(codes), 1))], axis=1)


class CallRecording:
    """Takes what a call says and hears, and writes it in a thread; ``error`` is why it gave up."""

    def __init__(
        self,
        stand_ins: StandIns,
        *,
        heard: CodesSink | None = None,
        said: CodesSink | None = None,
        on_error: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``on_error`` is told once, from the recording's thread, that nothing more is written."""
        self._stand_ins, self._on_error = stand_ins, on_error
        self._heard, self._said = heard, said
        self._last, self._missing = stand_ins.silence[None], HELD_FRAMES
        self._worker = ThreadPoolExecutor(1, "encodec-rt-record")
        self._lock = Lock()
        self._waiting = 0
        self.error: CodecError | OSError | None = None

    def say(self, codes: Codes) -> None:
        """Frames uint16 [frames, Q] that were encoded, whether they were sent or not."""
        if self._said is not None and len(codes):
            self._submit(self._said, codes)

    def hear(self, codes: Codes | None) -> None:
        """The frame [1, any number of codebooks] of the hop that was played, or None without.

        A missing frame is recorded as the last one, and after a few of them as silence.
        """
        if self._heard is None:
            return
        if codes is not None:
            self._last, self._missing = self._stand_ins.whole(codes), 0
        else:
            self._missing += 1
            if self._missing > HELD_FRAMES:
                self._last = self._stand_ins.silence[None]
        self._submit(self._heard, self._last)

    def close(self) -> None:
        """Write what is queued, and give the recordings their names. Repeating this is harmless."""
        heard, self._heard = self._heard, None
        said, self._said = self._said, None
        for sink in filter(None, (heard, said)):
            self._worker.submit(self._guarded, sink.finish)
        self._worker.shutdown()

    def _submit(self, sink: CodesSink, codes: Codes) -> None:
        frames = codes.copy()
        with self._lock:
            self._waiting += len(frames)
            behind = self._waiting > MAX_WAITING
        if behind:
            self._fail(InputError("the disk or the processor is too slow for the recording"))
        self._worker.submit(self._write, sink, frames)

    def _write(self, sink: CodesSink, codes: Codes) -> None:
        with self._lock:
            self._waiting -= len(codes)
        if self.error is None:
            self._guarded(sink.write, codes)

    def _guarded(self, work: Callable[..., None], *arguments: Codes) -> None:
        try:
            work(*arguments)
        except (CodecError, OSError) as error:
            self._fail(error)

    def _fail(self, error: CodecError | OSError) -> None:
        with self._lock:
            first = self.error is None
            self.error = self.error or error
        if first:
            told = isinstance(error, OSError) and error.strerror and error.filename
            reason = f"{error.filename}: {error.strerror}" if told else str(error)  # type: ignore[union-attr]
            self._on_error(f"warning: {reason}; the call is not recorded from here on")
