"""The page's JavaScript against the Python that it repeats, in Node."""

from __future__ import annotations

import base64
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encodec_rt.bitstream.packet import Packet, Redundancy, encode_packet, parse_packet
from encodec_rt.errors import PacketError
from encodec_rt.export.blob import blob
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.portable import PortableCodec, PortableSnapshot
from tests.support.models import snr_db, speech

ROOT = Path(__file__).parents[2]
WASM = ROOT / "encodec_rt" / "web" / "codec" / "codec.wasm"
HOP = 320


def as_plain(packet: Packet) -> dict[str, Any]:
    def side(codes: NDArray[np.uint16]) -> dict[str, Any]:
        return {
            "frames": codes.shape[0],
            "books": codes.shape[1],
            "codes": codes.reshape(-1).tolist(),
        }

    extra = packet.redundancy
    redundancy = None if extra is None else {"back": extra.back, **side(extra.codes)}
    return {**side(packet.codes), "redundancy": redundancy}


def random_packet(random: np.random.Generator, bits: int) -> Packet:
    codes = random.integers(0, 1 << bits, (random.integers(1, 5), random.integers(1, 33)))
    redundancy = None
    if random.random() < 0.5:
        copies = int(random.integers(1, 5))
        shape = (copies, random.integers(1, 5))
        extra = random.integers(0, 1 << bits, shape).astype(np.uint16)
        redundancy = Redundancy(int(random.integers(copies, 17)), extra)
    return Packet(codes.astype(np.uint16), redundancy)


def test_the_page_asks_for_every_module_that_it_imports_at_once() -> None:
    page = ROOT / "encodec_rt" / "web" / "page"
    found, waiting = set(), ["main.js"]
    while waiting:
        found.add(name := waiting.pop())
        imported = re.findall(r'^import .* from "\./(.*)";$', (page / name).read_text(), re.M)
        waiting += set(imported) - found
    preloaded = re.findall(
        r'"modulepreload" href="@FOLDER@/(.*)"', (page / "index.html").read_text()
    )
    assert sorted(["main.js", *preloaded]) == sorted(found)


def test_the_documented_example_reads_the_same_in_javascript(node: Any) -> None:
    text = (ROOT / "docs" / "format.md").read_text()
    payload = re.search(r"^    (4f[ 0-9a-f]+)$", text, re.MULTILINE)
    assert payload is not None
    given = payload[1].replace(" ", "")
    packet = parse_packet(bytes.fromhex(given), bits=10)
    assert node("parse", payloads=[given], bits=10, most=32) == [as_plain(packet)]
    assert node("encode", packets=[as_plain(packet)], bits=10) == [given]


@pytest.mark.parametrize("bits", [1, 7, 10, 16])
def test_packets_are_written_and_read_alike(bits: int, node: Any) -> None:
    random = np.random.default_rng(bits)
    packets = [random_packet(random, bits) for _ in range(200)]
    payloads = [encode_packet(packet, bits=bits).hex() for packet in packets]
    plain = [as_plain(packet) for packet in packets]
    assert node("encode", packets=plain, bits=bits) == payloads
    assert node("parse", payloads=payloads, bits=bits, most=32) == plain


def test_damaged_payloads_are_refused_by_both_or_read_alike(node: Any) -> None:
    random = np.random.default_rng(3)
    payloads = [""]
    for _ in range(3000):
        payload = bytearray(encode_packet(random_packet(random, 10), bits=10))
        payload[random.integers(len(payload))] = random.integers(256)
        if random.random() < 0.3:
            del payload[random.integers(len(payload)) :]
        payloads.append(payload.hex())
    given = node("parse", payloads=payloads, bits=10, most=8)
    refused = 0
    for text, result in zip(payloads, given, strict=True):
        try:
            wanted = as_plain(parse_packet(bytes.fromhex(text), bits=10, max_codebooks=8))
        except PacketError:
            refused += 1
            assert "refused" in result, text
        else:
            assert result == wanted
    assert 1000 < refused < 2990


def test_a_hundred_thousand_hostile_messages_raise_nothing_else(node: Any) -> None:
    random = np.random.default_rng(4)
    head = struct.pack(">BBHII", 0x80, 118, 7, 320, 9)
    packets = [random_packet(random, 10) for _ in range(20)]
    seeds = [(head + encode_packet(packet, bits=10)).hex() for packet in packets]
    result = node("fuzz", count=100_000, bits=10, seeds=seeds)
    assert result["count"] == 100_000
    assert 100 < result["taken"] < 50_000


