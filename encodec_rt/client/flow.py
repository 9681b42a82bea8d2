"""Which frames were sent and received: how many are in flight, and which are new."""

from __future__ import annotations

from encodec_rt.server.protocol import Kind, StreamRequest

WINDOW_FRAMES = 6
"""The most frames in flight; the server drops what waits beyond eight."""


class Flow:
    """The frame numbers of a stream. ``next`` are those after all that were passed on."""

    def __init__(self, request: StreamRequest) -> None:
        """Nothing was sent or received yet."""
        self._request = request
        self.next = {Kind.CODES: 0, Kind.PCM: 0}
        self._starts = {Kind.CODES: 0, Kind.PCM: 0}
        self._sent, self._seen = dict(self.next), dict(self.next)

    def begin(self, frame: int, decoded: int, encoder_start: int, decoder_start: int) -> None:
        """A connection where the server expects these frames, and exact starts need these."""
        self._seen = {Kind.CODES: frame, Kind.PCM: decoded}
        self._sent = {Kind.PCM: frame, Kind.CODES: decoded}
        if self._request.start == "exact":
            self._starts = {Kind.CODES: encoder_start - 1, Kind.PCM: decoder_start - 1}

    def sent(self, kind: Kind, index: int) -> None:
        """Frame ``index`` was sent, or a part of it."""
        self._sent[kind] = index + 1

    def received(self, kind: Kind, index: int, frames: int) -> bool:
        """Frames from ``index`` on were received; whether they are new."""
        self._seen[kind] = max(self._seen[kind], index + frames)
        if index < self.next[kind]:
            return False
        self.next[kind] = index + frames
        return True

    def skip_to(self, index: int) -> None:
        """Frames before ``index`` are no longer in flight; some may still arrive."""
        for kind in self._seen:
            self._seen[kind] = max(self._seen[kind], index)

    @property
    def is_full(self) -> bool:
        """Whether the next frame should wait."""
        return self.in_flight >= WINDOW_FRAMES

    @property
    def in_flight(self) -> int:
        """Frames sent on this connection without a result, beyond what a start needs."""
        pcm, codes = (self._sent[kind] for kind in (Kind.PCM, Kind.CODES))
        encoder, decoder = (self._starts[kind] for kind in (Kind.CODES, Kind.PCM))
        counts = [0]
        if self._request.encodes:
            counts.append(pcm - self._seen[Kind.CODES] - encoder)
        if self._request.decodes:
            counts.append(codes - self._seen[Kind.PCM] - decoder)
        if self._request.mode == "echo":
            counts.append(pcm - self._seen[Kind.PCM] - encoder - decoder)
        return max(counts)
