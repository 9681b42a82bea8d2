"""What comes from outside: damaged model files, and calls that no host of ours would make."""

from __future__ import annotations

import ctypes
import struct
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from encodec_rt.errors import BackendUnavailable, ConfigError, WeightsError
from encodec_rt.export.blob import blob
from encodec_rt.portable import PortableCodec
from encodec_rt.portable.module import LEFT, RIGHT, Module, compiled
from tests.support.models import random_model, tiny_config

if TYPE_CHECKING:
    from typing_extensions import Unpack

HEADER_WORDS = 16


@cache
def good() -> bytes:
    return blob(random_model(tiny_config(audio_channels=2, num_residual_layers=2)))


class Soiled(Module):
    """A module whose memory was full of something before the file came."""

    filling = 0

    def _load(self, content: bytes) -> None:
        self._memory.grow(self._store, 64)
        base = ctypes.addressof(self._memory.data_ptr(self._store).contents)
        # The module's own data ends where the blob will begin; 1 MiB lies far behind it.
        ctypes.memset(
            base + (1 << 20), self.filling, self._memory.data_len(self._store) - (1 << 20)
        )
        super()._load(content)


class Dirty(Soiled):
    filling = 0x5A


def computed(kind: type[Module], content: bytes) -> bytes | None:
    """What a file makes of some codes and their audio, or None where it is refused."""
    try:
        module = kind(content)
    except WeightsError:
        return None
    about = module.describes
    encoder, decoder = module.call("open", 1, 1), module.call("open", 2, 1)
    module.codes(1, about.num_quantizers)[:] = 1
    samples = module.call("decode", decoder, 1, about.num_quantizers, 0)
    heard = module.pcm(samples).copy()
    module.pcm(about.hop_length)[:] = 0.1
    frames = module.call("encode", encoder, about.hop_length, about.num_quantizers, 0)
    if frames < 0:
        return heard.tobytes()
    return heard.tobytes() + module.codes(frames, about.num_quantizers).tobytes()


