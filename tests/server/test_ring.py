"""Rings between processes: everything that was written comes, whole and in order, or is refused."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from encodec_rt.errors import CodecError, PacketError
from encodec_rt.server.front_clients import FrontClient
from encodec_rt.server.protocol import Kind, pack_message
from encodec_rt.server.queues import ClipEnd, Loss, Output, WaitingFrame
from encodec_rt.server.records import RecordKind, RingRecord, pack_item, unpack_item
from encodec_rt.server.remote_host import RingIntake
from encodec_rt.server.ring import MAX_RECORD_BYTES, RingReader, RingWriter, make_ring_file
from encodec_rt.server.ring_link import SPARE_BYTES, RingLink
from tests.support.models import tiny_config

PATIENCE_S = 120.0
SMALL = 2 * MAX_RECORD_BYTES + 1024


@contextmanager
def ring(capacity: int = SMALL) -> Iterator[tuple[RingWriter, RingReader]]:
    descriptor = make_ring_file(capacity)
    writer, reader = RingWriter(descriptor), RingReader(descriptor)
    os.close(descriptor)
    try:
        yield writer, reader
    finally:
        writer.close()
        reader.close()


def test_records_of_any_length_come_whole_and_in_order_around_the_end() -> None:
    random = np.random.default_rng(0)
    with ring() as (writer, reader):
        sent, came = [], []
        for _ in range(2000):
            record = random.bytes(int(random.integers(0, 4000)))
            if writer.write(record):
                sent.append(record)
            if random.random() < 0.6:
                while (found := reader.read()) is not None:
                    came.append(found)
        while (found := reader.read()) is not None:
            came.append(found)
        assert came == sent
        assert sum(map(len, sent)) > 3 * writer.capacity
        longest = bytes(MAX_RECORD_BYTES)
        for _ in range(5):
            assert writer.write(longest)
            assert reader.read() == longest


def test_a_full_ring_takes_nothing_and_then_goes_on() -> None:
    with ring() as (writer, reader):
        count = 0
        while writer.write(bytes([count % 256]) * 1000):
            count += 1
        assert count * 1008 <= writer.capacity < (count + 1) * 1008
        assert not writer.write(bytes(1000))
        for at in range(count):
            assert reader.read() == bytes([at % 256]) * 1000
        assert reader.read() is None
        assert writer.write(b"more")
        assert reader.read() == b"more"


def test_a_reader_is_woken_once_for_each_sleep() -> None:
    with ring() as (writer, reader):
        assert not writer.must_wake()
        assert reader.sleeps()
        assert writer.write(b"a")
        assert writer.must_wake()
        assert not writer.must_wake()
        # What came meanwhile is read before it sleeps again.
        assert not reader.sleeps()
        assert reader.read() == b"a"
        assert reader.sleeps()


def test_what_is_too_long_or_damaged_is_refused() -> None:
    with ring() as (writer, _), pytest.raises(PacketError, match="at most"):
        writer.write(bytes(MAX_RECORD_BYTES + 1))
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        with ring(4096) as (writer, reader):
            sent = [random.bytes(int(random.integers(0, 300))) for _ in range(5)]
            for record in sent:
                assert writer.write(record)
            # The words at the beginning, and the records.
            places = [*range(16), *range(192, 192 + 1500)]
            place = int(random.choice(places))
            writer._bytes[place] ^= int(random.integers(1, 256))
            came: list[bytes] = []
            try:
                while len(came) < 6 and (found := reader.read()) is not None:
                    came.append(found)
            except PacketError:
                refused += 1
            # Only what was to be filled up may have been hit unseen.
            assert came == sent[: len(came)]
    assert refused > 100


def test_another_process_reads_what_this_one_writes() -> None:
    descriptor = make_ring_file(1 << 20)
    code = (
        "import sys; from encodec_rt.server.ring import RingReader\n"
        "reader, total = RingReader(int(sys.argv[1])), 0\n"
        "while total < 20000:\n"
        "    found = reader.read()\n"
        "    if found is not None:\n"
        "        assert found == bytes([total % 251]) * (total % 997), total\n"
        "        total += 1\n"
        "print('all', 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(descriptor)]
    with subprocess.Popen(
        command, pass_fds=(descriptor,), stdout=subprocess.PIPE, text=True
    ) as running:
        writer = RingWriter(descriptor)
        for total in range(20000):
            while not writer.write(bytes([total % 251]) * (total % 997)):
                assert running.poll() is None
        assert running.stdout is not None
        assert running.stdout.read() == "all False\n"
    os.close(descriptor)
    writer.close()


def test_a_front_needs_no_torch() -> None:
    code = "import encodec_rt.server.front, sys; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


@pytest.mark.parametrize(
    "item",
    [
        WaitingFrame(7, np.arange(8, dtype=np.int16)[None], 1.5),
        ClipEnd(7, np.arange(5, dtype=np.int16)[None]),
    ],
)
def test_audio_comes_out_of_a_record_as_it_went_in(item: WaitingFrame | ClipEnd) -> None:
    kind, found = unpack_item(RingRecord.unpack(pack_item(3, Kind.PCM, item)), tiny_config(), 4)
    assert kind == Kind.PCM
    assert type(found) is type(item)
    assert found.index == 7
    if isinstance(found, ClipEnd) and isinstance(item, ClipEnd):
        assert np.array_equal(found.rest, item.rest)
    if isinstance(found, WaitingFrame) and isinstance(item, WaitingFrame):
        assert found.arrived_s == item.arrived_s
        assert np.array_equal(np.asarray(found.content), np.asarray(item.content))


def test_codes_that_are_lost_or_not_come_out_of_a_record_as_they_went_in() -> None:
    config = tiny_config()
    for content in (None, np.array([1, 15, 0], np.uint16)):
        data = pack_item(3, Kind.CODES, WaitingFrame(7, content, 1.5))
        kind, found = unpack_item(RingRecord.unpack(data), config, 4)
        assert kind == Kind.CODES
        assert isinstance(found, WaitingFrame)
        assert np.array_equal(np.asarray(found.content), np.asarray(content))


def test_random_records_are_read_or_refused() -> None:
    random, config = np.random.default_rng(2), tiny_config()
    for _ in range(5000):
        data = bytearray(random.bytes(int(random.integers(0, 60))))
        if data:
            data[0] %= 24
        try:
            record = RingRecord.unpack(bytes(data))
            unpack_item(record, config, 4)
            assert record.fields is not None
        except PacketError:
            continue


def test_frames_for_a_full_ring_are_dropped_by_number_and_what_ends_a_clip_is_not() -> None:
    """Neither side waits for the other, which reads again after everything was said."""

    async def run() -> None:
        said: list[RingRecord] = []
        ended: list[CodecError | None] = []
        mine, theirs = socket.socketpair()
        capacity = SPARE_BYTES + 2 * MAX_RECORD_BYTES
        with ring(capacity) as (writer, reader), ring(capacity) as (back, front):
            link = RingLink(mine, writer, front, 4, take=said.append, ended=ended.append)
            other = RingLink(theirs, back, reader, 4, take=said.append, ended=ended.append)
            link.start()
            intake = RingIntake(5, link)
            hop = np.zeros((1, 320), np.int16)
            losses = [intake.pcm.put(WaitingFrame(at, hop, 0.0)) for at in range(1000)]
            first = next(at for at, loss in enumerate(losses) if loss is not None)
            assert losses[first:] == [Loss(at, 1) for at in range(first, 1000)]
            assert intake.pcm.put(ClipEnd(1000, hop[:, :7])) is None
            client = FrontClient(6, "token", intake, link, 4)
            for at in range(20):
                client.deliver(Output(6, pack_message(Kind.PCM, at, bytes(640)), index=at))
            client.send_event("Finalized", frame=20)
            # More than there is room for waits.
            filler = RingRecord(RecordKind.KEPT, 9, content=bytes(30_000)).pack()
            for _ in range(4):
                link.send(filler)
            assert link.is_behind
            other.start()
            while len([each for each in said if each.kind == RecordKind.KEPT]) < 4:
                await asyncio.sleep(0.001)
            frames = [each.frame for each in said if each.kind == RecordKind.PCM]
            assert frames == list(range(first))
            after = [each.kind for each in said[first:]]
            assert after == [
                RecordKind.END_PCM,
                RecordKind.LOST,
                RecordKind.EVENT,
                *4 * [RecordKind.KEPT],
            ]
            lost = said[first + 1].fields
            assert lost == {"where": "out", "first": 0, "count": 20}
            assert not ended
            link.close()
            while not ended:
                await asyncio.sleep(0.001)
            assert ended == [None]
            other.stop()
            theirs.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
