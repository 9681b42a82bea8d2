from __future__ import annotations

import numpy as np
import pytest

from encodec_rt.errors import ConfigError
from encodec_rt.voice.bitrate import HEADER_BYTES, MAX_FRAMES, PacketPlan, RateController
from encodec_rt.voice.delay import StandingQueue


def settle(controller: RateController, seconds: float = 5.0, begin_s: float = 0.0) -> PacketPlan:
    """The plan after sending for a while, a packet whenever one is due."""
    plan, due_s = controller.plan(begin_s), begin_s
    for step in range(int(seconds * 75)):
        now_s = begin_s + step / 75
        plan = controller.plan(now_s)
        if now_s >= due_s:
            controller.on_sent(plan.packet_bytes(10) - HEADER_BYTES, now_s)
            due_s += plan.frames / 75
    return plan


def rate_kbps(plan: PacketPlan) -> float:
    return plan.packet_bytes(10) * 8 * 75 / plan.frames / 1000


def test_an_unhindered_call_sends_each_frame_at_once_with_all_codebooks() -> None:
    plan = settle(RateController(codebooks=8))
    assert (plan.frames, plan.codebooks) == (1, 8)
    assert plan.copies == 1


def test_a_plan_knows_the_size_of_its_packets() -> None:
    assert PacketPlan(1, 8).packet_bytes(10) == HEADER_BYTES + 1 + 10
    assert PacketPlan(2, 8, 2, 2).packet_bytes(10) == HEADER_BYTES + 1 + 20 + 1 + 5


def test_frames_per_packet_go_up_before_codebooks_go_down() -> None:
    seen = []
    for kbps in range(60, 3, -2):
        controller = RateController(codebooks=8)
        settle(controller, 1.5)
        controller.on_estimate(kbps * 1000, 1.5)
        plan = controller.plan(1.5)
        assert rate_kbps(plan) <= kbps / 0.88 or plan.codebooks == 2
        seen.append((plan.frames, -plan.codebooks))
    assert seen == sorted(seen)
    assert seen[0] == (1, -8)
    assert seen[-1] == (MAX_FRAMES, -2)
    assert all(codebooks == -8 for frames, codebooks in seen if frames < MAX_FRAMES)


def test_less_is_sent_at_once_and_more_only_after_a_while() -> None:
    controller = RateController(codebooks=8)
    settle(controller, 2.0)
    controller.on_estimate(30_000, 2.0)
    narrow = controller.plan(2.0)
    assert narrow.frames > 1
    controller.on_estimate(100_000, 2.05)
    assert controller.plan(2.1) == narrow
    assert controller.plan(3.2).frames == 1


def test_a_raise_that_runs_short_makes_the_next_one_wait_longer() -> None:
    controller = RateController(codebooks=8)
    settle(controller, 2.0)
    now_s, waits = 2.0, []
    for _ in range(3):
        controller.on_estimate(30_000, now_s)
        settle(controller, 1.5, now_s)
        controller.on_estimate(100_000, now_s + 1.5)
        begin_s = now_s = now_s + 1.5
        while settle(controller, 0.1, now_s).frames > 1:
            now_s += 0.1
        waits.append(now_s - begin_s)
        now_s = now_s + 1.0
        settle(controller, 1.0, now_s - 1.0)
    assert waits[1] > 1.5 * waits[0]
    assert waits[2] > 1.5 * waits[1]


def test_an_estimate_of_a_path_that_is_not_filled_holds_nothing_back() -> None:
    controller = RateController(codebooks=8)
    # The other side cannot know of more than came, and little comes while nobody speaks.
    controller.on_estimate(12_000, 1.0)
    assert controller.plan(1.0) == RateController(codebooks=8).plan(0.0)
    controller.on_estimate(rate_kbps(controller.plan(1.0)) * 1000, 1.0)
    assert settle(controller, begin_s=1.0).frames == 1


def test_after_a_squeeze_the_full_rate_returns_although_estimates_follow_what_is_sent() -> None:
    controller = RateController(codebooks=8)
    settle(controller, 2.0)
    controller.on_estimate(20_000, 2.0)
    assert settle(controller, 2.0, 2.0).frames == 3
    for second in range(4, 14):
        # aiortc's estimator never says more than this.
        sent_kbps = rate_kbps(controller.plan(float(second)))
        controller.on_estimate(1500 * sent_kbps + 10_000, float(second))
        plan = settle(controller, 1.0, float(second))
    assert (plan.frames, plan.codebooks) == (1, 8)


def test_loss_without_delay_brings_redundancy_that_codebooks_pay_for() -> None:
    controller = RateController(codebooks=32)
    before = settle(controller)
    controller.on_report(0.12, 0.08, 1.0)
    after = controller.plan(1.0)
    assert after.frames == 1
    assert after.copies * after.copy_codebooks > before.copies * before.copy_codebooks
    assert 16 <= after.codebooks < 32
    assert rate_kbps(after) <= rate_kbps(before)


def test_redundancy_stays_for_a_while_after_the_loss_and_then_goes() -> None:
    controller = RateController(codebooks=16)
    for second, lost in enumerate([0.2, *[0.0] * 15]):
        controller.on_report(lost, 0.08, float(second))
        plan = controller.plan(float(second))
        if second == 1:
            assert plan.copies > 1
    assert plan == settle(RateController(codebooks=16))


def test_a_packet_repeats_at_least_as_many_frames_as_one_loss_takes() -> None:
    controller = RateController(codebooks=8)
    settle(controller, 2.0)
    controller.on_estimate(20_000, 2.0)
    plan = settle(controller, begin_s=2.0)
    assert plan.copies >= plan.frames > 1


def test_a_queue_seen_in_the_round_trip_cuts_the_rate_without_any_estimate() -> None:
    controller = RateController(codebooks=8)
    full = rate_kbps(settle(controller))
    controller.on_report(0.0, 0.05, 0.0)
    for second in range(1, 4):
        controller.on_report(0.0, 0.6, 2.0 * second)
        plan = controller.plan(2.0 * second)
    assert rate_kbps(plan) < 0.7 * full
    for second in range(4, 40):
        controller.on_report(0.0, 0.05, 2.0 * second)
        plan = controller.plan(2.0 * second)
    assert rate_kbps(plan) == full


def test_no_redundancy_where_it_is_off() -> None:
    controller = RateController(codebooks=8, redundancy=False)
    controller.on_report(0.3, 0.1, 0.0)
    assert settle(controller).copies == 0


def test_one_codebook_is_the_least() -> None:
    assert settle(RateController(codebooks=1)).codebooks == 1
    with pytest.raises(ConfigError, match="codebooks=0"):
        RateController(codebooks=0)


def test_a_standing_queue_is_told_from_jitter() -> None:
    rng = np.random.default_rng(0)
    jitter, queue = StandingQueue(), StandingQueue()
    for step in range(75 * 20):
        now_s = step / 75
        jitter.add(0.04 + rng.exponential(0.008), now_s)
        queue.add(0.04 + max(0.0, now_s - 15) * 0.02, now_s)
        if step > 75:
            assert jitter.delay_s < 0.005
    assert queue.delay_s == pytest.approx(0.09, abs=0.02)
    assert StandingQueue().delay_s == 0
