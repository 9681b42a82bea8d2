"""What a network does to packets, as a pure model: seeded, and with the clock passed in.

The same model drives the tests, the benches and the router of the demo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from encodec_rt.errors import ConfigError


@dataclass(frozen=True)
class PathProfile:
    """How a path treats packets; the defaults are those of a perfect path."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    """Mean of an additional exponential delay; packets overtake one another if it is large."""
    loss: float = 0.0
    """Mean share of packets lost."""
    burst: float = 1.0
    """Mean length of a run of losses. Above 1 the losses follow Gilbert's two-state model."""
    duplicate: float = 0.0
    reorder: float = 0.0
    """Share of packets held back by ``reorder_ms``."""
    reorder_ms: float = 30.0
    spike_every_s: float = 0.0
    """How often the path stalls: packets then queue for ``spike_ms`` and arrive in one burst."""
    spike_ms: float = 120.0
    step_at_s: float = 0.0
    """When the delay changes for good by ``step_ms``."""
    step_ms: float = 0.0
    outages_s: tuple[tuple[float, float], ...] = ()
    """Spans of time in which everything is lost."""
    rate_kbps: float = 0.0
    """Capacity of a bottleneck, headers included; 0 for none."""
    rate_span_s: tuple[float, float] = (0.0, float("inf"))
    queue_ms: float = 1000.0
    """What the bottleneck queues before it drops."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a share outside [0, 1), a burst that the loss cannot have, or a
        time or rate below zero.
        """
        for name in ("delay_ms", "jitter_ms", "reorder_ms", "spike_ms", "queue_ms", "rate_kbps"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)}; 0 or more")
        for name in ("loss", "duplicate", "reorder"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; a share in [0, 1)")
        if self.burst < 1 or (self.burst > 1 and self.loss / (1 - self.loss) > self.burst):
            raise ConfigError(
                f"loss={self.loss} in bursts of {self.burst}; bursts last at least 1 packet, "
                "and longer ones than loss / (1 - loss)"
            )


class Channel:
    """One direction of a ``PathProfile``: when each packet arrives, how often, or not at all."""

    def __init__(self, network: PathProfile, seed: int = 0) -> None:
        """All randomness comes from ``seed``."""
        self.network = network
        self.sent = 0
        self.lost = 0
        self._random = np.random.default_rng(seed)
        self._bad = False
        self._free_s = 0.0

    def send(self, now_s: float, size: int = 0) -> list[float]:
        """The times at which a packet of ``size`` bytes sent now arrives: none, one or two."""
        self.sent += 1
        queued_s = self._queue(now_s, size)
        if self._lose() or self._is_out(now_s) or queued_s is None:
            self.lost += 1
            return []
        copies = 1 + (self._random.random() < self.network.duplicate)
        return [now_s + queued_s + self._delay_s(now_s) for _ in range(copies)]

    def _lose(self) -> bool:
        network = self.network
        if network.burst <= 1:
            return bool(self._random.random() < network.loss)
        leave = 1 / network.burst
        enter = leave * network.loss / (1 - network.loss)
        chance = 1 - leave if self._bad else enter
        self._bad = bool(self._random.random() < chance)
        return self._bad

    def _is_out(self, now_s: float) -> bool:
        return any(begin <= now_s < end for begin, end in self.network.outages_s)

    def _queue(self, now_s: float, size: int) -> float | None:
        """Seconds in the bottleneck, or None if its queue is full."""
        network = self.network
        begin, end = network.rate_span_s
        if not network.rate_kbps or not begin <= now_s < end:
            self._free_s = now_s
            return 0.0
        starts = max(now_s, self._free_s)
        if starts - now_s > network.queue_ms / 1000:
            return None
        self._free_s = starts + size * 8 / (network.rate_kbps * 1000)
        return self._free_s - now_s

    def _delay_s(self, now_s: float) -> float:
        network = self.network
        delay_ms = network.delay_ms
        if network.jitter_ms:
            delay_ms += self._random.exponential(network.jitter_ms)
        if network.reorder and self._random.random() < network.reorder:
            delay_ms += network.reorder_ms
        if network.step_ms and now_s >= network.step_at_s:
            delay_ms += network.step_ms
        if network.spike_every_s and now_s >= network.spike_every_s:
            into_ms = now_s % network.spike_every_s * 1000
            delay_ms += max(0.0, network.spike_ms - into_ms)
        return delay_ms / 1000
