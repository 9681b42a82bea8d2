"""Microphone -> encoder -> packets -> decoder -> speaker, by one worker between two clocks."""

from __future__ import annotations

from collections.abc import Callable

from encodec_rt.live.loop import CodecLoop
from encodec_rt.sound.drift import START_MS, Converter, Playout
from encodec_rt.sound.meter import LatencyBudget, Level, QueueTime, Status
from encodec_rt.sound.streams import (
    BLOCK_S,
    MAX_BACKLOG_S,
    POLL_S,
    AudioSink,
    AudioSource,
    AudioSystem,
)
from encodec_rt.sound.supervision import Watched, reopen
from encodec_rt.types import Audio

MAX_FRAMES = 8


class Duplex:
    """The worker: everything outside the callbacks happens in ``step``."""

    def __init__(
        self,
        loop: CodecLoop,
        system: AudioSystem,
        *,
        playback: bool = True,
        keep_all: bool = False,
        buffer_ms: float = START_MS,
        on_event: Callable[[str], None],
        replace_output: Callable[[Audio, Audio], Audio] | None = None,
    ) -> None:
        """Run ``loop`` between the ends of ``system``; ``on_event`` is told of lost devices.

        With ``keep_all`` a stall costs delay rather than input, for the sake of a recording.
        ``replace_output`` gets each captured piece and the frames it completed, and returns what is
        played.
        """
        self.loop = loop
        self._system = system
        self._keep_all = keep_all
        self._buffer_ms = buffer_ms
        self._began_s = system.now()
        self._source = Watched("microphone", system.open_source, on_event)
        self._sink = Watched("speaker", system.open_sink, on_event) if playback else None
        self._playout: Playout | None = None
        self._converter = Converter()
        self._input_level, self._output_level = Level(), Level()
        self._input_queue, self._playback_queue = QueueTime(), QueueTime()
        self._replace_output = replace_output
        self._shed = 0
        self._unplayed = 0
        self._names = ["", "no playback"]
        self._latencies_ms = [0.0, 0.0]

    def open(self) -> None:
        """Open the devices, the speaker first so that no input waits for it."""
        try:
            if self._sink is not None:
                self._sink.open(self._system.now())
            self._source.open(self._system.now())
        except BaseException:
            self.close()
            raise
        self._poll_ends()
        self._began_s = self._system.now()

    def close(self) -> None:
        """Give the devices back."""
        try:
            self._source.close()
        finally:
            if self._sink is not None:
                self._sink.close()

    def run(self, stop: Callable[[], bool]) -> None:
        """Work until ``stop`` says so; afterwards devices and recordings are closed.

        Whatever ends it, the recordings keep all that was captured until then.
        """
        try:
            while not stop():
                if not self.step():
                    self._system.sleep(POLL_S)
            self._drain()
            self.loop.finish()
        finally:
            self.close()
            self.loop.abandon()

    def step(self) -> bool:
        """Run the available blocks through the codec; False if there are none."""
        self._watch()
        source = self._source.end
        self._measure_queues()
        if source is None or source.waiting == 0:
            return False
        if not self._keep_all and source.waiting > MAX_BACKLOG_S * source.rate_hz:
            excess = source.waiting - round(BLOCK_S * source.rate_hz)
            self._shed += source.skip(excess)
        self._pass_on(source, source.waiting)
        return True

    def status(self) -> Status:
        """What to display; may be called from another thread."""
        loop, playout = self.loop, self._playout
        return Status(
            seconds=self._system.now() - self._began_s,
            input_name=self._names[0],
            output_name=self._names[1],
            input_db=self._input_level.rms_db,
            output_db=self._output_level.rms_db,
            kbps=loop.kbps,
            encode_ms=loop.encode_time.p50_p99,
            decode_ms=loop.decode_time.p50_p99,
            drift_ppm=playout.loop.drift_ppm if playout is not None else 0.0,
            target_ms=playout.target_ms if playout is not None else 0.0,
            budget=self._budget(),
            counts=self._counts(),
        )

    def _budget(self) -> LatencyBudget:
        loop, playout = self.loop, self._playout
        return LatencyBudget(
            input_buffer=self._latencies_ms[0],
            hop=1000 * loop.hop / loop.rate_hz,
            input_queue=self._input_queue.ms,
            encode=loop.encode_time.p50_p99[0],
            decode=loop.decode_time.p50_p99[0],
            resampler=playout.held_ms if playout is not None else 0.0,
            playback_queue=self._playback_queue.ms,
            output_buffer=self._latencies_ms[1],
        )

    def _counts(self) -> dict[str, int]:
        source, playout = self._source.counts, self._playout
        counts = {
            "input overflow": source.input_overflow,
            "input samples lost": source.lost_samples,
            "input samples shed": self._shed,
            "microphone lost": self._source.losses,
        }
        if self._sink is None or playout is None:
            return counts
        sink = self._sink.counts
        return counts | {
            "output underflow": sink.output_underflow,
            "playback starved": sink.starvations,
            "playback samples missing": sink.lost_samples,
            "silence inserted": playout.inserted,
            "samples skipped": playout.skipped,
            "samples unplayed": self._unplayed,
            "samples clipped": playout.clipped,
            "speaker lost": self._sink.losses,
        }

    def _pass_on(self, source: AudioSource, most: int) -> int:
        """Run up to ``most`` samples through the codec; returns how many."""
        audio = source.read(min(most, round(MAX_FRAMES * BLOCK_S * source.rate_hz)))
        taken = len(audio)
        if source.rate_hz != self.loop.rate_hz:
            audio = self._converter.process(audio, self.loop.rate_hz / source.rate_hz)
        self._input_level.update(audio)
        heard = self.loop.push(audio)
        if self._replace_output is not None:
            heard = self._replace_output(audio, heard)
        self._output_level.update(heard)
        if len(heard) and self._sink is not None:
            if self._sink.end is None or self._playout is None:
                self._unplayed += len(heard)
            else:
                self._playout.write(heard, backlog_ms=self._waiting_ms(source))
        return taken

    def _drain(self) -> None:
        """Encode what is queued by now, so that a recording ends where the session did.

        No more than that: with a codec that is too slow, input would never end.
        """
        source = self._source.end
        left = 0 if source is None else source.waiting
        while source is not None and left > 0:
            left -= self._pass_on(source, left)

    def _watch(self) -> None:
        now_s = self._system.now()
        changed = self._source.lost(now_s)
        if changed and self._playout is not None:
            self._playout.pause()
        if self._sink is not None:
            changed |= self._sink.lost(now_s)
        if changed or self._source.end is None or (self._sink and self._sink.end is None):
            ends: list[Watched[AudioSource] | Watched[AudioSink]] = [self._source]
            if self._sink is not None:
                ends.insert(0, self._sink)
            reopen(self._system, ends, kept=self._source if self._keep_all else None)
            self._poll_ends()

    def _poll_ends(self) -> None:
        """Take note of reopened streams."""
        source = self._source.end
        if source is not None:
            self._names[0], self._latencies_ms[0] = source.name, source.latency_ms
        sink = self._sink.end if self._sink is not None else None
        if sink is None:
            return
        self._names[1], self._latencies_ms[1] = sink.name, sink.latency_ms
        if self._playout is None:
            self._playout = Playout(sink, self.loop.rate_hz, target_ms=self._buffer_ms)
        elif self._playout.sink is not sink:
            self._playout.attach(sink)

    def _measure_queues(self) -> None:
        now_s = self._system.now()
        source = self._source.end
        if source is not None:
            self._input_queue.update(self._waiting_ms(source), now_s)
        if self._playout is not None:
            self._playback_queue.update(self._playout.fill_ms, now_s)

    def _waiting_ms(self, source: AudioSource) -> float:
        """What has been captured but not encoded yet."""
        return 1000 * (source.waiting / source.rate_hz + self.loop.waiting / self.loop.rate_hz)
