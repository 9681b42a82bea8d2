"""Playing existing audio, such as a file: no drift, and no deadline except the speaker's."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from encodec_rt.errors import AudioDeviceError
from encodec_rt.pcm import to_int16
from encodec_rt.sound.streams import AudioSystem
from encodec_rt.types import Audio

QUEUED_S = 0.5
"""Audio that waits for the speaker, so that a slow block is not heard."""
_PIECE_S = 0.1


def play_blocks(system: AudioSystem, blocks: Iterable[Audio], rate_hz: int) -> int:
    """Play ``blocks`` [channels, n] to their end, mixed to mono -> samples played.

    Raises AudioDeviceError without a speaker, or when it is lost on the way.
    """
    import soxr

    sink = system.open_sink()
    try:
        resampler = (
            soxr.ResampleStream(rate_hz, sink.rate_hz, 1) if sink.rate_hz != rate_hz else None
        )
        played = 0

        def pause() -> None:
            if not sink.active:
                raise AudioDeviceError(f"the speaker {sink.name!r} was lost")
            system.sleep(_PIECE_S / 4)

        def queue(mono: Audio, *, last: bool = False) -> None:
            if resampler is not None:
                mono = resampler.resample_chunk(mono, last=last)
            pcm = to_int16(mono)
            size = max(1, int(_PIECE_S * sink.rate_hz))
            for start in range(0, len(pcm), size):
                while sink.fill > QUEUED_S * sink.rate_hz:
                    pause()
                sink.write(pcm[start : start + size])

        for block in blocks:
            played += block.shape[1]
            queue(block.mean(axis=0, dtype=np.float32))
        queue(np.zeros(0, np.float32), last=True)
        sink.pause()
        while sink.fill:
            pause()
        system.sleep(sink.latency_ms / 1000)
        return played
    finally:
        sink.close()
