"""A microphone and a speaker as the ends of a call, each of which may be missing for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from encodec_rt.config import EncodecConfig
from encodec_rt.link.endpoints import Clock
from encodec_rt.sound.drift import START_MS, Converter, Playout
from encodec_rt.sound.meter import ClockRate, QueueTime
from encodec_rt.sound.processing import VoiceProcessor
from encodec_rt.sound.streams import MAX_BACKLOG_S, POLL_S, AudioSink, AudioSource
from encodec_rt.sound.supervision import Watched
from encodec_rt.types import Audio

CLOCK_PULL = 0.02
"""The share of its error that the smoothed playout clock corrects per hop."""


class DeviceSource:
    """A call's microphone, at the model's rate."""

    def __init__(
        self,
        watched: Watched[AudioSource],
        config: EncodecConfig,
        *,
        poll: Callable[[], None],
        close: Callable[[], None],
        voice: VoiceProcessor | None = None,
        ahead_ms: Callable[[], float] = float,
    ) -> None:
        """``poll`` is called often, ``close`` gives the device back.

        ``voice`` cleans what is heard; ``ahead_ms`` is how long before being heard it was told of
        what the speaker plays.
        """
        self.watched = watched
        self._poll, self._close = poll, close
        self._voice = voice
        self._ahead_ms = ahead_ms
        self._hop = config.hop_length
        self._rate_hz = config.sampling_rate
        self._stream: AudioSource | None = None
        self._converter = Converter()
        self._clock = Clock(self._hop / self._rate_hz)
        self._rest: Audio = np.zeros(0, np.float32)
        self._queue = QueueTime()
        self._device_clock = ClockRate(self._rate_hz)
        self._name, self._buffer_ms = "", 0.0
        self._silent = self._shed = 0

    async def read(self) -> Audio | None:
        """The next hop, silence while the device is missing."""
        while len(self._rest) < self._hop:
            self._poll()
            stream = self._now_open()
            if stream is None:
                await self._clock.tick()
                self._rest = np.zeros(self._hop, np.float32)
                self._silent += self._hop
            elif stream.waiting:
                self._rest = np.concatenate([self._rest, self._take(stream)])
            else:
                await asyncio.sleep(POLL_S)
        hop, self._rest = self._rest[: self._hop], self._rest[self._hop :]
        return hop[None]

    def close(self) -> None:
        """Give the device back."""
        self._close()

    def measure(self, now_s: float) -> None:
        """Take note of what waits, and of the device's clock."""
        stream = self._stream
        if stream is not None:
            self._device_clock.update(stream.counts.samples, now_s)
            self._queue.update(self._waiting_ms(stream), now_s)

    def statistics(self) -> dict[str, object]:
        """Counters of what the microphone recorded and lost."""
        counts = self.watched.counts
        return {
            "name": self._name,
            "timesLost": self.watched.losses,
            "inputOverflows": counts.input_overflow,
            "samplesLost": counts.lost_samples,
            "samplesShed": self._shed,
            "samplesOfSilence": self._silent,
            "clockPpm": self._device_clock.ppm,
        }

    def latency_ms(self) -> dict[str, float]:
        """Term by term."""
        terms = {"inputBuffer": self._buffer_ms, "inputQueue": self._queue.ms}
        return terms if self._voice is None else terms | {"voiceProcessing": self._voice.held_ms}

    def _now_open(self) -> AudioSource | None:
        stream = self.watched.end
        if stream is not self._stream:
            self._stream = stream
            if stream is not None:
                self._converter = Converter()
                self._device_clock = ClockRate(stream.rate_hz)
                self._name, self._buffer_ms = stream.name, stream.latency_ms
        return stream

    def _take(self, stream: AudioSource) -> Audio:
        excess = stream.waiting - round(MAX_BACKLOG_S * stream.rate_hz)
        if excess > 0:
            self._shed += stream.skip(excess)
        captured = stream.read(stream.waiting)
        made = self._converter.process(captured, self._rate_hz / stream.rate_hz)
        if self._voice is None:
            return made
        behind_ms = self._buffer_ms + self._waiting_ms(stream)
        return self._voice.clean(made, delay_ms=self._ahead_ms() + behind_ms)

    def _waiting_ms(self, stream: AudioSource) -> float:
        made = len(self._rest) + (self._voice.waiting if self._voice is not None else 0)
        return 1000 * (stream.waiting / stream.rate_hz + made / self._rate_hz)


