"""A stream is a value: it is copied, saved and restored as one, and a push happens whole."""

from __future__ import annotations

import copy
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from encodec_rt.errors import StateError
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.streams import StreamDecoder, StreamEncoder
from tests.support.contract import offline_audio, offline_codes
from tests.support.models import random_model, speech, tiny_config

BACKENDS = ("torch", "cpu")


@pytest.fixture(scope="module", params=BACKENDS)
def codec(request: pytest.FixtureRequest) -> Codec:
    return Codec(random_model(tiny_config(pad_mode="reflect")), backend=request.param)


def kbps(codec: Codec) -> float:
    return codec.config.target_bandwidths[-1]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("start", ["primed", "exact"])
def test_a_copied_stream_is_independent_and_goes_on_alike(
    codec: Codec, duplicate: Callable[[Any], Any], start: Any
) -> None:
    audio = speech(400)
    encoder, decoder = (
        codec.stream_encoder(kbps(codec), start=start),
        codec.stream_decoder(kbps(codec), start=start),
    )
    decoder.push(encoder.push(audio[:203]))
    other_encoder, other_decoder = duplicate(encoder), duplicate(decoder)
    # The original goes another way first: nothing of it may show in the copy.
    before = encoder.snapshot(), decoder.snapshot()
    decoder.push(encoder.push(-audio[200:]))
    encoder.restore(before[0])
    decoder.restore(before[1])
    codes = encoder.push(audio[203:])
    assert np.array_equal(other_encoder.push(audio[203:]), codes)
    assert np.array_equal(other_decoder.push(codes), decoder.push(codes))


def test_a_copied_engine_is_independent_and_goes_on_alike(codec: Codec) -> None:
    hop = codec.config.hop_length
    engine = codec.engine(2, kbps(codec))
    frames = speech(2, 4 * hop).split(hop, dim=1)
    for frame in frames:
        engine.decode(engine.encode(frame.contiguous()))
    other = copy.deepcopy(engine)
    frame = frames[0].contiguous()
    codes = engine.encode(frame).clone()
    audio = engine.decode(codes).clone()
    assert torch.equal(other.encode(frame), codes)
    assert torch.equal(other.decode(codes), audio)


def test_streams_and_engines_are_not_pickled_but_snapshots_are(codec: Codec) -> None:
    audio = speech(300)
    encoder = codec.stream_encoder(kbps(codec))
    encoder.push(audio[:100])
    for held in (encoder, codec.stream_decoder(kbps(codec)), codec.engine(1, kbps(codec))):
        with pytest.raises(StateError, match="cannot be pickled"):
            pickle.dumps(held)
    travelled = pickle.loads(pickle.dumps(encoder.snapshot()))
    wanted = encoder.push(audio[100:])
    other = codec.stream_encoder(kbps(codec))
    other.restore(travelled)
    assert np.array_equal(other.push(audio[100:]), wanted)


def test_a_pickled_codec_gives_the_same_codes_and_takes_the_same_snapshots(codec: Codec) -> None:
    data = pickle.dumps(codec)
    weights = sum(tensor.nbytes for tensor in codec.model.state_dict().values())
    assert len(data) < 1.5 * weights + 100_000, "the weights travel once"
    other: Codec = pickle.loads(data)
    assert other.weights_sha256 == codec.weights_sha256
    assert other.ops.name == codec.ops.name
    audio = speech(200)
    encoder = codec.stream_encoder(kbps(codec))
    encoder.push(audio[:100])
    there = other.stream_encoder(kbps(codec))
    there.restore(encoder.snapshot())
    assert np.array_equal(there.push(audio[100:]), encoder.push(audio[100:]))


def test_a_snapshot_of_another_kind_of_stream_is_refused_by_name(codec: Codec) -> None:
    low, high = codec.config.target_bandwidths[0], kbps(codec)
    encoder = codec.stream_encoder(high)
    for given, named in (
        (codec.stream_encoder(low), "codebooks"),
        (codec.stream_encoder(high, start="zero"), "start='zero'"),
        (codec.stream_decoder(high), "the decoder"),
        (
            Codec(random_model(tiny_config(pad_mode="reflect"), seed=9)).stream_encoder(high),
            "model",
        ),
    ):
        before = encoder.snapshot()
        with pytest.raises(StateError, match=named):
            encoder.restore(given.snapshot())
        assert torch.equal(encoder.snapshot().row, before.row)


