"""Messages, queues, tickets and capacity, each by itself."""

from __future__ import annotations

import numpy as np
import pytest

from encodec_rt.errors import ConfigError, PacketError
from encodec_rt.server.access import TICKET_S, Access
from encodec_rt.server.capacity import PASSES, measure_capacity
from encodec_rt.server.protocol import (
    Kind,
    StreamRequest,
    pack_event,
    pack_message,
    parse_event,
    parse_message,
    secret_of,
)
from encodec_rt.server.queues import ClipEnd, FrameQueue, Loss, PcmFramer, WaitingFrame
from tests.support.serving import tiny_codec

TOKEN = "a-token-that-nobody-will-ever-guess-1234"


def test_messages_and_events_come_back_as_they_were() -> None:
    data = pack_message(Kind.CODES, 7, b"abc")
    assert data == b"\x02\x07\0\0\0abc"
    assert parse_message(data) == (Kind.CODES, 7, b"abc")
    assert parse_event(pack_event("Dropped", first=3)) == {"type": "Dropped", "first": 3}
    request = StreamRequest("decode", 3.0, "exact", 5, 9)
    assert StreamRequest.from_query(request.to_query()) == request
    assert secret_of(["a", "b.c", "b.d"], "b.") == "c"
    assert secret_of(["a"], "b.") is None


@pytest.mark.parametrize("data", [b"", b"\x01\0\0\0\0", b"\x03\0\0\0\0a", b"\0" * 9])
def test_what_is_not_a_message_is_refused(data: bytes) -> None:
    with pytest.raises(PacketError):
        parse_message(data)


@pytest.mark.parametrize(
    "text", ["", "1", "[]", "{}", '{"type":1}', "[" * 1000, '{"type":"' + "a" * 2000 + '"}']
)
def test_what_is_not_an_event_is_refused(text: str) -> None:
    with pytest.raises(PacketError):
        parse_event(text)


@pytest.mark.parametrize(
    "query",
    [{"mode": "x"}, {"bandwidth": "x"}, {"frame": "4294967296"}, {"frame": "١"}, {"a": "b"}],
)
def test_what_is_not_a_request_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        StreamRequest.from_query(query)


def frame(index: int) -> WaitingFrame:
    return WaitingFrame(index, None, 0.0)


def test_a_full_queue_drops_its_oldest_frame_and_never_a_mark() -> None:
    queue = FrameQueue(3)
    end = ClipEnd(1, np.zeros((1, 0), np.int16))
    assert [queue.put(each) for each in (frame(0), end, frame(1))] == [None] * 3
    assert queue.put(frame(2)) == Loss(0, 1)
    assert queue.put(frame(3)) == Loss(1, 1)
    assert queue.take_frames(4) == []
    assert queue.take() is end
    assert [each.index for each in queue.take_frames(4)] == [2, 3]
    assert queue.take() is None


def test_samples_in_pieces_are_framed_and_numbered() -> None:
    framer = PcmFramer(4, 1)
    samples = np.arange(11, dtype="<i2")
    frames = [each for size in samples for each in framer.push(size.tobytes(), 0.0)]
    assert [each.index for each in frames] == [0, 1]
    joined = np.concatenate([each.content for each in frames], axis=1)
    end = framer.finish()
    assert np.array_equal(np.concatenate([joined, end.rest], axis=1)[0], samples)
    assert (end.index, framer.index) == (2, 3)
    framer.skip_to(9)
    assert framer.push(bytes(8), 0.0)[0].index == 9


def test_a_ticket_is_good_once_and_for_a_while() -> None:
    now = [100.0]
    access, other = (Access(TOKEN, lambda: now[0]) for _ in range(2))
    ticket = access.make_ticket()
    assert not other.takes_ticket(ticket)
    assert access.takes_ticket(ticket)
    assert not access.takes_ticket(ticket)
    late = access.make_ticket()
    now[0] += TICKET_S + 1
    assert not access.takes_ticket(late)
    claim, _, signature = access.make_ticket().rpartition(".")
    longer = f"{int(claim.partition('.')[0]) + 10**6}.{claim.partition('.')[2]}"
    for forged in (f"{longer}.{signature}", f"{claim}.", "", "..", f"é.{signature}", "\ud800"):
        assert not access.takes_ticket(forged)


@pytest.mark.parametrize(("cost", "expected"), [(0.1, 6), (0.13, 4), (0.8, 0), (0.001, 12)])
def test_capacity_is_what_fits_into_three_quarters_of_a_frame(cost: float, expected: int) -> None:
    """By a clock that says each slot of a batch takes ``cost`` of a frame."""
    codec = tiny_codec()
    hop_s = 1 / codec.config.frame_rate
    sizes, now, calls = [1, 2, 3, 4, 6, 8, 12], [0.0], [0]

    def clock() -> float:
        # Five passes come before those that are timed, and ask it once each.
        size, call = divmod(calls[0], 2 * PASSES + 5)
        calls[0] += 1
        if call >= 5 and (call - 5) % 2:
            now[0] += cost * sizes[size] * hop_s
        return now[0]

    assert measure_capacity(codec, codec.config.target_bandwidths[-1], 12, clock) == expected
