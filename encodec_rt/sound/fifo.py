"""A bounded queue of samples between an audio callback and one other thread."""

from __future__ import annotations

import numpy as np

from encodec_rt.types import Samples


class SampleFifo:
    """A ring buffer of int16 samples with one writer and one reader, neither of which ever waits.

    Nothing is allocated or locked after its creation: each side advances its own counter and only
    reads the other's, so a callback may be on either side. Memory is ``capacity`` samples.
    """

    def __init__(self, capacity: int) -> None:
        """Make an empty queue for ``capacity`` samples."""
        self.capacity = capacity
        self.written = 0
        self.taken = 0
        self._ring: Samples = np.zeros(capacity, np.int16)

    @property
    def fill(self) -> int:
        """Samples that wait to be read."""
        return self.written - self.taken

    def write(self, samples: Samples) -> int:
        """Append ``samples`` and return how many of them, at the end, did not fit."""
        count = min(len(samples), self.capacity - self.fill)
        start = self.written % self.capacity
        first = min(count, self.capacity - start)
        self._ring[start : start + first] = samples[:first]
        self._ring[: count - first] = samples[first:count]
        self.written += count
        return len(samples) - count

    def read_into(self, target: Samples) -> int:
        """Fill ``target`` from its start, and return how many samples at its end were missing."""
        count = min(len(target), self.fill)
        start = self.taken % self.capacity
        first = min(count, self.capacity - start)
        target[:first] = self._ring[start : start + first]
        target[first:count] = self._ring[: count - first]
        self.taken += count
        return len(target) - count

    def skip(self, count: int) -> int:
        """Drop the ``count`` oldest samples, or all; returns how many there were."""
        count = min(count, self.fill)
        self.taken += count
        return count
