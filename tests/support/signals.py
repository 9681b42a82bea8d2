"""What a process that tests start does about signals."""

from __future__ import annotations

import signal


def heed_hangups() -> None:
    """For ``preexec_fn``: SIGHUP ends the process, even if the tests themselves run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
