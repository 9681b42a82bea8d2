"""Whatever else is passed than audio, codes, counts and snapshots, is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from encodec_rt.errors import CodecError, ConfigError, InputError, StateError
from encodec_rt.streaming.codec import Codec
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
