from __future__ import annotations

import pytest

from encodec_rt.errors import ConfigError
from encodec_rt.link.channel import HEADER_BYTES
from encodec_rt.link.rate import MOST_FRAMES, Plan, RateController


def settle(controller: RateController, seconds: float = 5.0) -> Plan:
    return [controller.plan(step / 10) for step in range(int(seconds * 10))][-1]


def rate_kbps(plan: Plan) -> float:
    return plan.packet_bytes(10) * 8 * 75 / plan.frames / 1000


def test_an_unhindered_call_sends_each_frame_at_once_with_all_codebooks():
    plan = settle(RateController(codebooks=8))
    assert (plan.frames, plan.codebooks) == (1, 8)
    assert plan.copies == 1


def test_a_plan_knows_the_size_of_its_packets():
    assert Plan(1, 8).packet_bytes(10) == HEADER_BYTES + 1 + 10
    assert Plan(2, 8, 2, 2).packet_bytes(10) == HEADER_BYTES + 1 + 20 + 1 + 5


def test_frames_per_packet_go_up_before_codebooks_go_down():
    seen = []
    for kbps in range(60, 3, -1):
        controller = RateController(codebooks=8)
        controller.on_estimate(kbps * 1000)
        plan = settle(controller)
        assert rate_kbps(plan) <= 0.9 * kbps or plan.codebooks == 2
        seen.append((plan.frames, -plan.codebooks))
    assert seen == sorted(seen)
    assert seen[0] == (1, -8)
    assert seen[-1] == (MOST_FRAMES, -2)
    assert all(codebooks == -8 for frames, codebooks in seen if frames < MOST_FRAMES)


def test_less_is_sent_at_once_and_more_only_after_a_while():
    controller = RateController(codebooks=8)
    controller.plan(0.0)
    controller.on_estimate(30_000)
    narrow = controller.plan(0.1)
    assert narrow.frames > 1
    controller.on_estimate(100_000)
    assert controller.plan(0.2) == narrow
    assert controller.plan(1.3).frames == 1


def test_loss_without_delay_brings_redundancy_that_codebooks_pay_for():
    controller = RateController(codebooks=32)
    before = settle(controller)
    controller.on_report(0.12, 0.08, 1.0)
    after = controller.plan(1.0)
    assert after.frames == 1
    assert after.copies * after.copy_codebooks > before.copies * before.copy_codebooks
    assert 16 <= after.codebooks < 32
    assert rate_kbps(after) <= rate_kbps(before)


def test_redundancy_stays_for_a_while_after_the_loss_and_then_goes():
    controller = RateController(codebooks=16)
    for second, lost in enumerate([0.2, *[0.0] * 15]):
        controller.on_report(lost, 0.08, float(second))
        plan = controller.plan(float(second))
        if second == 1:
            assert plan.copies > 1
    assert plan == settle(RateController(codebooks=16))


def test_a_packet_repeats_at_least_as_many_frames_as_one_loss_takes():
    controller = RateController(codebooks=8)
    controller.on_estimate(20_000)
    plan = settle(controller)
    assert plan.copies >= plan.frames > 1


def test_a_queue_seen_in_the_round_trip_cuts_the_rate_without_any_estimate():
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


def test_no_redundancy_where_it_is_off():
    controller = RateController(codebooks=8, redundancy=False)
    controller.on_report(0.3, 0.1, 0.0)
    assert settle(controller).copies == 0


def test_one_codebook_is_the_least():
    assert settle(RateController(codebooks=1)).codebooks == 1
    with pytest.raises(ConfigError, match="codebooks=0"):
        RateController(codebooks=0)