def test_rtp_headers_of_every_kind_are_read(node: Any) -> None:
    plain = struct.pack(">BBHII", 0x80, 128 | 118, 65535, 1 << 31, 0xDEADBEEF) + b"payload"
    sources = struct.pack(">BBHIIII", 0x82, 118, 1, 2, 3, 4, 5) + b"payload"
    extended = struct.pack(">BBHIIHHI", 0x90, 118, 1, 2, 3, 0xBEDE, 1, 6) + b"payload"
    padded = struct.pack(">BBHII", 0xA0, 118, 1, 2, 3) + b"payload" + b"\0\0\x03"
    wrong = [
        b"",
        plain[:11],
        b"\x40" + plain[1:],
        extended[:15],
        sources[:18],
        padded[:-1] + b"\xff",
        padded[:-1] + b"\0",
    ]
    results = node(
        "rtp", packets=[packet.hex() for packet in (plain, sources, extended, padded, *wrong)]
    )
    assert all(result["payload"] == b"payload".hex() for result in results[:4])
    assert results[0]["again"] == plain.hex()
    head = {name: results[0][name] for name in ("marker", "sequence", "timestamp", "ssrc")}
    assert head == {"marker": True, "sequence": 65535, "timestamp": 1 << 31, "ssrc": 0xDEADBEEF}
    assert all("refused" in result for result in results[4:])


def test_streams_and_snapshots_in_javascript_are_pythons(node: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(blob(EncodecModel.from_pretrained("default")))
    codec = PortableCodec.load(file)
    encoder, decoder = codec.stream_encoder(6.0), codec.stream_decoder(6.0)
    pcm = speech(1, 60 * HOP)[0].numpy()
    before = [encoder.push(pcm[: 20 * HOP])]
    decoder.push(before[0])
    given = node(
        "stream", wasm=str(WASM), model=str(file), books=8,
        pcm=base64.b64encode(pcm[20 * HOP : 40 * HOP].tobytes()).decode(),
        snapshot=encoder.snapshot().to_bytes().hex(),
        decoderSnapshot=decoder.snapshot().to_bytes().hex(),
    )  # fmt: skip
    middle = encoder.push(pcm[20 * HOP : 40 * HOP])
    heard = decoder.push(middle)
    assert given["codes"] == middle.tolist()
    assert base64.b64decode(given["heard"]) == heard.tobytes()
    encoder.restore(PortableSnapshot.from_bytes(bytes.fromhex(given["snapshot"])))
    decoder.restore(PortableSnapshot.from_bytes(bytes.fromhex(given["decoderSnapshot"])))
    reference = codec.stream_encoder(6.0).push(pcm)
    last = encoder.push(pcm[40 * HOP :])
    assert np.array_equal(last, reference[40:])
    assert encoder.samples_in == len(pcm)
    wanted = codec.stream_decoder(6.0).push(reference)
    assert np.array_equal(decoder.push(last), wanted[40 * HOP :])


def test_lost_frames_are_held_and_fade_as_in_python(node: Any, tmp_path: Path) -> None:
    from encodec_rt.streaming.codec import Codec
    from encodec_rt.voice.conceal import Concealer

    model = EncodecModel.from_pretrained("default")
    file = tmp_path / "model.bin"
    file.write_bytes(blob(model))
    codec = Codec(model)
    codes = codec.stream_encoder(6.0).push(speech(1, 40 * HOP)[0].numpy())
    # Gaps of at most two frames in speech: longer ones are cross-faded in Python alone.
    frames = [None if at in (12, 20, 21, 30) else row.tolist() for at, row in enumerate(codes)]
    concealer = Concealer(codec.stream_decoder(6.0))
    wanted = np.concatenate(
        [concealer.play(None if row is None else np.array([row], np.uint16)) for row in frames]
    )
    given = np.frombuffer(
        base64.b64decode(node("conceal", wasm=str(WASM), model=str(file), books=8, frames=frames)),
        np.float32,
    ).copy()
    # Up to the end of the second gap's first frame nothing is cross-faded.
    assert snr_db(wanted[: 22 * HOP], given[: 22 * HOP]) > 100


@pytest.mark.parametrize(
    ("source", "target"), [(48_000, 24_000), (44_100, 24_000), (24_000, 48_000)]
)
def test_the_resampler_keeps_tones_and_is_the_same_in_any_pieces(
    source: int, target: int, node: Any
) -> None:
    seconds = np.arange(source) / source
    tone = np.sin(2 * np.pi * 1000 * seconds).astype(np.float32)
    text = base64.b64encode(tone.tobytes()).decode()
    whole, pieces = (
        np.frombuffer(
            base64.b64decode(
                node("resample", **{"from": source}, to=target, pcm=text, sizes=sizes)
            ),
            np.float32,
        )
        for sizes in ([1 << 20], [128, 1, 77])
    )
    assert abs(len(whole) - target) < 64
    assert np.array_equal(whole[: len(pieces)], pieces)
    middle = whole[target // 4 : target // 2].copy()
    at = np.arange(len(middle)) / target
    basis = np.stack([np.sin(2 * np.pi * 1000 * at), np.cos(2 * np.pi * 1000 * at)])
    fitted = np.linalg.lstsq(basis.T, middle, rcond=None)[0] @ basis
    assert snr_db(middle, fitted) > 50
    assert np.abs(middle).max() == pytest.approx(1.0, abs=0.02)
