from __future__ import annotations

import importlib
import io
import json
import random
import re
import struct
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encodec_rt.bitstream.ecdc import (
    Block,
    EcdcHeader,
    EcdcReader,
    EcdcWriter,
    read_header,
    segments,
)
from encodec_rt.config import PRESETS, EncodecConfig
from encodec_rt.errors import InputError, PacketError, StateError
from encodec_rt.types import Codes
from tests.support.models import random_model, speech, tiny_config
from tests.support.narrow import present
from tests.support.streams import Trickle
from tests.support.upstream import upstream_twin

MONO = PRESETS["encodec_24khz"]
STEREO = PRESETS["encodec_48khz"]
upstream_files = importlib.import_module("encodec.compress")

ROOT = Path(__file__).resolve().parents[2]


def written(
    config: EncodecConfig, samples: int, books: int, seed: int = 0, step: int = 7
) -> tuple[bytes, list[tuple[Codes, float | None]]]:
    """A file of random codes, written in pieces, and its blocks as (codes, scale) per segment."""
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    parts: list[tuple[Codes, float | None]] = []
    with EcdcWriter(config, "encodec_24khz", books) as writer:
        for _, frames in segments(config, samples):
            codes = rng.integers(0, config.codebook_size, (frames, books), dtype=np.uint16)
            scale = float(np.float32(rng.uniform(0.01, 1))) if config.normalize else None
            parts.append((codes, scale))
            if config.chunk_length is not None:
                writer.write(codes, scale)
            else:
                for start in range(0, frames, step):
                    writer.write(codes[start : start + step])
        size = writer.finish(file, samples)
    assert size == len(file.getvalue())
    return file.getvalue(), parts


def read(
    data: bytes,
    config: EncodecConfig,
    *,
    salvage: bool = False,
    kind: type[io.BytesIO] = io.BytesIO,
) -> tuple[list[Block], EcdcReader]:
    file = kind(data)
    reader = EcdcReader(file, read_header(file), config, salvage=salvage)
    return list(reader), reader


@pytest.mark.parametrize("length", [1, 7, 8, 9, 321, 4001])
def test_whole_clip_file_is_byte_for_byte_upstreams(length: int) -> None:
    model = random_model(tiny_config())
    theirs = upstream_twin(model, "encodec_24khz")
    theirs.set_target_bandwidth(model.config.target_bandwidths[-1])
    wav = speech(1, length)
    with torch.no_grad():
        codes = theirs.encode(wav[None])[0][0][0].t().numpy().astype(np.uint16)
    file = io.BytesIO()
    with EcdcWriter(model.config, "encodec_24khz", codes.shape[1]) as writer:
        for start in range(0, len(codes), 3):
            writer.write(codes[start : start + 3])
        writer.finish(file, length)
    assert file.getvalue() == upstream_files.compress(theirs, wav, use_lm=False)


def chunked_config() -> EncodecConfig:
    return tiny_config(
        audio_channels=2,
        normalize=True,
        chunk_length_s=0.5,
        overlap=0.01,
        norm_type="time_group_norm",
        use_causal_conv=False,
    )


@pytest.mark.parametrize("length", [1, 399, 400, 401, 396, 397, 1200, 1993])
def test_chunked_file_is_byte_for_byte_upstreams(length: int) -> None:
    model = random_model(chunked_config())
    theirs = upstream_twin(model, "encodec_48khz")
    theirs.set_target_bandwidth(model.config.target_bandwidths[1])
    wav = speech(2, length)
    file = io.BytesIO()
    with torch.no_grad(), EcdcWriter(model.config, "encodec_48khz", 2) as writer:
        for codes, scale in theirs.encode(wav[None]):
            writer.write(codes[0].t().numpy().astype(np.uint16), scale.item())
        writer.finish(file, length)
    assert file.getvalue() == upstream_files.compress(theirs, wav, use_lm=False)


