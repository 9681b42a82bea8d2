"""What C libraries print by themselves."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

_STDERR = 2


@contextmanager
def quietly() -> Iterator[None]:
    """Send what C libraries print on standard error to the debug log, not to the terminal."""
    try:
        kept = os.dup(_STDERR)
    except OSError:
        # It is closed, so nothing can be printed there.
        yield
        return
    with tempfile.TemporaryFile() as spool:
        os.dup2(spool.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
            spool.seek(0)
            for line in spool.read().decode(errors="replace").splitlines():
                log.debug("%s", line)
