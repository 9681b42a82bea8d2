"""What passes between the network and the engine: whole frames, some of them waiting, and results.

The network's thread puts in and the engine's takes out; a deque does both at once safely.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from encodec_rt.types import Codes, Samples


@dataclass(frozen=True, eq=False, slots=True)
class WaitingFrame:
    """A frame that came in: samples [channels, hop] int16, or codes [Q], or None for one lost."""

    index: int
    content: Samples | Codes | None
    arrived_s: float


@dataclass(frozen=True, eq=False, slots=True)
class ClipEnd:
    """The end of a clip, and the samples [channels, n] after its last whole frame."""

    index: int
    rest: Samples


@dataclass(frozen=True)
class Loss:
    """Frames that were dropped: ``count`` of them, from ``first`` on."""

    first: int
    count: int


@dataclass(frozen=True, eq=False, slots=True)
class Output:
    """Something for a session's client: a binary message, a frame of a call, or an event."""

    key: int
    data: bytes | None = None
    codes: Codes | None = None
    """A frame [Q] for a call, which has packets of its own."""
    active: bool = True
    """Whether ``codes`` hold more than silence."""
    event: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    index: int = 0
    arrived_s: float | None = None
    """When its input arrived, for measuring latency."""


@dataclass
class Progress:
    """How far a session has got; with its slot's state, all that a restart needs."""

    encoded: int = 0
    """The next frame to encode."""
    decoded: int = 0
    """The next frame to decode."""
    encoder_begun: bool = True
    decoder_begun: bool = True
    to_drop: int = 0
    """Samples before the clip's first one that the decoder still returns."""
    resumed: int = 0
    """How often the session was resumed, which identifies its last server's states."""


class FrameSink(Protocol):
    """A queue for frames of one direction on their way to the engine."""

    def put(self, item: WaitingFrame | ClipEnd) -> Loss | None:
        """Add ``item``; returns what was dropped for it, if anything."""


class FrameQueue:
    """Frames in order, and the marks between clips."""

    def __init__(self, most: int) -> None:
        """Hold ``most`` frames."""
        self.most = most
        self._items: deque[WaitingFrame | ClipEnd] = deque()

    def __len__(self) -> int:
        """Frames and marks that wait."""
        return len(self._items)

    def put(self, item: WaitingFrame | ClipEnd) -> Loss | None:
        """Add ``item``; returns what was dropped for it, if anything."""
        dropped = None
        if len(self._items) >= self.most:
            dropped = self._drop_oldest()
        self._items.append(item)
        return dropped

    def peek(self, at: int = 0) -> WaitingFrame | ClipEnd | None:
        """A waiting item: the next one or a later one."""
        try:
            return self._items[at]
        except IndexError:
            return None

    def take(self) -> WaitingFrame | ClipEnd | None:
        """Remove and return the next item."""
        try:
            return self._items.popleft()
        except IndexError:
            return None

    def take_frames(self, most: int) -> list[WaitingFrame]:
        """Up to ``most`` frames, as many as there are before a mark."""
        frames: list[WaitingFrame] = []
        while len(frames) < most:
            item = self.take()
            if isinstance(item, ClipEnd):
                self._items.appendleft(item)
            if not isinstance(item, WaitingFrame):
                break
            frames.append(item)
        return frames

    def frames_ready(self, most: int) -> int:
        """How many frames wait before a mark, at most ``most``."""
        for count in range(most):
            if not isinstance(self.peek(count), WaitingFrame):
                return count
        return most

    def _drop_oldest(self) -> Loss | None:
        item = self.take()
        if isinstance(item, ClipEnd):
            # A mark is never lost: the frame after it is dropped instead.
            following = self.take()
            self._items.appendleft(item)
            item = following
        return Loss(item.index, 1) if isinstance(item, WaitingFrame) else None


class QueuedIntake:
    """Passes a session's frames to an engine in this process."""

    def __init__(self, waiting_frames: int, wake: Callable[[], None]) -> None:
        """``waiting_frames`` frames may wait in each direction."""
        self.pcm, self.codes = FrameQueue(waiting_frames), FrameQueue(waiting_frames)
        self.saved = self.answered = 0
        """Snapshots, counted by the engine's thread, and those that the client has confirmed."""
        self._wake = wake

    def wake(self) -> None:
        """Say that something waits."""
        self._wake()

    def kept(self) -> None:
        """The client has confirmed another snapshot."""
        self.answered += 1


class PcmFramer:
    """Samples in pieces of any size -> whole frames, numbered."""

    def __init__(self, hop: int, channels: int) -> None:
        """For frames of ``hop`` samples."""
        self._hop, self._channels = hop, channels
        self._rest = np.zeros((channels, 0), np.int16)
        self.index = 0
        """The index of the frame being filled."""

    @property
    def is_empty(self) -> bool:
        """Whether no sample waits for the rest of its frame."""
        return not self._rest.shape[1]

    def skip_to(self, index: int) -> None:
        """Continue with frame ``index``; samples of an earlier one are dropped."""
        self._rest, self.index = self._rest[:, :0], index

    def push(self, pcm: bytes, now_s: float) -> list[WaitingFrame]:
        """The frames that ``pcm``, little-endian and interleaved, completes."""
        samples = np.frombuffer(pcm, "<i2").reshape(-1, self._channels).T
        joined = np.concatenate([self._rest, samples], axis=1) if self._rest.size else samples
        count = joined.shape[1] // self._hop
        frames = []
        for at in range(count):
            piece = joined[:, at * self._hop : (at + 1) * self._hop]
            frames.append(WaitingFrame(self.index + at, piece, now_s))
        self._rest = joined[:, count * self._hop :].copy()
        self.index += count
        return frames

    def finish(self) -> ClipEnd:
        """The end of a clip; the next one begins with the frame after the remainder."""
        end = ClipEnd(self.index, self._rest)
        self.skip_to(self.index + (not self.is_empty))
        return end
