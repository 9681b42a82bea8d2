"""The WebAssembly codec in wasmtime against the streams of torch: same codes, same audio."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from encodec_rt.errors import ConfigError, InputError, StateError, WeightsError
from encodec_rt.export.blob import blob, write_blob
from encodec_rt.export.snapshot import from_portable, to_portable
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.portable import PortableCodec, PortableSnapshot
from encodec_rt.streaming.codec import Codec
from tests.support.causal import CONFIGS, GOLDEN, audio_of
from tests.support.contract import assert_codes_agree, offline_codes, pieces
from tests.support.models import random_model, snr_db, speech, tiny_config
from tests.support.tolerances import bound

AUDIO_DB = -20 * math.log10(bound("portable audio", "float32"))


@cache
def pair(name: str) -> tuple[Codec, PortableCodec]:
    changes = {"books": (1, 2, 4), **CONFIGS[name]}
    model = random_model(tiny_config(**changes))
    return Codec(model, backend="torch"), PortableCodec(blob(model))


@cache
def embedded() -> tuple[Codec, PortableCodec]:
    model = EncodecModel.from_pretrained("default")
    return Codec(model), PortableCodec(blob(model))


def test_a_thread_that_takes_subnormal_numbers_for_zero_computes_the_same_bits() -> None:
    content = blob(EncodecModel.from_pretrained("default"))
    audio = speech(24_000).numpy()

    def run() -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
        portable = PortableCodec(content)
        codes = portable.stream_encoder(6.0).push(audio)
        return codes, portable.stream_decoder(6.0).push(codes)

    codes, heard = run()
    # As browsers' audio threads do.
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor flushes no subnormal numbers")
    try:
        assert np.float32(1e-39) * np.float32(1) == 0
        flushed_codes, flushed = run()
    finally:
        torch.set_flush_denormal(False)
    assert np.array_equal(flushed_codes, codes)
    assert np.array_equal(flushed, heard)


@pytest.mark.parametrize("start", ["primed", "exact", "zero"])
@pytest.mark.parametrize("name", CONFIGS)
def test_codes_and_audio_are_those_of_torch(name: str, start: str) -> None:
    codec, portable = pair(name)
    bandwidth = codec.config.target_bandwidths[-1]
    audio = audio_of(codec, 24 * codec.config.hop_length + 3)
    encoder = codec.stream_encoder(bandwidth, start=start)  # type: ignore[arg-type]
    wanted = np.concatenate([encoder.push(audio), encoder.flush()])
    ours = portable.stream_encoder(bandwidth, start=start)
    given = [ours.push(audio[..., part]) for part in pieces(audio.shape[-1], (1, 17, 5, 0, 64))]
    given.append(ours.flush())
    assert np.array_equal(np.concatenate(given), wanted)
    assert (ours.samples_in, ours.frames_out) == (encoder.samples_in, encoder.frames_out)
    decoder = codec.stream_decoder(bandwidth, start=start)  # type: ignore[arg-type]
    heard = [decoder.push(wanted), decoder.flush()]
    our_decoder = portable.stream_decoder(bandwidth, start=start)
    ours_heard = [our_decoder.push(wanted[part]) for part in pieces(len(wanted), (2, 1, 0, 7))]
    ours_heard.append(our_decoder.flush())
    reference, result = np.concatenate(heard, -1), np.concatenate(ours_heard, -1)
    assert result.shape == reference.shape
    assert snr_db(reference, result) >= AUDIO_DB


@pytest.mark.parametrize("name", ["plain", "constant", "replicate", "trimmed both", "dilated"])
def test_clips_of_every_short_length_are_the_offline_models(name: str) -> None:
    codec, portable = pair(name)
    heard: list[list[NDArray[np.float32]]] = [[], []]
    for samples in (1, 2, 7, 8, 9, 20, 57, 63, 64, 65):
        audio = audio_of(codec, samples)
        encoder = portable.stream_encoder(codec.config.target_bandwidths[-1], start="exact")
        given = np.concatenate([encoder.push(audio), encoder.flush()])
        tensor = torch.from_numpy(audio)[None]
        assert_codes_agree(codec.model, tensor, given, offline_codes(codec.model, tensor))
        both: tuple[Codec | PortableCodec, ...] = (codec, portable)
        for of, parts in zip(both, heard, strict=True):
            decoder = of.stream_decoder(codec.config.target_bandwidths[-1], start="exact")
            parts.append(np.concatenate([decoder.push(given), decoder.flush(samples)]))
        assert heard[0][-1].shape == heard[1][-1].shape
    # Of all clips together: a clip of one sample has no level to compare with.
    assert snr_db(*map(np.concatenate, heard)) >= AUDIO_DB


def test_the_embedded_models_codes_are_those_of_torch() -> None:
    codec, portable = embedded()
    audio = audio_of(codec, 2 * 24_000)
    for bandwidth in (1.5, 6.0, 12.0):
        wanted = codec.stream_encoder(bandwidth).push(audio)
        given = portable.stream_encoder(bandwidth).push(audio)
        assert given.shape[1] == codec.config.codebooks_for(bandwidth)
        assert np.array_equal(given, wanted)
        heard = [of.stream_decoder(bandwidth).push(wanted) for of in (codec, portable)]
        assert snr_db(heard[0], heard[1]) >= AUDIO_DB


def test_fewer_codebooks_and_lost_frames_sound_as_in_torch() -> None:
    codec, portable = embedded()
    codes = codec.stream_encoder(6.0).push(audio_of(codec, 24_000))
    heard = []
    for of in (codec, portable):
        decoder = of.stream_decoder(6.0)
        parts = [decoder.push(None)]
        for at, frame in enumerate(codes):
            lost = 30 <= at < 36 or at % 11 == 5
            parts.append(decoder.push(None if lost else frame[None, : 1 + at % 8]))
        heard.append(np.concatenate(parts))
    assert snr_db(heard[0], heard[1]) >= AUDIO_DB


def test_every_engine_computes_these_bits() -> None:
    """The hash that tests/web repeats in V8: what the module computes hangs on no engine."""
    _, portable = embedded()
    codes = (np.arange(60 * 8).reshape(60, 8) * 37 % 1024).astype(np.uint16)
    heard = portable.stream_decoder(6.0, start="zero").push(codes)
    again = portable.stream_encoder(6.0, start="zero").push(heard)
    digest = hashlib.sha256(heard.astype("<f4").tobytes() + again.astype("<u2").tobytes())
    assert digest.hexdigest() == GOLDEN


@pytest.mark.parametrize("name", ["plain", "stereo", "trimmed left", "deep recurrence"])
@pytest.mark.parametrize("start", ["primed", "exact"])
@pytest.mark.parametrize("pushed", [3, 101])
def test_a_stream_goes_on_in_the_other_runtime(name: str, start: str, pushed: int) -> None:
    codec, portable = pair(name)
    bandwidth = codec.config.target_bandwidths[-1]
    hop = codec.config.hop_length
    audio = audio_of(codec, 40 * hop)
    encoder = codec.stream_encoder(bandwidth, start=start)  # type: ignore[arg-type]
    whole = encoder.push(audio)

    there = codec.stream_encoder(bandwidth, start=start)  # type: ignore[arg-type]
    codes = [there.push(audio[..., :pushed])]
    here = portable.stream_encoder(bandwidth, start=start)
    here.restore(PortableSnapshot.from_bytes(to_portable(there.snapshot(), hop).to_bytes()))
    codes.append(here.push(audio[..., pushed : 2 * pushed]))
    there.restore(from_portable(PortableSnapshot.from_bytes(here.snapshot().to_bytes())))
    codes.append(there.push(audio[..., 2 * pushed :]))
    assert np.array_equal(np.concatenate(codes), whole)
    assert there.samples_in == audio.shape[-1]

    reference = codec.stream_decoder(bandwidth, start=start)  # type: ignore[arg-type]
    heard = np.concatenate([reference.push(whole[:20]), reference.push(None)], -1)
    decoder = codec.stream_decoder(bandwidth, start=start)  # type: ignore[arg-type]
    parts = [decoder.push(whole[:4])]
    mine = portable.stream_decoder(bandwidth, start=start)
    mine.restore(PortableSnapshot.from_bytes(to_portable(decoder.snapshot(), hop).to_bytes()))
    parts.append(mine.push(whole[4:12]))
    decoder.restore(from_portable(PortableSnapshot.from_bytes(mine.snapshot().to_bytes())))
    parts += [decoder.push(whole[12:20]), decoder.push(None)]
    result = np.concatenate(parts, -1)
    assert result.shape == heard.shape
    assert snr_db(heard, result) >= AUDIO_DB


def test_a_restored_snapshot_gives_the_same_bits_again() -> None:
    _, portable = pair("plain")
    decoder = portable.stream_decoder(portable.config.bandwidths_kbps[-1])
    codes = np.arange(40).reshape(10, 4) % 16
    decoder.push(codes)
    snapshot = decoder.snapshot()
    first = [decoder.push(codes), decoder.push(None), decoder.flush()]
    decoder.restore(snapshot)
    assert all(
        map(np.array_equal, first, [decoder.push(codes), decoder.push(None), decoder.flush()])
    )


def test_a_snapshot_cannot_hold_back_more_than_a_stream_does() -> None:
    _, codec = pair("plain" if "plain" in CONFIGS else next(iter(CONFIGS)))
    about = codec.config
    encoder, decoder = codec.stream_encoder(0.808), codec.stream_decoder(0.808, start="exact")
    for stream, width in ((encoder, about.audio_channels), (decoder, about.hidden_size)):
        taken = stream.snapshot()
        for rows in (about.hop_length * about.encoder_start_frames + 1, 50_000):
            waiting = np.zeros((rows, width), np.float32)
            many = PortableSnapshot.from_bytes(replace(taken, waiting=waiting).to_bytes())
            with pytest.raises(StateError, match="wait"):
                stream.restore(many)
        with pytest.raises(StateError, match="not a snapshot"):
            stream.restore(taken.to_bytes())  # type: ignore[arg-type]
    raw = bytearray(encoder.snapshot().to_bytes())
    raw[7] = 3  # a fourth way to begin
    with pytest.raises(StateError, match="another version"):
        PortableSnapshot.from_bytes(bytes(raw))


def test_snapshots_of_other_streams_and_damaged_ones_are_refused() -> None:
    _, portable = pair("plain")
    _, other = pair("constant")
    encoder = portable.stream_encoder(portable.config.bandwidths_kbps[0])
    taken = encoder.snapshot()
    with pytest.raises(StateError, match="another model"):
        other.stream_encoder(other.config.bandwidths_kbps[0]).restore(taken)
    with pytest.raises(StateError, match="another model"):
        portable.stream_decoder(portable.config.bandwidths_kbps[0]).restore(taken)
    content = taken.to_bytes()
    for damaged in (b"", content[:50], content[:-1], content + b"0", b"X" + content[1:]):
        with pytest.raises(StateError):
            PortableSnapshot.from_bytes(damaged)
    random = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(content)
        changed[random.integers(72)] = random.integers(256)
        try:
            snapshot = PortableSnapshot.from_bytes(bytes(changed))
            encoder.restore(snapshot)
        except StateError:
            continue
        encoder.closed = False
        assert encoder.push(np.zeros(3, np.float32)).shape[1] == encoder.codebooks


def test_wrong_arguments_are_refused_and_change_nothing() -> None:
    _, portable = pair("plain")
    bandwidth = portable.config.bandwidths_kbps[-1]
    encoder, decoder = portable.stream_encoder(bandwidth), portable.stream_decoder(bandwidth)
    before = encoder.snapshot().to_bytes() + decoder.snapshot().to_bytes()
    for pcm in ([1, 2], np.zeros((3, 4)), [math.nan] * 8, [math.inf] * 8, np.full(8, 1e300)):
        with pytest.raises(InputError):
            encoder.push(pcm)
    for codes in ([[16]], [[-1]], [[0] * 5], [0], [[0.5]], np.zeros((2, 0), int)):
        with pytest.raises(InputError):
            decoder.push(codes)
    with pytest.raises(InputError):
        decoder.push_latents(np.full((1, 8), math.nan))
    assert encoder.snapshot().to_bytes() + decoder.snapshot().to_bytes() == before
    with pytest.raises(ConfigError, match="this model has"):
        portable.stream_encoder(-1.0)
    with pytest.raises(ConfigError, match="accepted: primed"):
        portable.stream_decoder(bandwidth, start="warm")
    encoder.flush()
    with pytest.raises(StateError, match="flushed"):
        encoder.push(np.zeros(8))
    with pytest.raises(WeightsError):
        PortableCodec.load("no such file")


def test_streams_can_be_opened_without_end_when_old_ones_are_dropped() -> None:
    _, portable = pair("plain")
    bandwidth = portable.config.bandwidths_kbps[-1]
    for _ in range(400):
        portable.stream_encoder(bandwidth)
        portable.stream_decoder(bandwidth)
    kept = [portable.stream_decoder(bandwidth) for _ in range(128)]
    with pytest.raises(StateError, match="no room"):
        portable.stream_decoder(bandwidth)
    del kept
    portable.stream_decoder(bandwidth)


def test_the_portable_codec_needs_neither_torch_nor_the_model_classes(tmp_path: Path) -> None:
    model = random_model(tiny_config())
    file = tmp_path / "model.bin"
    assert write_blob(model, file) == file.stat().st_size
    code = (
        "import sys, numpy as np\n"
        "sys.modules['torch'] = None\n"
        "from encodec_rt.portable import PortableCodec\n"
        f"codec = PortableCodec.load({str(file)!r})\n"
        "kbps = codec.config.bandwidths_kbps[-1]\n"
        "codes = codec.stream_encoder(kbps).push(np.zeros(80, np.float32))\n"
        "print(codec.stream_decoder(kbps).push(codes).shape)\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "(80,)"
