"""Processing a microphone's sound for a call: echo, noise and level, by WebRTC's audio processing.

The only module that imports livekit, whose wheel carries that library, and inside a function.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from encodec_rt.errors import ConfigError
from encodec_rt.extras import needed_for
from encodec_rt.pcm import to_int16
from encodec_rt.sound.chirp import chirp, correlation
from encodec_rt.types import Audio

BLOCKS_PER_S = 100
"""The library works in blocks of 10 ms, and ends the whole process at any other length."""
RATES_HZ = (8_000, 48_000)
MAX_DELAY_MS = 500
_TRIAL_S = 0.1


class VoiceProcessor:
    """Removes the speaker's echo from the microphone's sound; optionally treats noise and level.

    ``played`` takes everything that goes to the speaker, ``clean`` what comes from the microphone.
    Both take any length, at one rate, in the same thread.
    """

    def __init__(
        self, rate_hz: int, *, echo: bool = True, noise: bool = False, gain: bool = False
    ) -> None:
        """Raises BackendUnavailable without livekit, ConfigError for an unsupported rate."""
        lowest, highest = RATES_HZ
        if not lowest <= rate_hz <= highest or rate_hz % BLOCKS_PER_S:
            raise ConfigError(
                f"a model of {rate_hz} Hz; echo cancellation, noise suppression and gain control "
                f"take {lowest} to {highest} Hz, in whole hundreds"
            )
        self.rate_hz = rate_hz
        self.block = rate_hz // BLOCKS_PER_S
        self.echo = echo
        self._settings = {
            "echo_cancellation": echo,
            "noise_suppression": noise,
            "auto_gain_control": gain,
        }
        self._frame, self._module = self._make()
        self._captured: Audio = np.zeros(0, np.float32)
        self._rendered: Audio = np.zeros(0, np.float32)
        self.held_ms = 1000 / rate_hz * self._trial()

    @property
    def waiting(self) -> int:
        """Samples that wait for their block to be complete."""
        return len(self._captured)

    def played(self, audio: Audio) -> None:
        """Take note of what is about to be played, float32 [n]."""
        if self.echo:
            blocks, self._rendered = self._cut(self._rendered, audio)
            for block in blocks:
                self._module.process_reverse_stream(self._as_frame(block))

    def clean(self, audio: Audio, *, delay_ms: float = 0.0) -> Audio:
        """The blocks that ``audio`` float32 [n] completes, cleaned, float32 [blocks * block].

        ``delay_ms`` is the time from ``played`` over speaker, air and microphone to this call, as
        far as it is known; the canceller starts from it and finds the rest by itself.
        """
        blocks, self._captured = self._cut(self._captured, audio)
        cleaned = np.empty((len(blocks), self.block), np.float32)
        for index, block in enumerate(blocks):
            frame = self._as_frame(block)
            if self.echo:
                self._module.set_stream_delay_ms(round(min(MAX_DELAY_MS, max(0.0, delay_ms))))
            self._module.process_stream(frame)
            cleaned[index] = np.frombuffer(frame.data, np.int16)
        return (cleaned / np.float32(32768.0)).reshape(-1)

    def _make(self) -> tuple[Any, Any]:
        with needed_for("processing a voice (echo, noise, gain)"):
            from livekit.rtc import AudioFrame, AudioProcessingModule
        return AudioFrame, AudioProcessingModule(**self._settings)

    def _trial(self) -> int:
        """How many samples late a chirp comes out, by a module of the same settings."""
        used = self._module
        _, self._module = self._make()
        sent = chirp(self.rate_hz)
        quiet = np.zeros(int(_TRIAL_S * self.rate_hz), np.float32)
        sound = np.concatenate([quiet, sent, quiet])
        pieces = []
        for start in range(0, len(sound), self.block):
            # The canceller holds less back while nothing at all was played.
            self.played(quiet[: self.block])
            pieces.append(self.clean(sound[start : start + self.block]))
        self._captured, self._module = self._captured[:0], used
        heard = np.concatenate(pieces)
        return int(np.argmax(np.abs(correlation(heard, sent)))) - len(quiet)

    def _cut(self, rest: Audio, audio: Audio) -> tuple[Audio, Audio]:
        """Whole blocks [blocks, block], and what is left."""
        joined = np.concatenate([rest, audio])
        whole = len(joined) // self.block * self.block
        return joined[:whole].reshape(-1, self.block), joined[whole:]

    def _as_frame(self, block: Audio) -> Any:
        return self._frame(bytearray(to_int16(block).tobytes()), self.rate_hz, 1, self.block)
