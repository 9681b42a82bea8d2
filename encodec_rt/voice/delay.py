"""What packets' transit times show: how long to wait for packets, and whether they are queueing.

A transit is arrival minus media or sending time. The two clocks have different origins, so only
differences between transits mean anything.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

BUCKET_S = 0.002
BUCKETS = 600
FORGET = 0.996
"""A packet's weight after n more: FORGET ** n, so that the last 250 packets count most."""
PRIOR_S = 0.002
PRIOR_PACKETS = 30
"""The prior before the first packets: this many, this much later on average."""
SWITCH_S = 0.002
"""A new delay must be better than the present one by this, or the buffer would oscillate."""

QUEUE_MEMORY_S = 30
QUEUE_PACKETS = 10
"""With fewer packets in a second a queue cannot be told from chance."""


class TransitHistogram:
    """Transit times by media time, with forgetting."""

    def __init__(self, *, late_cost_ms: float) -> None:
        """``late_cost_ms``: the delay worth one percentage point fewer late packets."""
        self._late_cost_s = late_cost_ms / 10
        self._mass: NDArray[np.float64] = np.zeros(BUCKETS)
        self._sums: NDArray[np.float64] = np.zeros(BUCKETS)
        self._low_s = 0.0
        self.count = 0

    def add(self, transit_s: float) -> None:
        """Count one more packet."""
        if not self.count:
            self._begin(transit_s)
        bucket = int((transit_s - self._low_s) // BUCKET_S)
        if not 0 <= bucket < BUCKETS:
            self._move(bucket - BUCKETS // 2)
            bucket = BUCKETS // 2
        self.count += 1
        # All packets have equal weight until there are enough to forget some.
        keep = min(FORGET, 1 - 1 / (PRIOR_PACKETS + self.count))
        self._mass *= keep
        self._mass[bucket] += 1 - keep
        np.cumsum(self._mass, out=self._sums)

    def shift(self, seconds: float) -> None:
        """Treat every packet so far as if it had taken ``seconds`` longer."""
        self._low_s += seconds

    def quantile(self, share: float) -> float:
        """The transit that ``share`` of the packets did not exceed."""
        bucket = int(self._sums.searchsorted(share * self._sums[-1]))
        return self._low_s + (min(bucket, BUCKETS - 1) + 1) * BUCKET_S

    def best(self, choices_s: NDArray[np.float64], present_s: float) -> float:
        """Of these transits to wait for, the one beyond which waiting costs more than it saves.

        It is a quantile whose share is chosen by the tail itself, as NetEq's reorder optimizer
        does: long waits are not paid for rare spikes.
        """
        buckets = np.floor((choices_s - self._low_s) / BUCKET_S).astype(int)
        # The share that arrived before a bucket; none before the first, all beyond the last.
        on_time = self._sums.take(buckets - 1, mode="clip")
        on_time[buckets <= 0] = 0.0
        cost = choices_s + self._late_cost_s * (self._sums[-1] - on_time)
        cost[np.abs(choices_s - present_s) < BUCKET_S] -= SWITCH_S
        return float(choices_s[np.argmin(cost)])

    def _begin(self, transit_s: float) -> None:
        self._low_s = transit_s - BUCKETS // 4 * BUCKET_S
        later_s = np.arange(BUCKETS - BUCKETS // 4) * BUCKET_S
        self._mass[BUCKETS // 4 :] = np.exp(-later_s / PRIOR_S)
        self._mass /= self._mass.sum()

    def _move(self, buckets: int) -> None:
        moved = np.zeros(BUCKETS)
        # None of them, if the move is wider than all buckets.
        kept = max(0, BUCKETS - abs(buckets))
        source = self._mass[max(0, buckets) :][:kept]
        moved[max(0, -buckets) :][:kept] = source
        # What would fall off an end stays in the last bucket there.
        moved[0 if buckets > 0 else -1] += self._mass.sum() - source.sum()
        self._mass = moved
        self._low_s += buckets * BUCKET_S


class StandingQueue:
    """How long packets wait on the path even when it does not jitter, from their transit times.

    A queue delays every packet, jitter only some: the fastest tenth of the last second is compared
    with the fastest of the last half minute.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._recent: deque[tuple[float, float]] = deque()
        self._fastest: deque[tuple[int, float]] = deque(maxlen=QUEUE_MEMORY_S)

    def add(self, transit_s: float, now_s: float) -> None:
        """Count a packet with the transit time ``transit_s``, measured from any origin."""
        self._recent.append((now_s, transit_s))
        while self._recent[0][0] < now_s - 1:
            self._recent.popleft()
        second = int(now_s)
        if not self._fastest or self._fastest[-1][0] != second:
            self._fastest.append((second, transit_s))
        elif transit_s < self._fastest[-1][1]:
            self._fastest[-1] = second, transit_s

    @property
    def delay_s(self) -> float:
        """The time in the queue; 0 while too few packets arrive to tell."""
        if len(self._recent) < QUEUE_PACKETS:
            return 0.0
        transits_s = sorted(transit_s for _, transit_s in self._recent)
        return transits_s[len(transits_s) // 10] - min(fastest_s for _, fastest_s in self._fastest)
