from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpTransceiver

from encodec_rt.errors import LinkError
from encodec_rt.link import rtp
from encodec_rt.link.sdp import Format
from encodec_rt.voice.packetizer import Outgoing
from encodec_rt.voice.transport import Received

FORM = Format(model="0123456789abcdef", rate_hz=24_000, hop=320, bits=10, codebooks=8)


def connection() -> RTCPeerConnection:
    return RTCPeerConnection(RTCConfiguration(iceServers=[]))


def ignore(value: object) -> None:
    """What nobody in the test wants to know."""


def with_offer(check: Callable[[str], None], form: Format = FORM) -> None:
    """Let ``check`` see the SDP of an offer in ``form``."""

    async def main() -> None:
        peer = connection()
        rtp.attach(peer, form, rtp.OutgoingTrack(), on_packet=ignore, on_estimate=ignore)
        check(form.describe((await peer.createOffer()).sdp))
        await peer.close()

    asyncio.run(main())


def test_the_library_still_has_every_private_name_that_is_replaced() -> None:
    async def main() -> None:
        peer = connection()
        rtp.check_private_names(peer.addTransceiver("audio"))
        await peer.close()

    asyncio.run(main())


def test_a_library_without_them_is_refused_by_name() -> None:
    changed = cast(RTCRtpTransceiver, SimpleNamespace(sender=object(), receiver=object()))
    with pytest.raises(LinkError, match=r"__encoder.*aiortc>=1\.16,<1\.17"):
        rtp.check_private_names(changed)


def test_an_offer_has_our_payload_and_no_other() -> None:
    def check(sdp: str) -> None:
        assert "UDP/TLS/RTP/SAVPF 118\r\n" in sdp
        assert "a=rtpmap:118 vnd.encodec-rt/24000" in sdp
        assert "a=fmtp:118 rate=24000;model=0123456789abcdef;hop=320;bits=10;maxcodebooks=8" in sdp
        assert "a=rtcp-fb:118 goog-remb" in sdp
        assert rtp.SEND_TIME in sdp
        assert FORM.check_remote(sdp) == 8

    with_offer(check)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("model=0123456789abcdef", "model=fedcba9876543210", "same model"),
        ("hop=320", "hop=640", "hop='640'"),
        ("maxcodebooks=8", "maxcodebooks=33", "maxcodebooks='33'"),
        ("maxcodebooks=8", "maxcodebooks=x", "maxcodebooks='x'"),
        ("vnd.encodec-rt", "opus", "is needed"),
        ("m=audio", "m=video", "one audio stream"),
    ],
)
def test_another_format_is_refused(old: str, new: str, told: str) -> None:
    def check(sdp: str) -> None:
        assert old in sdp
        with pytest.raises(LinkError, match=told):
            FORM.check_remote(sdp.replace(old, new))

    with_offer(check)


def test_two_streams_are_refused() -> None:
    def check(sdp: str) -> None:
        media = sdp[sdp.index("m=audio") :]
        with pytest.raises(LinkError, match="one audio stream"):
            FORM.check_remote(sdp + media)

    with_offer(check)


def test_any_text_is_a_description_or_refused() -> None:
    rng = np.random.default_rng(0)

    def check(sdp: str) -> None:
        for _ in range(1500):
            text = bytearray(sdp.encode())
            for _ in range(int(rng.integers(1, 6))):
                at = int(rng.integers(len(text)))
                kind = rng.integers(3)
                if kind == 0:
                    text[at] = int(rng.integers(32, 127))
                elif kind == 1:
                    del text[at : at + int(rng.integers(1, 40))]
                else:
                    text[at:at] = text[int(rng.integers(len(text))) :][:30]
            try:
                FORM.check_remote(text.decode("utf-8", "replace"))
            except LinkError:
                continue

    with_offer(check)


def converse(talk: Callable[[rtp.OutgoingTrack], Coroutine[Any, Any, None]]) -> list[Received]:
    """What one peer receives of what ``talk`` sends from the other."""
    received: list[Received] = []

    async def main() -> None:
        one, other = connection(), connection()
        tracks = rtp.OutgoingTrack(), rtp.OutgoingTrack()
        rtp.attach(one, FORM, tracks[0], on_packet=ignore, on_estimate=ignore)
        rtp.attach(other, FORM, tracks[1], on_packet=received.append, on_estimate=ignore)
        await one.setLocalDescription(await one.createOffer())
        await other.setRemoteDescription(one.localDescription)
        await other.setLocalDescription(await other.createAnswer())
        await one.setRemoteDescription(other.localDescription)
        for _ in range(1000):
            if one.connectionState == other.connectionState == "connected":
                break
            await asyncio.sleep(0.01)
        await talk(tracks[0])
        await one.close()
        await other.close()

    asyncio.run(main())
    return received


def test_payloads_timestamps_and_silence_arrive_as_they_were_sent() -> None:
    payloads = [b"one", b"", b"three" * 20]

    async def talk(track: rtp.OutgoingTrack) -> None:
        for index, payload in enumerate(payloads):
            track.send(Outgoing(payload, index * 320, marker=index == 0))
        await asyncio.sleep(0.5)

    received = converse(talk)
    assert [packet.payload for packet in received] == payloads
    steps = np.diff([packet.timestamp for packet in received])
    assert [step % (1 << 32) for step in steps.tolist()] == [320, 320]
    assert np.diff([packet.sequence for packet in received]).tolist() == [1, 1]
    assert len({packet.ssrc for packet in received}) == 1


def test_the_marker_bit_is_the_packets_own() -> None:
    packer = rtp._Packer(ignore)
    for marker in (True, False):
        payloads, timestamp = packer.pack(Outgoing(b"x", 320, marker))
        # aiortc marks the last of a frame's payloads.
        assert [index == len(payloads) - 1 for index, _ in enumerate(payloads)] == [marker]
        assert (list(payloads), timestamp) == ([b"x"], 320)


def test_an_estimate_that_the_library_writes_is_passed_on() -> None:
    seen: list[float] = []
    packer = rtp._Packer(seen.append)
    assert hasattr(packer, "target_bitrate")
    packer.target_bitrate = 30_000
    assert seen == [30_000.0]


def test_a_network_that_takes_nothing_costs_the_oldest_packets() -> None:
    async def main() -> None:
        track = rtp.OutgoingTrack()
        for index in range(rtp.WAITING_PACKETS + 5):
            track.send(Outgoing(b"", index, marker=False))
        assert track.dropped == 5
        assert (await track.recv()).timestamp == 5

    asyncio.run(main())