def test_a_good_file_computes_the_same_whatever_lay_in_memory() -> None:
    assert computed(Soiled, good()) == computed(Dirty, good()) is not None


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_refused_or_compute_from_their_own_bytes_alone(seed: int) -> None:
    """Two memories with different rests give the same result: nothing outside was read."""
    random = np.random.default_rng(seed)
    layers = sum(struct.unpack_from("<2I", good(), 12))
    meta = -(-struct.unpack_from("<I", good(), 8)[0] // 4) * 4
    described = HEADER_WORDS * 4 + meta + layers * 32
    refused = 0
    for turn in range(100):
        content = bytearray(good())
        if turn % 4 == 0:
            del content[int(random.integers(len(content))) :]
        for _ in range(int(random.integers(1, 4))):
            # Most changes go where the numbers are that sizes and places follow from.
            where = described if turn % 4 != 3 else len(content)
            at = int(random.integers(min(where, len(content)) or 1)) & ~3
            value = random.choice([0, 1, 2, 3, 7, 255, 1 << 16, 1 << 24, 1 << 31, (1 << 32) - 1])
            content[at : at + 4] = int(value).to_bytes(4, "little")
        first, second = computed(Soiled, bytes(content)), computed(Dirty, bytes(content))
        assert first == second
        refused += first is None
    assert refused > 20


@pytest.mark.parametrize("word", range(HEADER_WORDS))
@pytest.mark.parametrize("value", [0, 0xFFFFFFFF, 0x7FFFFFFF, 1 << 20])
def test_no_header_word_makes_the_codec_read_elsewhere(word: int, value: int) -> None:
    content = bytearray(good())
    content[4 * word : 4 * word + 4] = value.to_bytes(4, "little")
    assert computed(Soiled, bytes(content)) == computed(Dirty, bytes(content))


@pytest.mark.parametrize("content", [b"", b"ERTW", b"\0" * 64, b"<html>" * 100])
def test_other_files_are_refused_in_one_sentence(content: bytes) -> None:
    with pytest.raises(WeightsError, match="not a model for the codec"):
        PortableCodec(content)


def test_rest_bytes_and_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(WeightsError, match="length"):
        PortableCodec(good() + b"\0\0\0\0")
    with pytest.raises(WeightsError, match="finite"):
        PortableCodec(good()[:-4] + struct.pack("<f", np.nan))


def test_calls_with_wrong_numbers_are_refused_and_change_nothing() -> None:
    module = Module(good())
    about = module.describes
    encoder, decoder = module.call("open", 1, 1), module.call("open", 2, 1)
    module.pcm(about.hop_length)[:] = 0.0
    module.latents(1)[:] = 0.0
    module.codes(1, about.num_quantizers)[:] = 0
    before = [module.state(handle).tobytes() for handle in (encoder, decoder)]
    hop, first = about.hop_length, about.encoder_start_frames * about.hop_length
    wrong = [0, 1, 2, 3, 7, 1 << 16, (1 << 31) - 1, -1, -(1 << 31)]
    calls: list[tuple[str, Unpack[tuple[int, ...]]]] = [
        *(("encode", handle, hop, 1, 0) for handle in (decoder, 5, 256, *wrong[5:])),
        *(("encode", encoder, samples, 1, 0) for samples in wrong if samples != hop),
        *(("encode", encoder, samples, 1, LEFT) for samples in wrong if samples != first),
        *(("encode", encoder, hop + more, 1, RIGHT) for more in (0, 1, 1 << 20)),
        *(("encode", encoder, hop, books, 0) for books in (0, about.num_quantizers + 1, -1)),
        *(("encode", encoder, hop, 1, edge) for edge in (4, 8, -1)),
        *(("decode", decoder, frames, 1, 0) for frames in wrong if frames != 1),
        *(("decode", decoder, 1, books, 0) for books in (0, about.num_quantizers + 1, -1)),
        *(("decode_latents", decoder, frames, 0) for frames in wrong if frames != 1),
        *(("decode_latents", decoder, frames, RIGHT) for frames in wrong if frames),
        *(("decode_latents", handle, 1, 0) for handle in (encoder, *wrong[4:])),
        *(("look_up", frames, 1) for frames in wrong[5:]),
        *(("open", direction, 0) for direction in (0, 3, -1)),
        *(("open", 1, books) for books in (about.num_quantizers + 1, -1)),
        *(("close", handle) for handle in wrong[2:]),
        ("reserve", 0), ("reserve", 64), ("load",),
    ]  # fmt: skip
    for name, *arguments in calls:
        result = module.call(name, *arguments)
        assert result < 0 or (name == "reserve" and result == 0), (name, arguments)
    module.codes(1, 1)[:] = about.codebook_size
    assert module.call("decode", decoder, 1, 1, 0) == -10
    module.pcm(1)[:] = np.nan
    assert module.call("encode", encoder, hop, 1, 0) == -11
    assert [module.state(handle).tobytes() for handle in (encoder, decoder)] == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_causal_conv": False}, "not causal"),
        ({"norm_type": "time_group_norm"}, "not causal"),
        ({"normalize": True}, "not causal"),
        ({"chunk_length_s": 1.0, "overlap": 0.01}, "not causal"),
    ],
)
def test_models_that_the_codec_cannot_run_are_refused_by_name(
    changes: dict[str, Any], reason: str
) -> None:
    model = random_model(tiny_config(**changes))
    with pytest.raises(ConfigError, match=reason):
        blob(model)


def test_weights_too_large_for_float16_are_refused_there_and_kept_in_float32() -> None:
    model = random_model(tiny_config())
    model.quantizer.stages[0].codebook.embed[0] = 1e6
    with pytest.raises(ConfigError, match="float16"):
        blob(model, half=True)
    PortableCodec(blob(model))


def test_float16_weights_halve_the_file_and_round_what_is_in_it() -> None:
    model = random_model(tiny_config())
    whole, half = blob(model), blob(model, half=True)
    assert len(half) < 0.7 * len(whole)
    books = model.quantizer.stages[0].codebook.embed
    books.copy_(books.half().float())
    codec = PortableCodec(half)
    kbps = codec.config.bandwidths_kbps[0]
    decoder = codec.stream_decoder(kbps)
    decoder.push([[3]])
    assert np.array_equal(decoder.snapshot().last_latent, books[3].numpy())


def test_without_wasmtime_the_extra_that_brings_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wasmtime", None)
    compiled.cache_clear()
    try:
        with pytest.raises(BackendUnavailable, match=r"encodec-rt\[portable\]"):
            PortableCodec(good())
    finally:
        compiled.cache_clear()
