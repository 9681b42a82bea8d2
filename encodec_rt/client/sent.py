"""What was sent, in frames, kept as long as the server may ask for it again."""

from __future__ import annotations

from collections import deque


class SentAudio:
    """Audio that was sent, in frames, kept as long as the server may ask for it again."""

    def __init__(self) -> None:
        """Nothing was sent."""
        self.frame_samples = 320
        self.index = 0
        """The index of the frame being filled."""
        self._frames: deque[tuple[int, bytearray]] = deque([(0, bytearray())])

    @property
    def has_all(self) -> bool:
        """Whether nothing was forgotten."""
        return self._frames[0][0] == 0

    def add(self, pcm: bytes) -> tuple[int, bytes]:
        """Take at most a frame of bytes; the index of the frame in which they begin, and the
        bytes."""
        first, size = self.index, 2 * self.frame_samples
        frame = self._frames[-1][1]
        here = pcm[: size - len(frame)]
        frame += here
        if len(frame) == size:
            self.index += 1
            self._frames.append((self.index, bytearray(pcm[len(here) :])))
        return first, pcm

    def since(self, index: int) -> list[tuple[int, bytes]]:
        """Everything from frame ``index`` on."""
        return [(at, bytes(frame)) for at, frame in self._frames if at >= index and frame]

    def forget(self, index: int) -> None:
        """Drop what comes before frame ``index``."""
        while self._frames[0][0] < index and len(self._frames) > 1:
            self._frames.popleft()


class SentCodes:
    """The same for codes, as payloads of packets; a lost frame is None."""

    def __init__(self) -> None:
        """Nothing was sent."""
        self.index = 0
        self._frames: deque[tuple[int, bytes | None]] = deque()
        self.has_all = True
        """Whether nothing was forgotten."""

    def add(self, payload: bytes | None) -> int:
        """Take a frame; its number."""
        self._frames.append((self.index, payload))
        self.index += 1
        return self.index - 1

    def since(self, index: int) -> list[tuple[int, bytes | None]]:
        """Everything from frame ``index`` on."""
        return [each for each in self._frames if each[0] >= index]

    def forget(self, index: int) -> None:
        """Drop what comes before frame ``index``."""
        while self._frames and self._frames[0][0] < index:
            self._frames.popleft()
            self.has_all = False
