"""Calls over a data channel between two peers on one machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from encodec_rt.errors import LinkError
from encodec_rt.link import redial
from encodec_rt.link.call import Call, CallOptions
from encodec_rt.link.channel_transport import ChannelTransport
from encodec_rt.link.dialling import SignallingClient
from encodec_rt.link.endpoints import NullSink, SilentSource
from encodec_rt.link.hardening import MAX_STREAMS, MAX_WAITING_CHUNKS, harden_sctp
from encodec_rt.link.redial import keep_connected
from encodec_rt.link.rtp_transport import RtpTransport
from encodec_rt.link.sdp import Format
from encodec_rt.link.signalling import SignallingServer
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio
from encodec_rt.voice.packetizer import Outgoing
from tests.support.damaged import damaged_sdp
from tests.support.models import random_model, speech, tiny_config

SECONDS = 3
FORM = Format("0123456789abcdef", 24_000, 320, 10, 8)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(random_model(tiny_config()))


class Voice(SilentSource):
    """Speech, over and over."""

    def __init__(self, codec: Codec, seed: int) -> None:
        super().__init__(codec.config)
        rate = codec.config.sampling_rate
        self.said = speech(SECONDS * rate, seed=seed).numpy()
        self._hops = self.said.reshape(-1, 1, codec.config.hop_length)
        self.given = 0

    async def read(self) -> Audio | None:
        await super().read()
        self.given += 1
        hop: Audio = self._hops[(self.given - 1) % len(self._hops)]
        return hop


class Ear(NullSink):
    """Remembers what was played."""

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec.config)
        self.hops: list[Audio] = []

    def write(self, audio: Audio) -> None:
        self.hops.append(audio)


def options(codec: Codec, **changes: Any) -> CallOptions:
    kbps = codec.config.target_bandwidths[-1]
    return CallOptions(kbps, dtx=False, channel=True, **changes)


def matched_share(codec: Codec, voice: Voice, ear: Ear) -> float:
    """The share of hops of the first pass of what was said that were played."""
    kbps = codec.config.target_bandwidths[-1]
    codes = codec.stream_encoder(kbps).push(voice.said)
    wanted = codec.stream_decoder(kbps).push(codes).reshape(len(codes), -1)
    heard = np.stack(ear.hops)
    nearest = [np.abs(heard - hop).max(axis=1).min() for hop in wanted]
    return float(np.mean(np.array(nearest) < 0.05 * np.abs(wanted).max()))


async def until(condition: Callable[[], object]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never came about")


def test_both_sides_hear_each_other_and_report_what_came(codec: Codec) -> None:
    voices, ears = [Voice(codec, 1), Voice(codec, 2)], [Ear(codec), Ear(codec)]

    async def main() -> list[dict[str, Any]]:
        one, other = (
            Call(codec, voice, ear, options(codec)) for voice, ear in zip(voices, ears, strict=True)
        )
        await one.accept(await other.answer(await one.offer()))
        running = [asyncio.ensure_future(call.run()) for call in (one, other)]
        frames = SECONDS * codec.config.frame_rate
        await until(lambda: all(call.listener.statistics.packetsReceived > frames + 20
                                for call in (one, other)))  # fmt: skip
        await until(lambda: all("packetsLost" in call.statistics()["remote"]  # type: ignore[operator]
                                for call in (one, other)))  # fmt: skip
        found = [one.statistics(), other.statistics()]
        # One side hangs up; the other one's call ends by itself.
        await one.close()
        await asyncio.gather(*running)
        return found

    statistics = asyncio.run(main())
    assert matched_share(codec, voices[0], ears[1]) > 0.5
    assert matched_share(codec, voices[1], ears[0]) > 0.5
    for report in statistics:
        assert report["outbound"]["packetsSent"] > 0
        assert report["remote"]["roundTripTime"] is None or report["remote"]["roundTripTime"] >= 0
        assert report["encodecRt"]["estimatedBitrate"] is None


def test_a_call_takes_the_way_that_the_offer_asks_for(codec: Codec) -> None:
    async def main() -> None:
        for channel, kind in ((True, ChannelTransport), (False, RtpTransport)):
            made = CallOptions(codec.config.target_bandwidths[-1], channel=channel)
            caller = Call(codec, SilentSource(codec.config), NullSink(codec.config), made)
            other = CallOptions(made.bandwidth_kbps, channel=not channel)
            callee = Call(codec, SilentSource(codec.config), NullSink(codec.config), other)
            await caller.accept(await callee.answer(await caller.offer()))
            assert type(callee.transport) is kind
            running = [asyncio.ensure_future(call.run()) for call in (caller, callee)]
            counts = callee.listener.statistics
            await until(partial(lambda counts: counts.packetsReceived > 3, counts))
            await caller.close()
            await asyncio.gather(*running)

    asyncio.run(main())


def test_each_side_sends_no_more_codebooks_than_the_other_takes(codec: Codec) -> None:
    low, high = codec.config.target_bandwidths[0], codec.config.target_bandwidths[-1]
    assert codec.config.codebooks_for(low) < codec.config.codebooks_for(high)

    async def main() -> None:
        calls = [
            Call(codec, SilentSource(codec.config), NullSink(codec.config),
                 CallOptions(kbps, channel=True))
            for kbps in (high, low)
        ]  # fmt: skip
        await calls[0].accept(await calls[1].answer(await calls[0].offer()))
        for call in calls:
            own: Any = call.statistics()["encodecRt"]
            assert own["codebooks"] == codec.config.codebooks_for(low)
            await call.close()

    asyncio.run(main())


def test_another_model_is_refused_by_name_before_any_path_is_made(codec: Codec) -> None:
    stranger = Codec(random_model(tiny_config(), seed=9))

    async def main() -> None:
        calls = [
            Call(each, SilentSource(each.config), NullSink(each.config), options(each))
            for each in (codec, stranger)
        ]
        with pytest.raises(LinkError, match="same model"):
            await calls[1].answer(await calls[0].offer())
        for call in calls:
            await call.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("protocol", "why"),
    [
        ("", "''"),
        ("encodec_rt/2;model=0123456789abcdef", "encodec_rt/1 is needed"),
        ("encodec_rt/1", "model=None"),
        (FORM.protocol.replace("hop=320", "hop=640"), "hop='640'"),
        (FORM.protocol.replace("maxcodebooks=8", "maxcodebooks=0"), "maxcodebooks='0'"),
        (FORM.protocol.replace("maxcodebooks=8", "maxcodebooks"), "maxcodebooks=''"),
    ],
)
def test_protocol_strings_are_refused_with_their_reason(protocol: str, why: str) -> None:
    with pytest.raises(LinkError, match=why):
        FORM.check_protocol(protocol)


def test_the_protocol_string_is_the_documented_one() -> None:
    assert FORM.protocol == (
        "encodec_rt/1;rate=24000;model=0123456789abcdef;hop=320;bits=10;maxcodebooks=8;maxframes=4"
    )
    assert FORM.check_protocol(FORM.protocol) == 8


class Stranger:
    """A peer with the keys who says whatever it likes."""

    def __init__(self, **channel: Any) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        given = {"ordered": False, "maxRetransmits": 0, "protocol": FORM.protocol, **channel}
        self.channel = self.connection.createDataChannel("voice", **given)

    async def call(self, transport: ChannelTransport) -> None:
        await self.connection.setLocalDescription(await self.connection.createOffer())
        offer = FORM.describe_channel(self.connection.localDescription.sdp)
        answer, _ = await transport.answer(offer)
        await self.connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))


def test_garbage_on_the_channel_is_counted_and_the_next_packet_comes() -> None:
    received: list[bytes] = []

    async def main() -> None:
        transport, stranger = ChannelTransport(FORM), Stranger()
        transport.open(lambda packet: received.append(packet.payload), lambda _: None)
        await stranger.call(transport)
        assert await asyncio.wait_for(transport.wait_connected(), 30)
        for message in ("text", b"", b"x", bytes(100), bytes(3000)):
            stranger.channel.send(message)
        await until(lambda: transport.refused >= 4)
        good = ChannelTransport(FORM)._session.write(Outgoing(b"payload", 0, marker=True))

        def heard(more_than: int) -> bool:
            stranger.channel.send(good)
            return len(received) > more_than

        await until(lambda: heard(0))
        # A second channel is closed, and the first goes on.
        second = stranger.connection.createDataChannel("more", protocol=FORM.protocol)
        await until(lambda: second.readyState == "closed")
        known = len(received)
        await until(lambda: heard(known))
        await stranger.connection.close()
        await asyncio.wait_for(transport.wait_ended(), 30)
        await transport.close()

    asyncio.run(main())
    assert set(received) == {b"payload"}


@pytest.mark.parametrize(
    "channel", [{"ordered": True}, {"maxRetransmits": None}, {"protocol": "encodec_rt/1;rate=8000"}]
)
def test_a_channel_of_another_kind_carries_no_call(channel: dict[str, Any]) -> None:
    async def main() -> None:
        transport, stranger = ChannelTransport(FORM), Stranger(**channel)
        transport.open(lambda packet: None, lambda _: None)
        await stranger.call(transport)
        await until(lambda: stranger.channel.readyState == "closed")
        assert not transport._connected.is_set()
        for end in (transport, stranger.connection):
            await end.close()

    asyncio.run(main())


def test_what_waits_is_bounded_and_what_comes_then_is_dropped() -> None:
    async def main() -> None:
        transport, stranger = ChannelTransport(FORM), Stranger()
        transport.open(lambda packet: None, lambda _: None)
        transport.send(Outgoing(b"too early", 0, marker=True))
        assert transport.dropped == 1
        await stranger.call(transport)
        assert await asyncio.wait_for(transport.wait_connected(), 30)
        # No time passes in between, so that nothing leaves.
        for index in range(100):
            transport.send(Outgoing(bytes(100), index * 320, marker=False))
        assert 70 < transport.dropped < 90
        await transport.close()
        await stranger.connection.close()

    asyncio.run(main())


def test_a_peer_cannot_fill_the_memory_with_parts_of_messages() -> None:
    from aiortc.rtcsctptransport import DataChunk

    async def main() -> None:
        transport, stranger = ChannelTransport(FORM), Stranger()
        transport.open(lambda packet: None, lambda _: None)
        await stranger.call(transport)
        assert await asyncio.wait_for(transport.wait_connected(), 30)
        sctp: Any = transport._connection.sctp
        start = sctp._last_received_tsn
        for number in range(5000):
            chunk: Any = DataChunk(flags=4)  # unordered, neither first nor last
            chunk.tsn, chunk.stream_id = start + 2 * number + 10, number % 200
            chunk.stream_seq, chunk.protocol, chunk.user_data = 0, 53, bytes(1000)
            await sctp._receive_data_chunk(chunk)
        held = sum(len(stream.reassembly) for stream in sctp._inbound_streams.values())
        assert held <= MAX_STREAMS * MAX_WAITING_CHUNKS
        assert len(sctp._sack_misordered) <= 1024
        await transport.close()
        await stranger.connection.close()

    asyncio.run(main())


def test_a_library_without_what_is_replaced_is_refused_by_name() -> None:
    with pytest.raises(LinkError, match=r"_handle_data.*aiortc>=1\.16,<1\.17"):
        harden_sctp(object())


def test_damaged_descriptions_are_refused_and_nothing_else_happens() -> None:
    rng = np.random.default_rng(0)

    async def attempt(offer: str) -> None:
        transport = ChannelTransport(FORM)
        transport.open(lambda packet: None, lambda _: None)
        try:
            await asyncio.wait_for(transport.answer(damaged_sdp(offer, rng)), 5)
        except LinkError:
            pass
        finally:
            await transport.close()

    async def main() -> None:
        caller = ChannelTransport(FORM)
        offer = await caller.offer()
        for _ in range(40):
            await attempt(offer)
        await caller.close()

    asyncio.run(main())


def test_a_dead_channel_is_replaced_by_calling_again(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redial, "DEAD_AFTER_S", 1.0)
    monkeypatch.setattr(redial, "RETRY_S", 0.2)
    dead: set[ChannelTransport] = set()
    send = ChannelTransport._send
    monkeypatch.setattr(
        ChannelTransport, "_send", lambda self, message: self in dead or send(self, message)
    )
    calls: list[Call] = []
    ears = [Ear(codec), Ear(codec)]

    def make() -> Call:
        at = len(calls)
        patient = options(codec, reconnect_s=60.0)
        calls.append(Call(codec, Voice(codec, at), ears[at], patient))
        return calls[at]

    async def main() -> None:
        server = SignallingServer(make, token=None)
        url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0, None)}"
        client = SignallingClient(url, token=None)
        caller = make()
        dialled = await client.dial(await caller.offer())
        await caller.accept(dialled.answer)
        told: list[str] = []
        tasks = [
            asyncio.ensure_future(caller.run()),
            asyncio.ensure_future(keep_connected(caller, client, dialled.location, told.append)),
        ]
        counts = [call.listener.statistics for call in calls]
        await until(lambda: min(count.packetsReceived for count in counts) > 20)
        for call in calls:
            assert isinstance(call.transport, ChannelTransport)
            dead.add(call.transport)
        await until(lambda: min(call.line.renewals for call in calls) == 1)
        before = [count.packetsReceived for count in counts]
        await until(lambda: counts[0].packetsReceived > before[0] + 20)
        await until(lambda: counts[1].packetsReceived > before[1] + 20)
        assert told == [told[0], "connected again"]
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.close()

    asyncio.run(main())
