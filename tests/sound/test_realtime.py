"""Real-time scheduling is one thread's, and refused in a sentence where it is not allowed."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from encodec_rt.errors import BackendUnavailable
from encodec_rt.sound.realtime import PRIORITY, check_real_time, run_in_real_time


def is_allowed() -> bool:
    try:
        check_real_time()
    except BackendUnavailable:
        return False
    return True


@pytest.mark.skipif(not is_allowed(), reason="real-time scheduling is not allowed here")
def test_only_the_thread_that_asks_is_scheduled_in_real_time() -> None:
    with ThreadPoolExecutor(1, initializer=run_in_real_time) as thread:
        asked = thread.submit(
            lambda: (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority)
        )
        policy, priority = asked.result()
    assert policy & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
    assert priority == PRIORITY
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_what_the_system_does_not_allow_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    with pytest.raises(BackendUnavailable, match=r"rtprio 10.*leave out --real-time"):
        check_real_time()


def test_a_system_that_has_no_such_scheduling_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setscheduler", raising=False)
    with pytest.raises(BackendUnavailable, match="needs Linux"):
        check_real_time()
