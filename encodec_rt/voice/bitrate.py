"""What to send: frames per packet, codebooks and redundancy, from the network's reports.

Pure: estimates and reports go in with their times, and a plan comes out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from encodec_rt.bitstream.packet import MAX_REDUNDANT_FRAMES, packed_size
from encodec_rt.errors import ConfigError

HEADER_BYTES = 60
"""Bytes around a payload: IPv4 20, UDP 8, RTP 12, header extensions 10 and the SRTP tag."""

MAX_FRAMES = 3
MIN_CODEBOOKS = 2
USED_SHARE = 0.9
"""The share of the bandwidth that is used once it has run short, so that queues can drain."""
SENT_S = 1.0
"""The time over which the rate actually sent is measured."""
PLENTY = 1.4
"""An estimate this many times above what is sent only says that the path is not full."""
STEP = 1.8
"""By how much the rate is then raised at a time."""
RAISE_AFTER_S = 1.0
"""How long more must have been possible before more is sent; a reduction is immediate."""
RAISE_LONGEST_S = 16.0
FAILED_S = 5.0
"""If bandwidth runs short this soon after a raise, the next raise waits twice as long."""
LOSS_FADES = 0.7
"""Weight of the past in the smoothed loss, when loss falls; a rise counts at once."""

QUEUE_S = 0.2
"""A round trip this much longer than the shortest means a queue, and the rate is cut."""
CUT, CUT_EVERY_S = 0.7, 1.0
REGAIN_PER_S = 1.1

REDUNDANCY = ((0.10, 4, 4), (0.05, 3, 3), (0.02, 2, 2), (0.0, 1, 2))
"""From which loss rate on how many frames are repeated, with how many codebooks."""


@dataclass(frozen=True)
class PacketPlan:
    """How the next packets are made."""

    frames: int
    codebooks: int
    copies: int = 0
    copy_codebooks: int = 0

    def packet_bytes(self, bits: int) -> int:
        """Size of a packet on the wire, headers included."""
        copies = 1 + packed_size(self.copies * self.copy_codebooks, bits) if self.copies else 0
        return HEADER_BYTES + 1 + packed_size(self.frames * self.codebooks, bits) + copies


class RateController:
    """Chooses plans for one direction of a call.

    It answers delay with fewer bits: first more frames per packet, since headers outweigh codes,
    then fewer codebooks. It answers loss without delay with redundancy, for which up to half of the
    codebooks are dropped: a lower rate would not reduce the loss.
    """

    def __init__(
        self,
        *,
        codebooks: int,
        bits: int = 10,
        frame_rate_hz: float = 75.0,
        redundancy: bool = True,
    ) -> None:
        """``codebooks`` are the most to send. Raises ConfigError for fewer than one."""
        if codebooks < 1:
            raise ConfigError(f"codebooks={codebooks}; at least 1 is sent")
        self.codebooks = codebooks
        self._bits = bits
        self._frame_rate_hz = frame_rate_hz
        self._redundancy = redundancy
        self.loss = 0.0
        self.estimate_bps: float | None = None
        self._is_short = False
        self._limit_bps = float("inf")
        self._shortest_s = float("inf")
        self._cut_s = float("-inf")
        self._plan = self._best(float("inf"))
        self._better_since_s: float | None = None
        self._sent: deque[tuple[float, int]] = deque()
        self._raised_s = float("-inf")
        self._patience_s = RAISE_AFTER_S

    def fresh(self, codebooks: int) -> RateController:
        """A new controller, for at most ``codebooks`` codebooks."""
        return RateController(
            codebooks=codebooks,
            bits=self._bits,
            frame_rate_hz=self._frame_rate_hz,
            redundancy=self._redundancy,
        )

    def on_estimate(self, bitrate_bps: float, now_s: float) -> None:
        """The peer's estimate of the bandwidth towards it (REMB), headers included.

        Bandwidth is short only if it is below what was sent: it is derived from what arrived, which
        is little during silence.
        """
        sent_bps = sum(size for at_s, size in self._sent if at_s > now_s - SENT_S) * 8 / SENT_S
        self.estimate_bps = bitrate_bps
        self._is_short = bitrate_bps < USED_SHARE * sent_bps

    def on_sent(self, payload_bytes: int, now_s: float) -> None:
        """A packet was sent."""
        self._sent.append((now_s, payload_bytes + HEADER_BYTES))
        while self._sent[0][0] <= now_s - SENT_S:
            self._sent.popleft()

    def on_report(self, fraction_lost: float, round_trip_s: float | None, now_s: float) -> None:
        """A receiver report: share of packets lost since the last one, and the round trip."""
        faded = LOSS_FADES * self.loss + (1 - LOSS_FADES) * fraction_lost
        self.loss = max(faded, fraction_lost)
        if round_trip_s is None:
            return
        self._shortest_s = min(self._shortest_s, round_trip_s)
        if now_s - self._cut_s < CUT_EVERY_S:
            return
        if round_trip_s > self._shortest_s + QUEUE_S:
            self._limit_bps = CUT * min(self._limit_bps, self._rate_bps(self._plan))
        else:
            self._limit_bps *= REGAIN_PER_S
        self._cut_s = now_s

    def plan(self, now_s: float) -> PacketPlan:
        """The plan for the next packet."""
        best = self._best(self._budget_bps())
        is_more = best.frames < self._plan.frames or best.codebooks > self._plan.codebooks
        if not is_more:
            is_less = self._rate_bps(best) < self._rate_bps(self._plan)
            if is_less and now_s - self._raised_s < FAILED_S:
                self._patience_s = min(RAISE_LONGEST_S, 2 * self._patience_s)
                self._raised_s = float("-inf")
            self._plan, self._better_since_s = best, None
        elif self._better_since_s is None:
            self._better_since_s = now_s
        elif now_s - self._better_since_s >= self._patience_s:
            self._plan, self._better_since_s = best, None
            self._raised_s = now_s
        return self._plan

    def _budget_bps(self) -> float:
        """The rate that may be sent: an estimate says little about a path that is not full."""
        if self.estimate_bps is None:
            return self._limit_bps
        planned_bps = self._rate_bps(self._plan)
        if self._is_short:
            budget_bps = USED_SHARE * self.estimate_bps
        elif self.estimate_bps < PLENTY * planned_bps:
            budget_bps = max(self.estimate_bps, planned_bps)
        else:
            budget_bps = max(self.estimate_bps, STEP * planned_bps)
        return min(budget_bps, self._limit_bps)

    def _best(self, budget_bps: float) -> PacketPlan:
        least = max(min(MIN_CODEBOOKS, self.codebooks), self.codebooks // 2)
        full = PacketPlan(1, self.codebooks, *self._copies(1, loss=0.0))
        lossy = [
            PacketPlan(1, codebooks, *self._copies(1, self.loss))
            for codebooks in range(self.codebooks, least - 1, -1)
        ]
        fitting = [plan for plan in lossy if self._rate_bps(plan) <= self._rate_bps(full)]
        wanted = (fitting or lossy[-1:])[0].codebooks
        for frames in range(1, MAX_FRAMES + 1):
            plan = PacketPlan(frames, wanted, *self._copies(frames, self.loss))
            if self._rate_bps(plan) <= budget_bps:
                return plan
        for codebooks in range(wanted, min(MIN_CODEBOOKS, wanted) - 1, -1):
            plan = PacketPlan(MAX_FRAMES, codebooks, *self._copies(MAX_FRAMES, self.loss))
            if self._rate_bps(plan) <= budget_bps:
                break
        return plan

    def _copies(self, frames: int, loss: float) -> tuple[int, int]:
        if not self._redundancy:
            return 0, 0
        copies, codebooks = next(row[1:] for row in REDUNDANCY if loss >= row[0])
        # A lost packet loses all its frames.
        return min(max(copies, frames), MAX_REDUNDANT_FRAMES), min(codebooks, self.codebooks)

    def _rate_bps(self, plan: PacketPlan) -> float:
        return plan.packet_bytes(self._bits) * 8 * self._frame_rate_hz / plan.frames