def test_upstream_decodes_what_we_write(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(tiny_config())
    theirs = upstream_twin(model, "encodec_24khz")
    monkeypatch.setitem(upstream_files.MODELS, "encodec_24khz", lambda: theirs)
    data, [(codes, _)] = written(model.config, 640, 4)
    audio, rate = upstream_files.decompress(data)
    with torch.no_grad():
        wanted = theirs.decode([(torch.from_numpy(codes.T.astype(np.int64))[None], None)])
    assert rate == model.config.sampling_rate
    assert torch.equal(audio, wanted[0, :, :640])


@given(st.integers(0, 50_000), st.integers(1, 32), st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_whole_clip_codes_survive_any_length_and_any_pieces(
    samples: int, books: int, step: int
) -> None:
    data, parts = written(MONO, samples, books, seed=samples, step=step)
    blocks, reader = read(data, MONO, kind=Trickle if samples < 5000 else io.BytesIO)
    codes = np.concatenate([block.codes for block in blocks]) if blocks else np.empty((0, books))
    assert np.array_equal(codes, parts[0][0] if parts else codes)
    assert sum(block.samples for block in blocks) == samples
    assert reader.header == EcdcHeader("encodec_24khz", samples, books)


@pytest.mark.parametrize("samples", [1, 47_520, 47_521, 48_000, 96_000, 200_001])
def test_segments_survive_with_their_scales(samples: int) -> None:
    data, parts = written(STEREO, samples, 4)
    blocks, reader = read(data, STEREO)
    assert [block.scale for block in blocks] == [scale for _, scale in parts]
    for block, (codes, _) in zip(blocks, parts, strict=True):
        assert np.array_equal(block.codes, codes)
    assert [block.samples for block in blocks] == [size for size, _ in segments(STEREO, samples)]
    assert not reader.truncated


def test_segments_are_upstreams() -> None:
    assert list(segments(MONO, 700)) == [(700, 3)]
    assert list(segments(STEREO, 47_521)) == [(47_521, 149), (1, 1)]
    assert [frames for _, frames in segments(STEREO, 96_000)] == [150, 150, 3]
    assert list(segments(STEREO, 0)) == []


def test_long_streams_are_read_in_blocks_of_bounded_size() -> None:
    data, _ = written(MONO, 320 * 5000, 2, step=1000)
    blocks, _ = read(data, MONO)
    assert len(blocks) > 5
    assert max(len(block.codes) for block in blocks) <= 512


@pytest.mark.parametrize("config", [MONO, STEREO], ids=["mono", "stereo"])
def test_a_cut_stream_is_refused_or_salvaged_to_its_last_whole_frame(config: EncodecConfig) -> None:
    samples = 100_000
    data, parts = written(config, samples, 2)
    frames = np.concatenate([codes for codes, _ in parts])
    for cut in range(len(data) - 40, len(data)):
        with pytest.raises(PacketError, match="--salvage"):
            read(data[:cut], config)
        blocks, reader = read(data[:cut], config, salvage=True)
        codes = np.concatenate([block.codes for block in blocks])
        assert reader.truncated
        assert 0 <= len(frames) - len(codes) <= 17
        assert np.array_equal(codes, frames[: len(codes)])
    blocks, reader = read(data, config, salvage=True)
    assert not reader.truncated
    assert sum(len(block.codes) for block in blocks) == len(frames)


def with_header(**changes: object) -> bytes:
    fields: dict[str, object] = {"m": "encodec_24khz", "al": 320, "nc": 2, "lm": False} | changes
    text = json.dumps({key: value for key, value in fields.items() if value is not None}).encode()
    return struct.pack("!4sBI", b"ECDC", 0, len(text)) + text + b"\0\0\0"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"ECD", "not a file of codes"),
        (b"RIFF\0\0\0\0\0", "not a file of codes"),
        (b"ECDC\0\0", "ends within its header"),
        (b"ECDC\1\0\0\0\2{}", "version 1"),
        (b"ECDC\0\xff\xff\xff\xff", "4294967295 bytes; at most 4096"),
        (b"ECDC\0\0\0\0\x40{}", "ends within its header"),
        (b"ECDC\0\0\0\0\2[]", "not a JSON object"),
        (b"ECDC\0\0\0\0\2{x", "not JSON"),
        (b"ECDC\0\0\0\x0f\xff" + b"[" * 0xFFF, "not JSON"),
        (b"ECDC\0\0\0\0\2\xff\xff", "not JSON"),
        (with_header(m=None), "'m'"),
        (with_header(m=7), "'m'"),
        (with_header(m="\x1b[2J"), "'m'"),
        (with_header(al="1"), "'al'"),
        (with_header(al=True), "'al'"),
        (with_header(al=-1), "'al'"),
        (with_header(al=10**30), "'al'"),
        (with_header(nc=0), "'nc'"),
        (with_header(nc=2.0), "'nc'"),
        (with_header(lm=0), "'lm'"),
        (with_header(nc=10**9), "the model has 32"),
        (with_header(lm=True), "name its .th file with --lm"),
        (with_header(al=10**15), "ends before the 1000000000000000 samples"),
        (with_header() + b"\0", "more bytes follow"),
    ],
)
def test_a_wrong_header_or_length_is_refused_in_words(data: bytes, message: str) -> None:
    with pytest.raises(PacketError, match=re.escape(message)):
        read(data, MONO)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_scale_that_is_no_positive_number_is_refused(scale: float) -> None:
    data, _ = written(STEREO, 4800, 2)
    at = len(EcdcHeader("encodec_24khz", 4800, 2).to_bytes())
    damaged = data[:at] + struct.pack("!f", scale) + data[at + 4 :]
    with pytest.raises(PacketError, match="positive number"):
        read(damaged, STEREO)


