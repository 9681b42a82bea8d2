"""By name and by standard input every file gives the same audio, rate, length and warnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encodec_rt.audio import AudioReader
from tests.support.audio_files import KINDS, Kind, from_stdin, outcome, read_all, tone

RATES = (8_000, 16_000, 24_000, 48_000)
DAMAGES = ("none", "cut", "flip", "burst", "join", "tag", "headless", "junk", "repeat")


def damaged(data: bytes, damage: str, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    at, size = int(rng.integers(1, len(data))), int(rng.integers(1, 400))
    if damage == "cut":
        return data[:at]
    if damage == "flip":
        return data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
    if damage == "burst":
        return data[:at] + rng.bytes(min(size, len(data) - at)) + data[at + size :]
    if damage == "repeat":
        return data[:at] + data[max(0, at - size) :]
    if damage == "headless":
        return data[min(size, len(data) - 1) :]
    return data + {"join": data, "tag": b"TAG" + bytes(125), "junk": rng.bytes(777)}.get(
        damage, b""
    )


@given(
    kind=st.sampled_from(KINDS),
    channels=st.sampled_from([1, 2]),
    rate=st.sampled_from(RATES),
    samples=st.sampled_from([1, 2, 100, 3_000, 20_000]),
    damage=st.sampled_from(DAMAGES),
    piece=st.sampled_from([61, 997, 65_536]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_pipe_gives_what_the_file_gives_whatever_kind_and_damage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
    channels: int,
    rate: int,
    samples: int,
    damage: str,
    piece: int,
    seed: int,
) -> None:
    audio = tone(samples, 1 if kind.mono else channels, rate)
    data = damaged(kind.make(audio, rate), damage, seed)
    path = tmp_path / "file"
    path.write_bytes(data)
    for strict in (False, True):
        from_stdin(monkeypatch, data, piece)
        assert outcome(path, strict=strict) == outcome("-", strict=strict)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("samples", [1, 300, 20_000, 60_001])
def test_an_undamaged_file_gives_its_audio_whole_and_no_warning(
    tmp_path: Path, kind: Kind, samples: int
) -> None:
    rate = 24_000
    samples = max(samples, kind.shortest)
    audio = tone(samples, 1, rate)
    path = tmp_path / "x"
    path.write_bytes(kind.make(audio, rate))
    with AudioReader(path, strict=True) as reader:
        own = reader.rate_hz
        heard = np.concatenate(list(reader.blocks(own, 1)), axis=1)
        assert reader.warnings == []
    wanted = samples * own // rate
    if kind.error is not None:
        assert heard.shape[1] == wanted
        assert np.abs(heard - audio).max() <= kind.error
    else:
        assert wanted <= heard.shape[1] <= wanted + max(kind.padding, 0)
        if samples > 10_000:
            assert pitch_hz(heard[0], own) == pytest.approx(300, rel=0.01)
        if samples > 100 and kind.aligned:
            assert np.corrcoef(heard[0, :wanted], tone(wanted, 1, own)[0])[0, 1] > 0.95


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.joins], ids=lambda kind: kind.name)
def test_files_that_were_joined_are_read_to_the_end_of_the_last(tmp_path: Path, kind: Kind) -> None:
    once = kind.make(tone(24_000), 24_000)
    path = tmp_path / "x"
    path.write_bytes(once + once + once)
    with AudioReader(path) as reader:
        seconds = sum(block.shape[1] for block in reader.blocks(reader.rate_hz, 1)) / reader.rate_hz
    assert 3.0 <= seconds < 3.0 + 0.3


@pytest.mark.parametrize(
    ("first", "second"), [((24_000, 1), (48_000, 1)), ((48_000, 1), (24_000, 2))]
)
@pytest.mark.parametrize("name", ["wav s16", "aac", "mp3"])
def test_a_change_of_rate_or_channels_within_a_stream_keeps_pitch_and_length(
    tmp_path: Path, name: str, first: tuple[int, int], second: tuple[int, int]
) -> None:
    (kind,) = [kind for kind in KINDS if kind.name == name]
    path = tmp_path / "x"
    data = b""
    for (rate, channels), hz in ((first, 440.0), (second, 880.0)):
        mono = tone(2 * rate, 1, rate, hz=hz)
        data += kind.make(np.repeat(mono, channels, axis=0), rate)
    path.write_bytes(data)
    heard = read_all(path, 24_000, 1)[0]
    assert len(heard) / 24_000 == pytest.approx(4.0, abs=0.3)
    assert pitch_hz(heard[6_000:42_000], 24_000) == pytest.approx(440, rel=0.01)
    assert pitch_hz(heard[56_000:90_000], 24_000) == pytest.approx(880, rel=0.01)


def pitch_hz(audio: Any, rate: int) -> float:
    power = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    return float(np.argmax(power)) * rate / len(audio)
