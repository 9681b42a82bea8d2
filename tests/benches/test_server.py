"""The server's bench: what it makes of what its clients saw, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from benches.environment import Json
from benches.record import Record
from benches.server import cases as bench
from benches.server.picture import draw
from benches.server.process import KBPS
from encodec_rt.client.load import Talk
from encodec_rt.streaming.codec import Codec


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load("default")


def test_a_talk_is_compared_with_a_stream_frame_by_frame(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clip,) = bench.clips(codec, 1, 1.5)
    stream = codec.stream_encoder(KBPS)
    every = [*stream.push(clip), *stream.flush()]
    good = Talk(sent=len(every), round_trip_ms=[9.0] * len(every), codes=list(every))
    assert bench.differing(codec, clip, good) == (0, 0)
    wrong = [codes.copy() for codes in every]
    wrong[3][0] ^= 1
    bad = Talk(sent=len(every), round_trip_ms=[30.0] * len(every), codes=wrong[:-2])
    assert bench.differing(codec, clip, bad) == (3, 0)
    with monkeypatch.context() as loose:
        loose.setattr(bench, "bound", lambda what, precision: 1e9)
        assert bench.differing(codec, clip, bad) == (3, 1)
    lost = Talk(refused="the server refused the stream (503)")
    record = Record("server", folder=tmp_path)
    case: dict[str, Json] = {"what": "sessions", "sessions": 2}
    bench.add(record, case, codec, [clip] * 3, [good, bad, lost])
    added = record.cases[0]
    assert added.values["refused"] == 1
    assert added.values["frames_with_other_codes"] == 3
    assert added.ms["round_trip"]["misses"] == len(every) - 75
    assert not bench.holds(added)
    assert bench.holds(bench.add(record, case, codec, [clip], [good]))
    draw(record, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
