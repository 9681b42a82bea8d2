"""A private PulseAudio server with a virtual microphone and speaker that PortAudio sees."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.support.narrow import present

RATE = 24_000
PROGRAMS = ("pulseaudio", "pactl", "pacat", "parec")
FORMAT = ("--raw", f"--rate={RATE}", "--channels=1", "--format=s16le")
ALSA = """</usr/share/alsa/alsa.conf>
pcm.rt_loop { type pulse device "speaker.monitor" hint { show on description "loop" } }
"""
ALSA_PAIR = """
pcm.rt_mic%s { type pulse device "mic_feed%s.monitor" hint { show on description "microphone" } }
pcm.rt_spk%s { type pulse device "speaker%s" hint { show on description "speaker" } }
"""


def missing() -> list[str]:
    """The programs and libraries that a real sound path needs and this machine lacks."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    if ctypes.util.find_library("portaudio") is None:
        lacking.append("libportaudio2")
    if not list(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")):
        lacking.append("libasound2-plugins")
    if not Path("/usr/share/alsa/alsa.conf").exists():
        lacking.append("libasound2-data")
    return lacking


class PulseServer:
    """PulseAudio with two null sinks: the microphone is the monitor of one, the speaker the other.

    The names of a second pair end in "_2".
    """

    def __init__(self, folder: Path, *, pairs: int = 1) -> None:
        self._ends = [f"_{pair}" if pair > 1 else "" for pair in range(1, pairs + 1)]
        pairs_text = "".join(ALSA_PAIR % (end, end, end, end) for end in self._ends)
        (folder / "asound.conf").write_text(ALSA + pairs_text)
        runtime = folder / "runtime"
        runtime.mkdir(mode=0o700)
        self.environment = {
            "XDG_RUNTIME_DIR": str(runtime),
            "PULSE_RUNTIME_PATH": str(runtime / "pulse"),
            "PULSE_STATE_PATH": str(runtime / "state"),
            "ALSA_CONFIG_PATH": str(folder / "asound.conf"),
        }
        self._server: subprocess.Popen[bytes] | None = None
        self._readers: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self) -> None:
        modules = ["module-native-protocol-unix auth-anonymous=1"]
        names = [f"{name}{end}" for end in self._ends for name in ("mic_feed", "speaker")]
        for name in names:
            modules.append(f"module-null-sink sink_name={name} rate={RATE} channels=1 format=s16le")
        loads = [part for module in modules for part in ("-L", module)]
        self._server = self._popen(
            *("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--realtime=no"),
            *("--high-priority=no", "--log-target=null", *loads),
        )
        for _ in range(100):
            if subprocess.run(["pactl", "info"], env=self._env(), capture_output=True).returncode:
                threading.Event().wait(0.1)
            else:
                break
        # Without a reader a null sink works in blocks of two seconds.
        for name in names:
            self._readers.append(self._popen("parec", "-d", f"{name}.monitor", "--latency-msec=10"))

    def stop(self) -> None:
        """Kill the server, as a crash would, and its readers."""
        for process in (self._server, *self._readers):
            if process is not None:
                process.kill()
                process.wait()
        self._readers.clear()

    def say(self, samples: np.ndarray, *, end: str = "") -> None:
        """Play int16 ``samples`` into the microphone; returns when they have been played."""
        with self._popen(
            "pacat", "-d", f"mic_feed{end}", "--latency-msec=500", *FORMAT, stdin=subprocess.PIPE
        ) as player:
            player.communicate(samples.tobytes())

    def hang(self, *, hanging: bool) -> None:
        """Suspend the server, or resume it."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP if hanging else signal.SIGCONT)

    def listen(self, *, end: str = "") -> Recorder:
        """Start recording what the speaker plays."""
        return Recorder(
            self._popen(
                *("parec", "-d", f"speaker{end}.monitor", "--latency-msec=100", *FORMAT),
                stdout=subprocess.PIPE,
            )
        )

    def _env(self) -> dict[str, str]:
        return {**os.environ, **self.environment}

    def _popen(
        self, *command: str, stdin: int | None = None, stdout: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, env=self._env(), stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL
        )


@contextmanager
def serving(folder: Path, *, pairs: int = 1) -> Iterator[PulseServer]:
    """A server that PortAudio in this process sees."""
    server = PulseServer(folder, pairs=pairs)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in server.environment.items():
                patch.setenv(name, value)
            if "sounddevice" in sys.modules:
                # Until now it listed the devices of another server.
                sys.modules["sounddevice"]._initialize()
            yield server
            if "sounddevice" in sys.modules:
                # While the server still runs: the library would wait for it at exit.
                sys.modules["sounddevice"]._terminate()
    finally:
        server.stop()


class Recorder:
    """Collects the output of a ``parec`` process until ``stop``."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._bytes = bytearray()
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()

    def stop(self) -> np.ndarray:
        """End the recording -> all samples, int16."""
        self._process.terminate()
        self._thread.join()
        self._process.wait()
        present(self._process.stdout).close()
        return np.frombuffer(bytes(self._bytes[: len(self._bytes) // 2 * 2]), np.int16)

    def _collect(self) -> None:
        pipe = present(self._process.stdout)
        while piece := os.read(pipe.fileno(), 65536):
            self._bytes += piece
