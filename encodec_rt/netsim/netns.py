"""Two network namespaces on one Linux machine, and a router between them that loses and delays.

The router is our own process between two TUN devices, since few kernels have ``netem``. Only UDP is
impaired: signalling over TCP is not, so a call is established whatever happens to its media. Needs
root, ``ip`` and /dev/net/tun; nothing outside the two namespaces is touched.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import struct
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from encodec_rt.errors import LinkError
from encodec_rt.netsim.impairment import Channel, PathProfile

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
UDP = 17
MTU = 1500


@dataclass(frozen=True)
class Side:
    """One namespace: its name, and the only address that the other one can reach."""

    namespace: str
    address: str
    device: str

    def command(self, *arguments: str) -> list[str]:
        """``arguments`` as a command that runs in this namespace."""
        return ["ip", "netns", "exec", self.namespace, *arguments]


def why_unavailable() -> str | None:
    """Why namespaces are not available here, or None if they are."""
    if os.name != "posix" or not Path("/dev/net/tun").exists():
        return "this system has no /dev/net/tun"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if shutil.which("ip") is None:
        return "the command 'ip' is missing (apt-get install iproute2)"
    probe = f"ert-{os.getpid()}"
    try:
        os.close(_open_tun(probe))
    except OSError as error:
        return f"network devices cannot be made here ({error.strerror})"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not allowed here ({made.stderr.strip()})"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return None


class Rig:
    """The two sides and their router, for the time of a ``with`` block."""

    def __init__(self, network: PathProfile, seed: int = 0) -> None:
        """``network`` is what each direction does to packets, with a different seed each.

        Its clock, for steps and outages, starts now, and again with ``impose``.
        """
        pid = os.getpid()
        # Documentation addresses would work too, but 10.88 is clearly private.
        self.sides = tuple(
            Side(f"ert-{pid}-{name}", f"10.88.{at}.1", f"ert{at}") for at, name in enumerate("ab")
        )
        self._tuns: list[int] = []
        self._loop = asyncio.new_event_loop()
        self._change(*self._imposed(network, seed))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Rig:
        """Make namespaces, devices and routes, and start the router. Raises LinkError."""
        try:
            for at, side in enumerate(self.sides):
                self._make(side, self.sides[1 - at])
        except (subprocess.CalledProcessError, OSError) as error:
            self._remove()
            reason = error.strerror if isinstance(error, OSError) else error.stderr.strip()
            raise LinkError(f"the rig cannot be set up: {reason}") from error
        for at in range(2):
            self._loop.add_reader(self._tuns[at], self._forward, at)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the router and remove everything."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._remove()

    def impose(self, network: PathProfile, seed: int = 0) -> float:
        """From now on treat packets as ``network`` does; its clock starts.

        Returns now, on the clock of ``time.monotonic``.
        """
        channels, begun_s = self._imposed(network, seed)
        self._loop.call_soon_threadsafe(self._change, channels, begun_s)
        return begun_s

    def set_link(self, at: int, *, up: bool) -> None:
        """Take the interface of one side down, or up again with its route."""
        side, other = self.sides[at], self.sides[1 - at]
        inside = ("ip", "-n", side.namespace)
        _run(*inside, "link", "set", side.device, "up" if up else "down")
        if up:
            _run(*inside, "route", "add", f"{other.address}/32", "dev", side.device)

    def _imposed(self, network: PathProfile, seed: int) -> tuple[tuple[Channel, ...], float]:
        return tuple(Channel(network, seed + at) for at in range(2)), self._loop.time()

    def _change(self, channels: tuple[Channel, ...], begun_s: float) -> None:
        self.channels, self._begun_s = channels, begun_s

    def _make(self, side: Side, other: Side) -> None:
        _run("ip", "netns", "add", side.namespace)
        self._tuns.append(_open_tun(side.device))
        _run("ip", "link", "set", side.device, "netns", side.namespace)
        inside = ("ip", "-n", side.namespace)
        _run(*inside, "addr", "add", f"{side.address}/32", "dev", side.device)
        _run(*inside, "link", "set", side.device, "up")
        _run(*inside, "link", "set", "lo", "up")
        _run(*inside, "route", "add", f"{other.address}/32", "dev", side.device)

    def _remove(self) -> None:
        for tun in self._tuns:
            os.close(tun)
        self._tuns = []
        for side in self.sides:
            subprocess.run(["ip", "netns", "delete", side.namespace], capture_output=True)
        self._loop.close()

    def _forward(self, at: int) -> None:
        while True:
            try:
                packet = os.read(self._tuns[at], MTU)
            except BlockingIOError:
                return
            # The tenth byte of an IPv4 packet is its protocol.
            is_udp = len(packet) > 20 and packet[0] >> 4 == 4 and packet[9] == UDP
            now_s = self._loop.time() - self._begun_s
            times_s = self.channels[at].send(now_s, len(packet)) if is_udp else [now_s]
            for time_s in times_s:
                self._loop.call_at(self._begun_s + time_s, self._deliver, 1 - at, packet)

    def _deliver(self, at: int, packet: bytes) -> None:
        # An interface that is down accepts nothing.
        with suppress(OSError):
            os.write(self._tuns[at], packet)


def _open_tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
