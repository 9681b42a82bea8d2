"""The bandwidth of the path to this side, as the receiving end sees it."""

from __future__ import annotations

from typing import Any

from aiortc.rate import RemoteBitrateEstimator

from encodec_rt.voice.bitrate import HEADER_BYTES
from encodec_rt.voice.delay import StandingQueue

MIN_QUEUE_S = 0.01
"""A standing queue shorter than this is ignored."""


class PathEstimator(RemoteBitrateEstimator):
    """aiortc's congestion estimate, counting headers, and ignoring jitter without a queue.

    The estimator is made for video, whose packets come in bursts. To it a voice stream's single
    packets look like overuse whenever the path jitters, and the rate would collapse for no reason.
    """

    def __init__(self) -> None:
        """A new estimator."""
        super().__init__()
        self._queue = StandingQueue()
        self._sent_s: float | None = None

    def add(self, arrival_time_ms: int, abs_send_time: int, payload_size: int, ssrc: int) -> Any:
        """From time to time the estimate in bits per second and whom it is for; else None."""
        arrival_s = arrival_time_ms / 1000
        self._queue.add(arrival_s - self._unwrap(abs_send_time), arrival_s)
        result = super().add(
            arrival_time_ms=arrival_time_ms,
            abs_send_time=abs_send_time,
            payload_size=payload_size + HEADER_BYTES,
            ssrc=ssrc,
        )
        incoming = self.incoming_bitrate.rate(arrival_time_ms)
        if result is None or incoming is None or self._queue.delay_s > MIN_QUEUE_S:
            return result
        # As much as aiortc lets the estimate grow at once.
        bitrate = max(result[0], int(1.5 * incoming) + 10_000)
        self.rate_control.set_estimate(bitrate, arrival_time_ms)
        return bitrate, result[1]

    def _unwrap(self, abs_send_time: int) -> float:
        """Seconds, from 24 bits that wrap each 64 s."""
        sent_s = abs_send_time / (1 << 18)
        if self._sent_s is not None:
            sent_s += 64 * round((self._sent_s - sent_s) / 64)
        self._sent_s = sent_s
        return sent_s