def mutate(whole: bytes, rng: Random) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        place = rng.randrange(min(len(data), 80) if rng.random() < 0.7 else len(data))
        kind = rng.randrange(5)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place] = rng.randrange(256)
        elif kind == 2:
            del data[place : place + rng.randint(1, 8)]
        elif kind == 3:
            data[place:place] = rng.randbytes(rng.randint(1, 8))
        else:
            data[place] = rng.choice(b'0123456789-"{}[],.eE')
    return bytes(data)


@pytest.mark.parametrize("config", [MONO, STEREO], ids=["mono", "stereo"])
def test_ten_thousand_damaged_files_raise_only_packet_error(config: EncodecConfig) -> None:
    rng = random.Random(7)
    files = [written(config, samples, 2)[0] for samples in (1, 320, 6000, 100_000)]
    refused = 0
    for index in range(5000):
        data = mutate(files[index % len(files)], rng)
        try:
            blocks, _ = read(data, config, salvage=bool(index & 4))
        except PacketError:
            refused += 1
            continue
        # What is accepted never stands for more than the bytes that are there.
        assert (
            sum(len(block.codes) * block.codes.shape[1] for block in blocks) * 10 <= len(data) * 8
        )
    assert 1000 < refused < 5000


def test_writing_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="33 codebooks"):
        EcdcWriter(MONO, "encodec_24khz", 33)
    with EcdcWriter(MONO, "encodec_24khz", 2) as writer:
        with pytest.raises(InputError, match="shape"):
            writer.write(np.zeros((1, 3), np.uint16))
        with pytest.raises(InputError, match="no scale"):
            writer.write(np.zeros((1, 2), np.uint16), 1.0)
        writer.write(np.zeros((1, 2), np.uint16))
        with pytest.raises(StateError, match="1 frames for 321 samples; 2 are needed"):
            writer.finish(io.BytesIO(), 321)
    with EcdcWriter(STEREO, "x", 2) as writer, pytest.raises(InputError, match="one scale"):
        writer.write(np.zeros((1, 2), np.uint16))


def test_the_documented_example_is_what_is_written() -> None:
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    prefix, header, codes = present(
        re.search(r"^    (4543[^{]*)(\{.*\}) (.*)$", text, re.MULTILINE)
    ).groups()
    shown = bytes.fromhex(prefix) + header.encode() + bytes.fromhex(codes)
    file = io.BytesIO()
    with EcdcWriter(MONO, "encodec_24khz", 2) as writer:
        writer.write(np.array([[1, 2], [3, 4], [1022, 1023]], np.uint16))
        writer.finish(file, 700)
    assert file.getvalue() == shown
