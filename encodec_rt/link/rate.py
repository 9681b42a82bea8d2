"""What to send: frames per packet, codebooks and redundancy, from what the network lets through.

Pure: estimates and reports come in with the time, and a plan comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

from encodec_rt.bitstream.packet import MAX_REDUNDANT_FRAMES, packed_size
from encodec_rt.errors import ConfigError
from encodec_rt.link.channel import HEADER_BYTES

MOST_FRAMES = 3
LEAST_CODEBOOKS = 2
USED_SHARE = 0.9
"""How much of the estimated bandwidth is used, so that its queues can drain."""
RAISE_AFTER_S = 1.0
"""For how long more must have been possible before more is sent; less is sent at once."""
LOSS_FADES = 0.7
"""Weight of the past in the smoothed loss, when loss falls; a rise counts at once."""

QUEUE_S = 0.2
"""A round trip longer than the shortest by this is a queue, and the rate is cut."""
CUT, CUT_EVERY_S = 0.7, 1.0
REGAIN_PER_S = 1.1

REDUNDANCY = ((0.10, 4, 4), (0.05, 3, 3), (0.02, 2, 2), (0.0, 1, 2))
"""From which share of loss on how many frames are repeated, with how many codebooks."""


@dataclass(frozen=True)
class Plan:
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

    Delay is answered with fewer bits: more frames per packet first, since headers weigh more than
    codes, then fewer codebooks. Loss without delay is answered with redundancy, which up to half
    of the codebooks pay for: a lower rate would not lose less.
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
        self._codebooks = codebooks
        self._bits = bits
        self._frame_rate_hz = frame_rate_hz
        self._redundancy = redundancy
        self.loss = 0.0
        self.estimate_bps: float | None = None
        self._limit_bps = float("inf")
        self._shortest_s = float("inf")
        self._cut_s = float("-inf")
        self._plan = self._best(float("inf"))
        self._better_since_s: float | None = None

    def on_estimate(self, bitrate_bps: float) -> None:
        """The peer's estimate of the bandwidth towards it (REMB), headers included."""
        self.estimate_bps = bitrate_bps

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

    def plan(self, now_s: float) -> Plan:
        """The plan for the next packet."""
        budget_bps = self._limit_bps
        if self.estimate_bps is not None:
            budget_bps = min(budget_bps, USED_SHARE * self.estimate_bps)
        best = self._best(budget_bps)
        is_more = best.frames < self._plan.frames or best.codebooks > self._plan.codebooks
        if not is_more:
            self._plan, self._better_since_s = best, None
        elif self._better_since_s is None:
            self._better_since_s = now_s
        elif now_s - self._better_since_s >= RAISE_AFTER_S:
            self._plan, self._better_since_s = best, None
        return self._plan

    def _best(self, budget_bps: float) -> Plan:
        least = max(min(LEAST_CODEBOOKS, self._codebooks), self._codebooks // 2)
        full = Plan(1, self._codebooks, *self._copies(1, loss=0.0))
        lossy = [
            Plan(1, codebooks, *self._copies(1, self.loss))
            for codebooks in range(self._codebooks, least - 1, -1)
        ]
        fitting = [plan for plan in lossy if self._rate_bps(plan) <= self._rate_bps(full)]
        wanted = (fitting or lossy[-1:])[0].codebooks
        for frames in range(1, MOST_FRAMES + 1):
            plan = Plan(frames, wanted, *self._copies(frames, self.loss))
            if self._rate_bps(plan) <= budget_bps:
                return plan
        for codebooks in range(wanted, min(LEAST_CODEBOOKS, wanted) - 1, -1):
            plan = Plan(MOST_FRAMES, codebooks, *self._copies(MOST_FRAMES, self.loss))
            if self._rate_bps(plan) <= budget_bps:
                break
        return plan

    def _copies(self, frames: int, loss: float) -> tuple[int, int]:
        if not self._redundancy:
            return 0, 0
        copies, codebooks = next(row[1:] for row in REDUNDANCY if loss >= row[0])
        # One lost packet takes all its frames with it.
        return min(max(copies, frames), MAX_REDUNDANT_FRAMES), min(codebooks, self._codebooks)

    def _rate_bps(self, plan: Plan) -> float:
        return plan.packet_bytes(self._bits) * 8 * self._frame_rate_hz / plan.frames
