"""A server's Prometheus metrics; docs/server.md lists the names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from encodec_rt.errors import PacketError

_LATENCY_S = (0.001, 0.002, 0.004, 0.0067, 0.01, 0.0133, 0.02, 0.0267, 0.04, 0.08, 0.2)
_STEP_S = (0.0005, 0.001, 0.002, 0.004, 0.0067, 0.01, 0.0133, 0.02, 0.04)
_SESSION_S = (1, 10, 60, 300, 900, 3600, 14_400)
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 1024)


class Metrics:
    """The metrics of one server, in its own registry."""

    def __init__(self, hop_s: float) -> None:
        """``hop_s`` is a frame's duration: the deadline for its result."""
        self.registry = registry = CollectorRegistry()
        self._hop_s = hop_s
        self.sessions = Gauge("encodec_rt_sessions", "Sessions that are open.", registry=registry)
        self.slots = Gauge("encodec_rt_slots", "Sessions that fit.", registry=registry)
        self.refused = Counter(
            "encodec_rt_sessions_refused", "Sessions refused.", ["reason"], registry=registry
        )
        self.frames = Counter(
            "encodec_rt_frames", "Frames in and out.", ["direction"], registry=registry
        )
        self.dropped = Counter(
            "encodec_rt_frames_dropped", "Frames dropped.", ["where"], registry=registry
        )
        self.closed = Counter(
            "encodec_rt_sessions_closed", "Sessions closed.", ["code"], registry=registry
        )
        self.session_seconds = Histogram(
            "encodec_rt_session_seconds", "How long sessions were.", buckets=_SESSION_S,
            registry=registry,
        )  # fmt: skip
        self._step = Histogram(
            "encodec_rt_step_seconds", "One pass over all sessions.", buckets=_STEP_S,
            registry=registry,
        )  # fmt: skip
        self._latency = Histogram(
            "encodec_rt_frame_latency_seconds",
            "From a frame's last sample to what was made of it.",
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._misses = Counter(
            "encodec_rt_deadline_misses", "Frames later than their duration.", registry=registry
        )
        self._batches = Histogram(
            "encodec_rt_batch_size", "Slots in a step.", buckets=_BATCHES, registry=registry
        )
        self._concealed = Counter(
            "encodec_rt_concealed_frames", "Lost frames concealed.", registry=registry
        )
        self._snapshots = Histogram(
            "encodec_rt_snapshot_seconds", "Copying all sessions' states.", buckets=_STEP_S,
            registry=registry,
        )  # fmt: skip

    def counted(self) -> Iterator[tuple[str, str, float]]:
        """Count on the network side: a metric's name, its label, and how many."""
        for name, counter in self._network_side():
            for metric in counter.collect():
                for sample in metric.samples:
                    if sample.name.endswith("_total"):
                        (label,) = sample.labels.values()
                        yield name, label, sample.value

    def count(self, name: str, label: str, more: float) -> None:
        """Add what a front has counted. Raises PacketError for a metric that fronts do not have."""
        counter = dict(self._network_side()).get(name)
        if counter is None or not more > 0:
            raise PacketError(f"the figure {name[:20]!r}, which has grown by {more}")
        counter.labels(label).inc(more)

    def _network_side(self) -> tuple[tuple[str, Counter], ...]:
        return ("refused", self.refused), ("frames", self.frames), ("dropped", self.dropped)

    def stepped(self, seconds: float, batches: Iterable[int]) -> None:
        """A pass took ``seconds``, with these numbers of slots in its steps."""
        self._step.observe(seconds)
        for slots in batches:
            self._batches.observe(slots)

    def made(self, seconds: float) -> None:
        """A frame's result is ready, ``seconds`` after its last sample."""
        self._latency.observe(seconds)
        if seconds > self._hop_s:
            self._misses.inc()

    def concealed(self, frames: int) -> None:
        """``frames`` lost frames were concealed."""
        self._concealed.inc(frames)

    def snapshots(self) -> AbstractContextManager[object]:
        """Use it around the copying of states."""
        return self._snapshots.time()

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)
