"""Signal handling of processes that tests start."""

from __future__ import annotations

import signal


def heed_hangups() -> None:
    """For ``preexec_fn``: SIGHUP ends the process, even if the tests themselves run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
