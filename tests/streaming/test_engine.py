"""An engine's slots have their own bandwidth, losses, starts and ends."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from encodec_rt.errors import ConfigError, InputError
from encodec_rt.netsim.impairment import Channel, PathProfile
from encodec_rt.netsim.simulate import simulate
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.frames import SlotDecoder, SlotEncoder
from encodec_rt.voice.bitrate import RateController
from encodec_rt.voice.conceal import Concealer
from encodec_rt.voice.receiver import Receiver
from tests.support.contract import offline_audio, offline_codes
from tests.support.models import random_model, speech, tiny_config

BACKENDS = ("torch", "cpu")


@pytest.fixture(scope="module", params=BACKENDS)
def codec(request: pytest.FixtureRequest) -> Codec:
    return Codec(random_model(tiny_config()), backend=request.param)


@pytest.fixture(scope="module")
def plain() -> Codec:
    return Codec(random_model(tiny_config()))


def kbps(codec: Codec) -> float:
    return codec.config.target_bandwidths[-1]


def random_codes(codec: Codec, *shape: int) -> Tensor:
    return torch.randint(codec.config.codebook_size, (*shape, codec.config.num_quantizers))


@pytest.mark.parametrize("backend", [*BACKENDS, "triton"])
def test_an_absent_codebook_adds_nothing_in_any_slot(plain: Codec, backend: str) -> None:
    codec = Codec(plain.model, backend=backend)
    ops, packed = codec.ops, codec.packed.codebooks
    codes = random_codes(codec, 3, 2)
    codes[1, 0, 2:] = -1
    codes[2, 1, :] = -1
    latents = ops.rvq_decode(codes, packed)
    assert torch.equal(latents[1, 0], ops.rvq_decode(codes[1:2, :1, :2].contiguous(), packed)[0, 0])
    assert not latents[2, 1].any()
    assert torch.equal(latents[0], ops.rvq_decode(codes[:1], packed)[0])


def test_every_slot_is_decoded_at_a_bandwidth_of_its_own(codec: Codec) -> None:
    engine, low, high = (codec.engine(2, kbps(codec)) for _ in range(3))
    for frame in random_codes(codec, 5, 2):
        mixed = frame.clone()
        mixed[0, 1:] = -1
        given = engine.decode(mixed).clone()
        assert torch.equal(given[0], low.decode(frame[:, :1].contiguous())[0])
        assert torch.equal(given[1], high.decode(frame)[1])


def test_latents_in_place_of_codes_give_the_same_audio(codec: Codec) -> None:
    engine, other = codec.engine(2, kbps(codec)), codec.engine(2, kbps(codec))
    for frame in random_codes(codec, 4, 2):
        latents = codec.ops.rvq_decode(frame[:, None], codec.packed.codebooks)
        assert torch.equal(engine.decode_latents(latents), other.decode(frame))


def test_several_frames_per_tick_give_the_codes_and_audio_of_one(codec: Codec) -> None:
    hop = codec.config.hop_length
    block, single = codec.engine(2, kbps(codec), frames=3), codec.engine(2, kbps(codec))
    for piece in speech(2, 9 * hop).split(3 * hop, dim=1):
        codes = block.encode(piece.contiguous()).clone()
        one_by_one = [single.encode(frame.contiguous()).clone() for frame in piece.split(hop, 1)]
        assert torch.equal(codes, torch.stack(one_by_one, dim=1))
        audio = block.decode(codes).clone()
        heard = [single.decode(frame.contiguous()).clone() for frame in codes.unbind(1)]
        torch.testing.assert_close(audio, torch.cat(heard, dim=1), rtol=0, atol=1e-5)


def test_clips_of_different_lengths_in_one_engine_get_each_its_own_codes(plain: Codec) -> None:
    """A batch without padding: each clip is begun, stepped while it lasts, and finished."""
    hop = plain.config.hop_length
    clips = [speech(1, length, seed=length) for length in (5, 83, 240, 241, 40)]
    engine = plain.engine(len(clips), kbps(plain), start="exact", frames=4)
    block, head = 4 * hop, plain.packed.encoder_start_frames * hop
    codes: list[list[Tensor]] = [[] for _ in clips]
    at = [0] * len(clips)
    for slot, clip in enumerate(clips):
        if clip.shape[1] >= head:
            codes[slot].append(engine.begin_encoder(slot, clip[0, :head]))
            at[slot] = head
    while any(at[slot] and clip.shape[1] - at[slot] >= block for slot, clip in enumerate(clips)):
        batch = torch.zeros(len(clips), block)
        active = torch.zeros(len(clips), dtype=torch.bool)
        for slot, clip in enumerate(clips):
            if at[slot] and clip.shape[1] - at[slot] >= block:
                batch[slot], active[slot] = clip[0, at[slot] : at[slot] + block], True
        for slot, rows in enumerate(engine.encode(batch, active).clone()):
            if active[slot]:
                codes[slot].append(rows)
                at[slot] += block
    for slot, clip in enumerate(clips):
        codes[slot].append(engine.finish_encoder(slot, clip[0, at[slot] :], begun=bool(at[slot])))
        joined = torch.cat(codes[slot]).numpy().astype(np.uint16)
        assert np.array_equal(joined, offline_codes(plain.model, clip))
        rest = torch.cat(codes[slot])
        begun = plain.packed.decoder_start_frames
        short = len(rest) < begun
        audio = [] if short else [engine.begin_decoder(slot, rest[:begun])]
        audio.append(engine.finish_decoder(slot, rest[0 if short else begun :], begun=not short))
        wanted = offline_audio(plain.model, joined)[0]
        heard = torch.cat(audio).numpy()
        assert np.abs(heard - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_a_receiver_hears_the_same_from_a_stream_and_from_a_slot(backend: str) -> None:
    config = tiny_config(sampling_rate=600, codebook_size=1024, target_bandwidths=(0.75, 3.0, 6.01))
    codec = Codec(random_model(config), backend=backend)
    codes = codec.stream_encoder(6.01).push(speech(400 * 8))
    profile = PathProfile(delay_ms=30, jitter_ms=15, loss=0.1, burst=2)
    engine = codec.engine(3, 6.01)
    heard = []
    for decoder in (codec.stream_decoder(6.01), SlotDecoder(engine, 1)):
        controller = RateController(codebooks=codes.shape[1], frame_rate_hz=75)
        heard.append(
            simulate(
                codes, Channel(profile, seed=3), Receiver(decoder), controller=controller
            ).audio
        )
    one, other = heard
    assert np.array_equal(one, other)


def test_a_concealer_in_two_halves_is_one_and_fits_an_engine_s_tick(codec: Codec) -> None:
    """What every slot wants to hear goes through one ``decode_latents``."""
    codes = codec.stream_encoder(kbps(codec)).push(speech(30 * 8))
    engine = codec.engine(2, kbps(codec))
    alone = [Concealer(codec.stream_decoder(kbps(codec))) for _ in range(2)]
    together = [Concealer(SlotDecoder(engine, slot)) for slot in range(2)]
    lost = ({5, 6, 7}, {6, 20})
    for index, frame in enumerate(codes):
        given = [None if index in gone else frame[None] for gone in lost]
        latents = torch.stack(
            [each.next_latent(one, index) for each, one in zip(together, given, strict=True)]
        )
        hops = engine.decode_latents(latents).clone()
        for slot in range(2):
            heard = together[slot].played(hops[slot].numpy())
            wanted = alone[slot].play(given[slot], index)
            np.testing.assert_allclose(heard, wanted, atol=1e-5)


def test_a_slot_s_encoder_is_a_stream_s(plain: Codec) -> None:
    engine = plain.engine(2, kbps(plain))
    slot, stream = SlotEncoder(engine, 1), plain.stream_encoder(kbps(plain))
    audio = speech(300)
    for piece in audio.split(37):
        assert np.array_equal(slot.push(piece), stream.push(piece))


def test_nothing_odd_is_taken(plain: Codec) -> None:
    engine = plain.engine(2, kbps(plain))
    width, size = plain.config.hidden_size, plain.config.codebook_size
    with pytest.raises(InputError, match="absent"):
        engine.decode(torch.full((2, 4), -2))
    with pytest.raises(InputError, match="absent"):
        engine.decode(torch.full((2, 4), size))
    with pytest.raises(InputError, match="latents"):
        engine.decode_latents(torch.zeros(2, width))
    with pytest.raises(InputError, match="NaN"):
        engine.decode_latents(torch.full((2, 1, width), torch.nan))
    with pytest.raises(InputError, match="this engine has 2"):
        SlotDecoder(engine, 2)
    with pytest.raises(ConfigError, match="at least one"):
        plain.engine(1, kbps(plain), frames=0)


def test_an_engine_and_a_stream_that_are_dropped_are_freed_at_once(plain: Codec) -> None:
    """By reference counts: a CUDA graph that waits for the collector can spoil a later capture."""
    gc.collect()
    gc.disable()
    try:
        makers: tuple[Callable[[], object], ...] = (
            lambda: plain.engine(2, kbps(plain)),
            lambda: plain.stream_encoder(kbps(plain)),
            lambda: plain.stream_decoder(kbps(plain)),
        )
        for make in makers:
            held = make()
            gone = weakref.ref(held)
            del held
            assert gone() is None
        engine = plain.engine(2, kbps(plain))
        watched: list[Callable[[], object]]
        watched = [weakref.ref(engine), *(weakref.ref(step) for step in engine.ticks.values())]
        del engine
        assert [each() for each in watched] == [None, None, None]
    finally:
        gc.enable()
