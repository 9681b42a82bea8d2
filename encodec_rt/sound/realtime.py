"""Real-time scheduling, for the thread that has a frame to finish every 13.3 ms."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from encodec_rt.errors import BackendUnavailable

PRIORITY = 1
"""The lowest priority of SCHED_FIFO: above every ordinary thread, below a sound server's own."""


def run_in_real_time() -> None:
    """Let this thread run whenever it is ready, ahead of all ordinary threads.

    Those share a core in slices of several milliseconds, for which a frame may have to wait. Raises
    BackendUnavailable where the system does not allow it.
    """
    if not hasattr(os, "sched_setscheduler"):
        raise BackendUnavailable("real-time scheduling needs Linux; leave out --real-time")
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    except PermissionError as error:
        raise BackendUnavailable(
            "real-time scheduling is not allowed here: give your user a limit for it ('ulimit -r' "
            "shows it; a line such as '@audio - rtprio 10' in /etc/security/limits.d sets it), or "
            "leave out --real-time"
        ) from error


def check_real_time() -> None:
    """Raise BackendUnavailable unless a thread may have ``run_in_real_time``."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(run_in_real_time).result()
