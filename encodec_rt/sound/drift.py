"""Matching two clocks: a queue, and a resampler whose ratio follows the queue's fill."""

from __future__ import annotations

from typing import Any

import numpy as np

from encodec_rt.extras import needed_for
from encodec_rt.pcm import to_int16
from encodec_rt.sound.streams import BLOCK_S, AudioSink
from encodec_rt.types import Audio, Samples

REFERENCE_HZ = 24_000
PROPORTIONAL = 2e-6
INTEGRAL = 2e-10
SMOOTHING = 0.01
MAX_CORRECTION = 0.005
"""Half a per cent, a twelfth of a semitone, which nobody hears as a change of pitch."""

START_MS = 40.0
STARVED_STEP_MS = 10.0
MAX_TARGET_MS = 200.0
STALL_S = 1.0
CALM_S = 30.0
CALM_STEP_MS = 5.0
SLACK_MS = 160.0


class DriftLoop:
    """The resampling ratio that keeps a queue at its target while its ends run on different clocks.

    A proportional-integral loop on the smoothed fill. The constants are for samples of 24 kHz and
    steps of ``BLOCK_S``: damping 1.3, a natural period of five and a half minutes; an integral ten
    times larger oscillates.
    """

    def __init__(self) -> None:
        """Start with equal clocks."""
        self._fill_ms: float | None = None
        self._integral = 0.0
        self.correction = 0.0

    @property
    def ratio(self) -> float:
        """Output samples per input sample, close to 1."""
        return 1.0 + self.correction

    @property
    def drift_ppm(self) -> float:
        """How much faster the writer's clock runs than the reader's, in parts per million."""
        return -1e6 * self._integral

    def update(self, fill_ms: float, target_ms: float, elapsed_s: float) -> float:
        """The new ratio, after a look at the queue ``elapsed_s`` later than the last."""
        steps = elapsed_s / BLOCK_S
        if self._fill_ms is None:
            self._fill_ms = fill_ms
        self._fill_ms += (1.0 - (1.0 - SMOOTHING) ** steps) * (fill_ms - self._fill_ms)
        error = (self._fill_ms - target_ms) * REFERENCE_HZ / 1000
        integral = self._integral - INTEGRAL * steps * error
        wanted = integral - PROPORTIONAL * error
        self.correction = min(MAX_CORRECTION, max(-MAX_CORRECTION, wanted))
        # A correction at its limit says nothing about the clocks, and must not wind up the
        # integral.
        if wanted == self.correction:
            self._integral = integral
        return self.ratio

    def rebase(self, fill_ms: float) -> None:
        """The queue was filled or cut from outside; continue with the drift known so far."""
        self._fill_ms = fill_ms


class Converter:
    """Audio from one sample rate to another, with a ratio that may change in every call.

    libsamplerate's fastest sinc filter, which holds back 0.8 ms at 24 kHz and glides from one
    ratio to the next.
    """

    def __init__(self) -> None:
        """Start with nothing held back."""
        with needed_for("playing audio on a sound card's clock"):
            import samplerate

        self._resampler: Any = samplerate.Resampler("sinc_fastest", channels=1)
        self.held = 0.0

    def process(self, audio: Audio, ratio: float) -> Audio:
        """About ``len(audio) * ratio`` samples, float32; ``held`` is what they lack of that."""
        if not len(audio):
            return audio
        made: Audio = self._resampler.process(audio, ratio, end_of_input=False)
        self.held += len(audio) * ratio - len(made)
        return made


