"""A device that is watched, and reopened when it is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Generic, TypeVar

from encodec_rt.errors import AudioDeviceError
from encodec_rt.sound.streams import AudioSink, AudioSource, AudioSystem, StreamCounts

LOST_AFTER_S = 2.0
FIRST_WAIT_S = 0.25
MAX_WAIT_S = 8.0

End = TypeVar("End", AudioSource, AudioSink)


class Watched(Generic[End]):
    """One end of the session: the open stream, or none while its device is away."""

    def __init__(
        self, word: str, open_end: Callable[[], End], on_event: Callable[[str], None]
    ) -> None:
        """``open_end`` opens the device, called ``word`` in messages; ``on_event`` is told of
        losses."""
        self.end: End | None = None
        self.losses = 0
        self.attempts = 0
        self._word = word
        self._open: Callable[[], End] = open_end
        self._on_event = on_event
        self._past = StreamCounts()
        self._callbacks = 0
        self._moved_s = 0.0
        self._retry_s = 0.0
        self._away = False
        self._last_event = ""

    @property
    def counts(self) -> StreamCounts:
        """What all streams of this end have counted."""
        return total(self._past, self.end.counts) if self.end is not None else self._past

    def open(self, now_s: float) -> None:
        """Open the device. Raises AudioDeviceError."""
        self.end = self._open()
        self._callbacks = 0
        self._moved_s = now_s

    def close(self) -> None:
        """Release the device; its counts stay. Raises AudioDeviceError if that hangs."""
        if self.end is not None:
            end, self.end = self.end, None
            try:
                end.close()
            finally:
                self._past = total(self._past, end.counts)

    def lost(self, now_s: float) -> bool:
        """Whether the stream has just been found to be dead; it is closed then."""
        if self.end is None:
            return False
        if self.end.counts.callbacks != self._callbacks:
            self._callbacks, self._moved_s = self.end.counts.callbacks, now_s
        silent_s = now_s - self._moved_s
        if self.end.active and silent_s < LOST_AFTER_S:
            return False
        self._on_event(f"the {self._word} {self.end.name!r} was lost; waiting for it to come back")
        self.losses += 1
        self.attempts = 0
        self._away = True
        self._retry_s = now_s
        try:
            self.close()
        except AudioDeviceError as error:
            self._on_event(str(error))
        return True

    def due(self, now_s: float) -> bool:
        """Whether it is time to try to open the device again."""
        return self.end is None and now_s >= self._retry_s

    def try_again(self, now_s: float) -> bool:
        """Open the device if it is present; otherwise double the wait before the next attempt."""
        try:
            self.open(now_s)
        except AudioDeviceError as error:
            self.put_off(now_s, error)
            return False
        if self._away:
            self._on_event(f"the {self._word} is back")
        self._away, self._last_event, self.attempts = False, "", 0
        return True

    def put_off(self, now_s: float, error: AudioDeviceError) -> None:
        """The device cannot be opened now; wait twice as long as before."""
        self._retry_s = now_s + min(MAX_WAIT_S, FIRST_WAIT_S * 2**self.attempts)
        self.attempts += 1
        if str(error) != self._last_event:
            self._last_event = str(error)
            self._on_event(self._last_event)


def total(one: StreamCounts, other: StreamCounts) -> StreamCounts:
    """The sums of two streams' counts."""
    return StreamCounts(
        **{
            field.name: getattr(one, field.name) + getattr(other, field.name)
            for field in fields(StreamCounts)
        }
    )


def reopen(
    system: AudioSystem,
    ends: Sequence[Watched[AudioSource] | Watched[AudioSink]],
    *,
    kept: Watched[AudioSource] | None = None,
) -> None:
    """Try to reopen those of ``ends`` that are lost and due, in this order.

    A replugged device is only seen after a rescan, which needs every stream closed. So the first
    attempt does without, and ``kept`` is never closed for another's sake.
    """
    due = [end for end in ends if end.due(system.now())]
    if any(end.attempts for end in due) and (kept is None or kept.end is None):
        try:
            for end in ends:
                end.close()
            system.rescan()
        except AudioDeviceError as error:
            for end in ends:
                end.put_off(system.now(), error)
            return
        due = list(ends)
    for end in due:
        end.try_again(system.now())
