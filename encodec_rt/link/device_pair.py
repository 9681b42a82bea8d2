"""Both devices of a call: opened together, watched, and reopened after a loss."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import AudioDeviceError, ConfigError
from encodec_rt.link.device_endpoints import DeviceSink, DeviceSource
from encodec_rt.sound.drift import START_MS
from encodec_rt.sound.processing import VoiceProcessor
from encodec_rt.sound.streams import AudioSink, AudioSource, AudioSystem
from encodec_rt.sound.supervision import Watched, reopen

LOOK_S = 0.25


class DevicePair:
    """A microphone, a speaker, or both: ``source`` and ``sink`` are what a call is given.

    A lost device is reopened when it comes back. Until then the call goes on: the microphone is
    silent, and the speaker's audio is dropped, each at its usual pace.
    """

    def __init__(
        self,
        system: AudioSystem,
        config: EncodecConfig,
        *,
        microphone: bool = True,
        speaker: bool = True,
        voice: VoiceProcessor | None = None,
        buffer_ms: float = START_MS,
        on_event: Callable[[str], None],
    ) -> None:
        """Open the devices; ``on_event`` is told of losses, from another thread.

        ``buffer_ms`` of audio are kept queued for the speaker, more after it ran empty.

        Raises AudioDeviceError, and ConfigError for a model that is not mono or for echo
        cancellation without both devices.
        """
        if config.audio_channels != 1:
            raise ConfigError(
                f"a model of {config.audio_channels} channels; calls with a microphone and a "
                "speaker are mono"
            )
        if voice is not None and voice.echo and not (microphone and speaker):
            raise ConfigError(
                "echo cancellation compares the microphone with the speaker; use both, or leave it "
                "off"
            )
        self._system, self._on_event = system, on_event
        self._lock = threading.Lock()
        self._closed = False
        self._next_s = 0.0
        self._check: asyncio.Future[None] | None = None
        self.sink = DeviceSink(
            Watched("speaker", system.open_sink, on_event),
            config,
            poll=self._poll,
            close=self.close,
            voice=voice,
            buffer_ms=buffer_ms,
        )
        self.source = DeviceSource(
            Watched("microphone", system.open_source, on_event),
            config,
            poll=self._poll,
            close=self.close,
            voice=voice,
            ahead_ms=self.sink.ahead_ms,
        )
        self._ends: list[Watched[AudioSource] | Watched[AudioSink]] = []
        if speaker:
            self._ends.append(self.sink.watched)
        if microphone:
            self._ends.append(self.source.watched)
        try:
            for end in self._ends:
                end.open(system.now())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the devices. Repeating this is harmless."""
        self._closed = True
        with self._lock:
            for end in self._ends:
                try:
                    end.close()
                except AudioDeviceError as error:
                    # A call that ends has more to release, and a recording to finish.
                    self._on_event(str(error))

    def statistics(self) -> dict[str, object]:
        """Both devices' counters, clocks against this machine's, and their share of the latency."""
        statistics: dict[str, object] = {}
        terms: dict[str, float] = {}
        if self.source.watched in self._ends:
            statistics["microphone"] = self.source.statistics()
            terms |= self.source.latency_ms()
        if self.sink.watched in self._ends:
            statistics["speaker"] = self.sink.statistics()
            terms |= self.sink.latency_ms()
        latency = {name: round(value, 2) for name, value in terms.items()}
        return statistics | {"latencyMs": latency | {"sum": round(sum(terms.values()), 2)}}

    def _poll(self) -> None:
        """Check from time to time, in a thread, whether a device was lost."""
        now_s = self._system.now()
        if now_s < self._next_s:
            return
        self._next_s = now_s + LOOK_S
        self.source.measure(now_s)
        self.sink.measure(now_s)
        if self._check is None or self._check.done():
            if self._check is not None:
                self._check.result()
            self._check = asyncio.get_running_loop().run_in_executor(None, self._supervise)

    def _supervise(self) -> None:
        with self._lock:
            if self._closed:
                return
            for end in self._ends:
                end.lost(self._system.now())
            if any(end.end is None for end in self._ends):
                reopen(self._system, self._ends)