class Interrupting:
    """Interrupts the n-th call of a step, before or after it has moved the state."""

    def __init__(self, step: Any, at: int, *, after: bool) -> None:
        self._step, self._left, self._after = step, at, after
        self.eager_because = step.eager_because

    def __call__(self, x: torch.Tensor, active: torch.Tensor | None) -> torch.Tensor:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise KeyboardInterrupt
        y: torch.Tensor = self._step(x, active)
        if self._left == 0:
            raise KeyboardInterrupt
        return y


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("start", ["primed", "exact"])
def test_an_interrupted_push_leaves_the_stream_as_before(
    codec: Codec, start: Any, after: bool
) -> None:
    audio = speech(400)
    encoder, same = (codec.stream_encoder(kbps(codec), start=start) for _ in range(2))
    decoder, same_decoder = (codec.stream_decoder(kbps(codec), start=start) for _ in range(2))
    pairs: list[tuple[StreamEncoder | StreamDecoder, Any]] = [(encoder, audio[50:])]
    same.push(audio[:50])
    encoder.push(audio[:50])
    codes = same.push(audio[50:])
    pairs.append((decoder, codes))
    for stream, pushed in pairs:
        step = stream._step
        stream._step = Interrupting(step, 3, after=after)  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            stream.push(pushed)
        stream._step = step
    assert np.array_equal(encoder.push(audio[50:]), codes)
    assert np.array_equal(decoder.push(codes), same_decoder.push(codes))


def test_a_signal_in_the_middle_of_a_push_loses_nothing() -> None:
    """A handler that raises comes at any instruction; whatever it hits, the stream goes on."""
    codec = Codec(random_model(tiny_config()))
    audio = speech(8 * 400)
    wanted = codec.stream_encoder(kbps(codec)).push(audio)

    class Alarm(Exception):
        pass

    def raise_alarm(number: int, frame: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, raise_alarm)
    hits = 0
    try:
        for delay_ms in range(1, 16):
            encoder = codec.stream_encoder(kbps(codec))
            try:
                signal.setitimer(signal.ITIMER_REAL, delay_ms / 1000)
                given = encoder.push(audio)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                hits += 1
                given = encoder.push(audio)
            assert np.array_equal(given, wanted)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hits, "no alarm came in the middle of a push"


def test_a_stream_closes_with_its_context_and_says_what_it_is(codec: Codec) -> None:
    with codec.stream_encoder(kbps(codec)) as encoder:
        encoder.push(speech(80))
        assert "10 frames out, open" in repr(encoder)
    assert "closed" in repr(encoder)
    with pytest.raises(StateError, match="flushed"):
        encoder.push([0.0])
    assert "slots" in repr(codec.engine(1, kbps(codec)))
    assert codec.ops.name in repr(codec)


@pytest.mark.parametrize("length", [1, 9, 300, 5000])
def test_a_whole_clip_is_coded_as_the_offline_model_codes_it(codec: Codec, length: int) -> None:
    audio = speech(1, length)
    codes = codec.encode(audio[0], kbps(codec))
    assert np.array_equal(codes, offline_codes(codec.model, audio))
    heard = codec.decode(codes, samples=length)
    assert heard.shape == (length,)
    wanted = offline_audio(codec.model, codes)[0, :length]
    assert np.abs(heard - wanted).max() < 1e-4 * max(1.0, float(np.abs(wanted).max()))


def test_a_codec_leaves_the_caller_s_model_as_it_is() -> None:
    model = random_model(tiny_config(chunk_length_s=0.1, overlap=0.01)).double()
    Codec(model)
    assert model.dtype == torch.float64


def test_settings_of_the_host_program_change_nothing() -> None:
    program = """
import numpy as np, torch
from encodec_rt.streaming.codec import Codec
from tests.support.models import random_model, speech, tiny_config
model, audio = random_model(tiny_config()), speech(800).numpy()
def heard(backend):
    codec = Codec(model, backend=backend)
    with codec.stream_encoder(codec.config.target_bandwidths[-1]) as encoder:
        codes = np.concatenate([encoder.push(audio), encoder.flush()])
    decoder = codec.stream_decoder(codec.config.target_bandwidths[-1])
    engine = codec.engine(2, codec.config.target_bandwidths[-1])
    frame = torch.from_numpy(np.stack([audio[:8], audio[8:16]]))
    return codes, decoder.push(codes), engine.decode(engine.encode(frame)).numpy().copy()
for backend in ("torch", "cpu"):
    wanted = heard(backend)
    torch.set_default_dtype(torch.float64)
    settings = [heard(backend)]
    torch.set_default_dtype(torch.float32)
    torch.set_default_device("meta")
    settings.append(heard(backend))
    torch.set_default_device("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        settings.append(heard(backend))
    for given in settings:
        for one, other in zip(wanted, given, strict=True):
            assert one.dtype == other.dtype and np.array_equal(one, other)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
