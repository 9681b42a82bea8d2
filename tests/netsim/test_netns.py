from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from encodec_rt.errors import LinkError
from encodec_rt.netsim import netns
from encodec_rt.netsim.impairment import PathProfile
from encodec_rt.netsim.netns import Rig, why_unavailable

ANSWER = """
import socket
socket_ = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
socket_.bind(("0.0.0.0", 5004))
print("up", flush=True)
while True:
    data, address = socket_.recvfrom(2000)
    socket_.sendto(data, address)
"""
ASK = """
import socket, sys, time
socket_ = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
socket_.settimeout(0.5)
for number in range(int(sys.argv[2])):
    begun = time.monotonic()
    socket_.sendto(b"x" * 60, (sys.argv[1], 5004))
    try:
        socket_.recvfrom(2000)
        print(time.monotonic() - begun)
    except TimeoutError:
        print("lost")
"""


@pytest.fixture(scope="module")
def _allowed() -> None:
    reason = why_unavailable()
    if reason is not None:
        pytest.skip(reason)


def ask(network: PathProfile, count: int) -> tuple[list[str], Rig]:
    """The round trips of ``count`` packets from one namespace to the other and back."""
    with Rig(network) as rig:
        there, here = rig.sides
        answering = subprocess.Popen(
            there.command(sys.executable, "-c", ANSWER), stdout=subprocess.PIPE, text=True
        )
        try:
            assert answering.stdout is not None
            assert answering.stdout.readline() == "up\n"
            asked = subprocess.run(
                here.command(sys.executable, "-c", ASK, there.address, str(count)),
                capture_output=True,
                text=True,
                check=True,
            )
        finally:
            answering.kill()
            answering.communicate()
        return asked.stdout.split(), rig


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout


@pytest.mark.usefixtures("_allowed")
def test_packets_between_the_namespaces_are_delayed_and_lost_as_asked() -> None:
    lines, rig = ask(PathProfile(delay_ms=40), 5)
    assert min(float(line) for line in lines if line != "lost") >= 0.08
    assert [channel.sent for channel in rig.channels] == [5, 5]
    lost, _ = ask(PathProfile(loss=0.999), 2)
    assert lost == ["lost", "lost"]


@pytest.mark.usefixtures("_allowed")
def test_nothing_is_left_behind() -> None:
    with Rig(PathProfile()) as rig:
        names = [side.namespace for side in rig.sides]
        assert all(name in namespaces() for name in names)
    assert not any(name in namespaces() for name in names)


@pytest.mark.usefixtures("_allowed")
def test_a_machine_that_allows_no_devices_says_so_and_nothing_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(name: str) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(netns, "_open_tun", refuse)
    assert why_unavailable() == "network devices cannot be made here (Operation not permitted)"
    rig = Rig(PathProfile())
    with pytest.raises(LinkError, match="Operation not permitted"), rig:
        pass
    assert not any(side.namespace in namespaces() for side in rig.sides)


@pytest.mark.usefixtures("_allowed")
def test_the_time_of_a_network_begins_with_the_rig() -> None:
    lost, _ = ask(PathProfile(outages_s=((0.0, 60.0),)), 1)
    assert lost == ["lost"]
