"""A rate limit with bursts, with the clock passed in."""

from __future__ import annotations


class TokenBucket:
    """Holds up to ``burst`` tokens and gains ``per_s`` a second; an event takes one."""

    def __init__(self, per_s: float, burst: float) -> None:
        """Full."""
        self._per_s, self._burst = per_s, float(burst)
        self._left = self._burst
        self._seen_s: float | None = None

    def allows(self, now_s: float) -> bool:
        """Whether one more event may pass now."""
        elapsed_s = 0.0 if self._seen_s is None else now_s - self._seen_s
        self._left = min(self._burst, self._left + elapsed_s * self._per_s)
        self._seen_s = now_s
        allowed = self._left >= 1
        self._left = max(0.0, self._left - 1)
        return allowed
