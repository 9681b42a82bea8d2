"""Standard input, output and error as a shell may leave them: closed, full, or in plain ASCII."""

from __future__ import annotations

import io
import os
import sys


def prepare_standard_streams() -> None:
    """Make them safe to use, whatever the parent process did to them.

    A descriptor that is closed becomes /dev/null, lest a file of ours get its number. Python has
    made ``sys.stdin`` or ``sys.stdout`` None by then, and they stay so; what is said on a closed
    standard error is lost, as was asked for. A letter that the encoding lacks is shown escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is given out first, and all below are taken.
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_unwritten() -> None:
    """Drop what standard output did not take, which was reported; at exit it would be retried.

    A full disk is the usual reason.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
