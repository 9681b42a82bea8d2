"""A server in a separate process, started and ended by a bench."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from benches.environment import memory_mib

KBPS = 6.0


class Server:
    """``encodec-rt serve`` in a separate process."""

    def __init__(
        self,
        model: str,
        sessions: int,
        state: Path,
        port: int = 0,
        *,
        requests_per_s: float | None = None,
        fronts: int = 0,
        device: str = "cpu",
    ) -> None:
        """Start it and wait until it serves; ``requests_per_s`` overrides its rate limit."""
        command = [sys.executable, "-m", "encodec_rt", "serve", "--model", model, "-b", str(KBPS)]
        command += ["--sessions", str(sessions), "--state", str(state), "--port", str(port)]
        command += ["--drain-s", "0", "--fronts", str(fronts), "--device", device]
        if requests_per_s is not None:
            command += ["--requests-per-s", f"{requests_per_s:g}"]
        self._running = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert self._running.stderr is not None
        found = None
        while found is None:
            line = self._running.stderr.readline().decode()
            found = re.search(r"on (http://127\.0\.0\.1:(\d+));", line)
            # Front processes print a line of their own before that.
            if found is None and " serves" not in line:
                raise SystemExit(f"the server did not start: {line.strip()}")
        self.url, self.port = found[1], int(found[2])
        # Read and discard the log, since a full pipe would block the server.
        self._reading = threading.Thread(target=self._running.stderr.read, daemon=True)
        self._reading.start()

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it with a signal, and wait."""
        self._running.send_signal(number)
        self._running.wait()
        self._reading.join()

    @property
    def cpu_s(self) -> float:
        """CPU time in s of the server's main process, which runs the engine."""
        return _cpu_s(str(self._running.pid))

    @property
    def loop_cpu_s(self) -> float:
        """CPU time in s of that process's main thread, which runs the event loop."""
        pid = self._running.pid
        return _cpu_s(f"{pid}/task/{pid}")

    @property
    def fronts_cpu_s(self) -> float:
        """CPU time in s of its front processes."""
        return sum(_cpu_s(str(pid)) for pid in _children(self._running.pid))

    @property
    def memory_mib(self) -> float:
        """Resident memory of the main process, in MiB."""
        return memory_mib(process=self._running.pid)


def _fields(place: str) -> list[str]:
    """The fields of /proc/PLACE/stat from the third on; the second, a name, may hold anything."""
    return Path(f"/proc/{place}/stat").read_text().rpartition(")")[2].split()


def _cpu_s(place: str) -> float:
    user, system = _fields(place)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(_fields(path.name)[1]) == parent:
                found.append(int(path.name))
    return found
