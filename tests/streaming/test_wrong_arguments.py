"""Whatever else is passed than audio, codes, counts and snapshots, is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from encodec_rt.errors import CodecError, ConfigError, InputError, PacketError, StateError
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.segments import Segment, SegmentDecoder, SegmentEncoder
from encodec_rt.streaming.slot_snapshot import SlotSnapshot
from encodec_rt.streaming.streams import StreamDecoder, StreamEncoder
from tests.support.models import random_model, tiny_config

RAGGED: Any = [[1, 2], [3]]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(random_model(tiny_config(pad_mode="constant")), backend="cpu")


def kbps(codec: Codec) -> float:
    return codec.config.target_bandwidths[-1]


REFUSED: dict[str, tuple[type[CodecError], str, Callable[[Codec, Any], object]]] = {
    "ragged codes": (InputError, "different lengths", lambda c, _: c.decode(RAGGED)),
    "ragged audio": (InputError, "different lengths", lambda c, _: c.encode(RAGGED, kbps(c))),
    "no codes": (InputError, "no codes", lambda c, _: c.decode(None)),  # type: ignore[arg-type]
    "a text as bandwidth": (ConfigError, "bandwidth '6'", lambda c, _: c.stream_encoder(c_("6"))),
    "no model": (ConfigError, "int is not a model", lambda c, _: Codec(c_(1))),
    "half a block": (
        ConfigError, "frames=2.5", lambda c, _: c.stream_encoder(kbps(c), block_frames=c_(2.5))
    ),
    "half a slot": (ConfigError, "slots=1.5", lambda c, _: c.engine(c_(1.5), kbps(c))),
    "an array": (InputError, "ndarray", lambda _, e: e.encode(np.zeros((2, 8), np.float32))),
    "a list": (InputError, "list", lambda _, e: e.decode([[0]])),
    "a list of flags": (InputError, "active", lambda c, e: e.encode(silence(c), [True, False])),
    "an array for slots": (
        InputError, "ndarray", lambda c, e: e.encode_slots([0, 1], silence(c).numpy())
    ),
    "doubles for slots": (
        InputError, "float64", lambda c, e: e.encode_slots([0, 1], silence(c).double())
    ),
    "latents of one slot": (
        InputError, r"\[1, frames, \d+\]", lambda _, e: e.decode_slots([0], torch.zeros(2, 3))
    ),
    "names of slots": (InputError, "slots", lambda c, e: e.encode_slots("ab", silence(c))),
    "codes that are not whole": (
        InputError, "float32", lambda _, e: e.dequantize(torch.zeros(1, 2, 1))
    ),
    "a slot's name": (InputError, "slot a", lambda _, e: e.snapshot("a")),
    "bytes for a slot": (StateError, "bytes is not", lambda _, e: e.restore(0, b"x")),
    "no frames ahead": (ConfigError, r"frames=\(0,\)", lambda _, e: e.prewarm((0,))),
    "a number for frames ahead": (ConfigError, "frames=2", lambda _, e: e.prewarm(2)),
    "several bandwidths": (
        ConfigError, "bandwidth array", lambda c, _: c.stream_encoder(c_(np.zeros(2)))
    ),
    "an encoder of no codec": (
        ConfigError, "Codec.stream_encoder", lambda _, __: StreamEncoder(c_(None), 8)
    ),
    "a decoder of no codec": (
        ConfigError, "Codec.stream_decoder", lambda _, __: StreamDecoder(c_("default"), 8)
    ),
    "an engine of no codec": (ConfigError, "Codec.engine", lambda _, __: Engine(c_(None), 2)),
    "codebooks of no model": (
        ConfigError, "codebooks=99; .* 1 to", lambda c, _: StreamEncoder(c.packed, 99)
    ),
    "half a codebook": (
        ConfigError, "codebooks=1.5", lambda c, _: StreamDecoder(c.packed, c_(1.5))
    ),
    "segments of no model": (
        ConfigError, "Codec.segment_encoder", lambda _, __: SegmentEncoder(c_(None), 6.0)
    ),
    "a decoder of segments of no model": (
        ConfigError, "Codec.segment_decoder", lambda _, __: SegmentDecoder(c_("default"))
    ),
    "codes as a segment": (
        InputError, "ndarray; pass a Segment",
        lambda c, _: SegmentDecoder(c.model).push(c_(np.zeros((3, 1), np.uint16))),
    ),
    "a text as scale": (
        InputError, "scale='1'",
        lambda c, _: SegmentDecoder(c.model).push(
            Segment(np.zeros((3, 1), np.uint16), c_("1"), 6)
        ),
    ),
    "no latents": (
        InputError, "NoneType", lambda c, _: c.stream_decoder(kbps(c)).push_latents(c_(None))
    ),
    "latents of another width": (
        InputError, r"\(1, 3\)",
        lambda c, _: c.stream_decoder(kbps(c)).push_latents(torch.zeros(1, 3)),
    ),
    "no slots to reset": (InputError, "NoneType", lambda _, e: e.reset(None)),
    "a slot for slots": (
        InputError, "slots of type int", lambda c, e: e.encode_slots(0, silence(c))
    ),
    "an array to begin with": (
        InputError, "ndarray", lambda _, e: e.begin_encoder(0, np.zeros(8, np.float32))
    ),
    "no codes to begin with": (InputError, "NoneType", lambda _, e: e.begin_decoder(0, None)),
    "no codes to finish with": (InputError, "NoneType", lambda _, e: e.finish_decoder(0, None)),
    "flat codes to finish with": (
        InputError, r"shape \(3,\)",
        lambda _, e: e.finish_decoder(0, torch.zeros(3, dtype=torch.int64)),
    ),
    "a path as a slot's bytes": (
        PacketError, "str is not", lambda _, __: SlotSnapshot.from_bytes(c_("slot.bin"))
    ),
}  # fmt: skip


def c_(value: Any) -> Any:
    """A value of a type that the annotations exclude."""
    return value


def silence(codec: Codec) -> torch.Tensor:
    return torch.zeros(2, codec.config.hop_length)


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_what_it_should_be_is_refused_by_name(codec: Codec, what: str) -> None:
    kind, words, call = REFUSED[what]
    with pytest.raises(kind, match=words):
        call(codec, codec.engine(2, kbps(codec), gather=True))


@pytest.mark.parametrize("sample", [1e13, -1e13, 3e38, np.nan, -np.inf])
def test_a_sample_that_would_overflow_is_refused_and_changes_no_state(
    codec: Codec, sample: float
) -> None:
    hop, bandwidth = codec.config.hop_length, kbps(codec)
    audio = np.sin(np.arange(4 * hop, dtype=np.float32))
    wrong = audio.copy()
    wrong[hop + 1] = sample
    wanted = codec.encode(audio, bandwidth)
    with codec.stream_encoder(bandwidth, start="exact") as stream:
        with pytest.raises(InputError, match=r"beyond 1e\+12"):
            stream.push(wrong)
        assert np.array_equal(np.concatenate([stream.push(audio), stream.flush()]), wanted)
    with pytest.raises(InputError, match=r"beyond 1e\+12"):
        codec.model(torch.from_numpy(wrong)[None, None])
    engine = codec.engine(2, bandwidth, frames=4, gather=True)
    both = torch.from_numpy(np.stack([audio, wrong]))
    with pytest.raises(InputError, match=r"beyond 1e\+12"):
        engine.encode(both)
    refused = engine.encode_slots([0, 1], both).refused
    assert list(refused) == [1]


@pytest.mark.parametrize("samples", [-1, 1.5, "9", True])
def test_a_length_that_is_not_a_number_of_samples_leaves_the_decoder_open(
    codec: Codec, samples: Any
) -> None:
    codes = codec.encode(np.zeros(100, np.float32), kbps(codec))
    decoder = codec.stream_decoder(kbps(codec), start="exact")
    decoder.push(codes)
    with pytest.raises(InputError, match="number of samples"):
        decoder.flush(samples)
    decoder.push(codes)
    with pytest.raises(InputError, match="number of samples"):
        codec.decode(codes, samples)


@pytest.mark.parametrize("given", [b"x", None, 3])
def test_a_stream_is_restored_from_its_snapshots_only(codec: Codec, given: Any) -> None:
    with pytest.raises(StateError, match="pass what snapshot"):
        codec.stream_encoder(kbps(codec)).restore(given)
