"""A server in a process of its own, as a bench starts and ends it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

KBPS = 6.0


class Server:
    """``encodec-rt serve`` in a process of its own."""

    def __init__(
        self,
        model: str,
        sessions: int,
        state: Path,
        port: int = 0,
        *,
        requests_per_s: float | None = None,
    ) -> None:
        """Start it and wait until it serves; ``requests_per_s`` if its own limit is in the way."""
        command = [sys.executable, "-m", "encodec_rt", "serve", "--model", model, "-b", str(KBPS)]
        command += ["--sessions", str(sessions), "--state", str(state), "--port", str(port)]
        command += ["--drain-s", "0"]
        if requests_per_s is not None:
            command += ["--requests-per-s", f"{requests_per_s:g}"]
        self._running = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert self._running.stderr is not None
        line = self._running.stderr.readline().decode()
        found = re.search(r"on (http://127\.0\.0\.1:(\d+));", line)
        if found is None:
            raise SystemExit(f"the server did not start: {line.strip()}")
        self.url, self.port = found[1], int(found[2])
        # Nobody reads the log, and a full pipe would stop the server.
        self._reading = threading.Thread(target=self._running.stderr.read, daemon=True)
        self._reading.start()

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it by a signal."""
        self._running.send_signal(number)
        self._running.wait()
        self._reading.join()

    @property
    def memory_mb(self) -> float:
        """What it holds in memory."""
        status = Path(f"/proc/{self._running.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024