class Playout:
    """Audio at the codec's rate into a sink that has its own rate and its own clock.

    Only the resampler follows drift. Silence is inserted, up to the target, only at the start and
    when the sink ran empty; audio is skipped only after a burst that the loop could not absorb
    within seconds; both are counted. Every starvation raises the target, every half minute without
    one lowers it.
    """

    def __init__(
        self, sink: AudioSink, rate_hz: int, *, target_ms: float = START_MS, follow: bool = True
    ) -> None:
        """Play into ``sink`` audio of ``rate_hz``, with ``target_ms`` waiting in its queue.

        Without ``follow`` the ratio is fixed, for a writer that waits until the queue runs low: the
        fill then says nothing about clocks, and the loop would wind up.
        """
        self.loop = DriftLoop()
        self._follow = follow
        self.target_ms = target_ms
        self.clipped = 0
        self.inserted = 0
        self.skipped = 0
        self._base_ms = target_ms
        self._rate_hz = rate_hz
        self._unchanged_s = STALL_S
        self.attach(sink)

    def attach(self, sink: AudioSink) -> None:
        """Continue with ``sink``, which replaces the previous one."""
        self.sink = sink
        self._converter = Converter()
        self._starved = sink.counts.starvations
        self._begun = False
        self._gap = False
        self._skipping = False

    @property
    def fill_ms(self) -> float:
        """What waits in the sink's queue."""
        return 1000 * self.sink.fill / self.sink.rate_hz

    @property
    def held_ms(self) -> float:
        """What the resampler holds back."""
        return 1000 * self._converter.held / self.sink.rate_hz

    def write(self, audio: Audio, *, backlog_ms: float = 0.0) -> None:
        """Play ``audio`` float32 [n] after all that was written before.

        ``backlog_ms`` says how much more is about to follow at once, as it does after a stall.
        """
        elapsed_s = len(audio) / self._rate_hz
        ratio = self.loop.ratio * self.sink.rate_hz / self._rate_hz
        made = self._to_int16(self._converter.process(audio, ratio))
        self._adapt_target(elapsed_s)
        if not self._begun:
            coming_ms = 1000 * len(made) / self.sink.rate_hz + backlog_ms
            self._fill_up(self.target_ms - coming_ms)
            self._begun = True
        if self._overfull(len(made)):
            self.skipped += len(made)
            return
        self.skipped += self.sink.write(made)
        if self._follow:
            self.loop.update(self.fill_ms, self.target_ms, elapsed_s)

    def pause(self) -> None:
        """Nothing will be written for a while, so an empty queue does not count as starvation."""
        self.sink.pause()
        self._begun = False

    def _adapt_target(self, elapsed_s: float) -> None:
        starved = self.sink.counts.starvations
        self._unchanged_s += elapsed_s
        if starved > self._starved:
            # One stall may starve the sink several times, but counts once.
            if self._unchanged_s > STALL_S:
                most_ms = max(MAX_TARGET_MS, self._base_ms)
                self.target_ms = min(most_ms, self.target_ms + STARVED_STEP_MS)
                self._unchanged_s = 0.0
            self._starved, self._begun, self._gap = starved, False, True
        elif self._unchanged_s > CALM_S:
            self.target_ms = max(self._base_ms, self.target_ms - CALM_STEP_MS)
            self._unchanged_s = 0.0

    def _fill_up(self, wanted_ms: float) -> None:
        """Queue silence up to ``wanted_ms``; only in the middle of audio it counts as a fault."""
        silence = max(0, round((wanted_ms - self.fill_ms) * self.sink.rate_hz / 1000))
        self.sink.write(np.zeros(silence, np.int16))
        if self._gap:
            self.inserted += silence
            self._gap = False
        self.loop.rebase(self.target_ms)

    def _overfull(self, count: int) -> bool:
        """Whether ``count`` more samples are too many; if so, until the queue is at its target.

        Skipped in one piece, they cause one jump instead of many.
        """
        if not self._skipping:
            coming_ms = self.fill_ms + 1000 * count / self.sink.rate_hz
            self._skipping = coming_ms > self.target_ms + SLACK_MS
        elif self.fill_ms <= self.target_ms:
            self._skipping = False
            self.loop.rebase(self.fill_ms)
        return self._skipping

    def _to_int16(self, audio: Audio) -> Samples:
        samples: Samples = to_int16(audio)
        self.clipped += int(np.count_nonzero(np.rint(audio * 32768.0) != samples))
        return samples