class DeviceSink:
    """A call's speaker, which asks for a hop whenever its queue runs low."""

    def __init__(
        self,
        watched: Watched[AudioSink],
        config: EncodecConfig,
        *,
        poll: Callable[[], None],
        close: Callable[[], None],
        voice: VoiceProcessor | None = None,
        buffer_ms: float = START_MS,
    ) -> None:
        """``poll`` is called often, ``close`` releases the device; ``voice`` gets all audio."""
        self._target_ms = buffer_ms
        self.watched = watched
        self._poll, self._close = poll, close
        self._voice = voice
        self._rate_hz = config.sampling_rate
        self._hop_s = config.hop_length / config.sampling_rate
        self._stream: AudioSink | None = None
        self._playout: Playout | None = None
        self._tick_s: float | None = None
        self._queue = QueueTime()
        self._device_clock = ClockRate(self._rate_hz)
        self._name, self._buffer_ms = "", 0.0
        self._unplayed = 0

    async def ready(self) -> float:
        """Wait for room in the queue, or for the next hop's time while the device is missing."""
        loop = asyncio.get_running_loop()
        while True:
            self._poll()
            now_s = loop.time()
            due_s = now_s if self._tick_s is None else self._tick_s + self._hop_s
            if self._wants_audio(now_s, due_s):
                break
            await asyncio.sleep(POLL_S)
        # Callbacks come in steps; the jitter buffer wants the clock behind them.
        self._tick_s = due_s + CLOCK_PULL * (now_s - due_s)
        return self._tick_s

    def write(self, audio: Audio) -> None:
        """Queue a hop."""
        samples = audio.reshape(-1)
        if self._now_open() is None or self._playout is None:
            self._unplayed += len(samples)
            return
        if self._voice is not None:
            self._voice.played(samples)
        self._playout.write(samples)

    def close(self) -> None:
        """Give the device back."""
        self._close()

    def measure(self, now_s: float) -> None:
        """Take note of what waits, and of the device's clock."""
        if self._stream is not None and self._playout is not None:
            self._device_clock.update(self._stream.counts.samples, now_s)
            self._queue.update(self._playout.fill_ms, now_s)

    def ahead_ms(self) -> float:
        """How long it takes until audio written now is heard."""
        return self._buffer_ms + (self._playout.fill_ms if self._playout is not None else 0.0)

    def statistics(self) -> dict[str, object]:
        """Counters of what the speaker played and lost."""
        counts, playout = self.watched.counts, self._playout
        return {
            "name": self._name,
            "timesLost": self.watched.losses,
            "outputUnderflows": counts.output_underflow,
            "starvations": counts.starvations,
            "samplesMissing": counts.lost_samples,
            "samplesInserted": playout.inserted if playout is not None else 0,
            "samplesSkipped": playout.skipped if playout is not None else 0,
            "samplesClipped": playout.clipped if playout is not None else 0,
            "samplesUnplayed": self._unplayed,
            "clockPpm": self._device_clock.ppm,
        }

    def latency_ms(self) -> dict[str, float]:
        """Term by term."""
        held_ms = self._playout.held_ms if self._playout is not None else 0.0
        return {
            "resampler": held_ms,
            "playbackQueue": self._queue.ms,
            "outputBuffer": self._buffer_ms,
        }

    def _wants_audio(self, now_s: float, due_s: float) -> bool:
        if self._tick_s is None:
            return True
        if self._now_open() is None or self._playout is None:
            return now_s >= due_s
        return self._playout.fill_ms <= self._playout.target_ms

    def _now_open(self) -> AudioSink | None:
        stream = self.watched.end
        if stream is not self._stream:
            self._stream = stream
            if stream is not None:
                self._device_clock = ClockRate(stream.rate_hz)
                self._name, self._buffer_ms = stream.name, stream.latency_ms
                if self._playout is None:
                    self._playout = Playout(
                        stream, self._rate_hz, target_ms=self._target_ms, follow=False
                    )
                else:
                    self._playout.attach(stream)
        return stream
