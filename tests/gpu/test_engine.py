"""The engine on a GPU: graphs change nothing, slots are independent, codes are float32's."""

from __future__ import annotations

import gc
import weakref
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from benches.workload import noise, random_24khz
from encodec_rt.streaming.backends.triton import triton_ops
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.weights import CodecWeights, pack
from tests.support.contract import assert_codes_agree, offline_codes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HOP = 320


@cache
def codec() -> Codec:
    return Codec(random_24khz(), device="cuda", backend="triton")


@cache
def packed_for_few() -> CodecWeights:
    ops = triton_ops(torch.device("cuda"), few=True, chained=True)
    return pack(random_24khz(), ops, torch.device("cuda"))


def engine(slots: int, *, graph: bool, few: bool = False) -> Engine:
    """``few``: tiles for few slots, the search in tables, and launches that are chained."""
    if few:
        return Engine(packed_for_few(), slots, 6.0, start="zero", graph=graph)
    return codec().engine(slots, 6.0, start="zero", graph=graph)


def ticks(engine: Engine, audio: Tensor, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes [ticks, S, Q] and audio [ticks, S, hop] of [S, n] audio, on its device."""
    codes, heard = [], []
    for frame in audio.split(HOP, dim=1):
        codes.append(engine.encode(frame.contiguous(), active).clone())
        heard.append(engine.decode(codes[-1], active).clone())
    return torch.stack(codes), torch.stack(heard)


def states(engine: Engine) -> tuple[Tensor, ...]:
    return tuple(part for slot in range(engine.slots) for part in engine.state_of(slot))


def assert_equal(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> None:
    for first, second in zip(one, other, strict=True):
        assert torch.equal(first.cpu(), second.cpu())


def test_engine_holds_a_tick_in_one_graph() -> None:
    graphs = engine(2, graph=True).describe().graphs
    assert graphs == {"encode": "one CUDA graph", "decode": "one CUDA graph"}


@pytest.mark.parametrize(
    ("slots", "few"), [(1, False), (5, False), (64, False), (1, True), (5, True)]
)
def test_graph_replay_equals_eager_bitwise(slots: int, few: bool) -> None:
    audio = noise(slots, 6 * HOP).cuda()
    graphed, eager = (engine(slots, graph=graph, few=few) for graph in (True, False))
    assert_equal(ticks(graphed, audio), ticks(eager, audio))
    assert_equal(states(graphed), states(eager))


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("slots", [1, 3, 65])
def test_input_on_the_host_gives_the_same_bits_on_the_host(slots: int, few: bool) -> None:
    audio = noise(slots, 6 * HOP)
    for graph in (True, False):
        on_host = ticks(engine(slots, graph=graph, few=few), audio)
        assert on_host[0].device.type == "cpu"
        assert_equal(on_host, ticks(engine(slots, graph=graph, few=few), audio.cuda()))


def test_a_mask_from_the_host_moves_the_slots_that_it_moves_from_the_device() -> None:
    audio = noise(5, 4 * HOP)
    active = torch.tensor([True, False, True, True, False])
    for graph in (True, False):
        on_host, on_device = engine(5, graph=graph), engine(5, graph=graph)
        for mask in (active, None, ~active):
            given = ticks(on_host, audio, mask), ticks(on_device, audio.cuda(), mask)
            moved = slice(None) if mask is None else mask
            for host, device in zip(*given, strict=True):
                assert torch.equal(host[:, moved], device.cpu()[:, moved])
        assert_equal(states(on_host), states(on_device))


def test_a_result_may_be_read_while_the_next_input_is_given() -> None:
    one, other = engine(3, graph=True), engine(3, graph=True)
    audio = noise(3, 40 * HOP)
    wanted = ticks(one, audio)[0]
    codes = []
    for frame in audio.split(HOP, dim=1):
        given = frame.contiguous()
        codes.append(other.encode(given).clone())
        # What was given may be overwritten as soon as the call is over.
        given.fill_(torch.nan)
    assert torch.equal(torch.stack(codes), wanted)


def test_slot_zero_has_the_same_bits_among_any_number() -> None:
    audio = noise(1024, 6 * HOP)
    alone = ticks(engine(1, graph=True), audio[:1])
    for slots in (64, 1024):
        together = ticks(engine(slots, graph=True), audio[:slots])
        assert_equal((together[0][:, :1], together[1][:, :1]), alone)


def test_idle_slots_are_untouched_bitwise() -> None:
    one = engine(4, graph=True)
    ticks(one, noise(4, 2 * HOP))
    before = [one.state_of(slot) for slot in range(4)]
    garbage = noise(4, 3 * HOP)
    garbage[1::2] = torch.nan
    ticks(one, garbage.cuda(), torch.tensor([True, False, True, False]))
    for slot in (1, 3):
        assert_equal(one.state_of(slot), before[slot])
    for slot in (0, 2):
        assert not torch.equal(one.state_of(slot)[0], before[slot][0])


@pytest.mark.parametrize("few", [False, True])
def test_a_hundred_repeats_have_the_same_bits(few: bool) -> None:
    audio = noise(3, 2 * HOP).cuda()
    one = engine(3, graph=True, few=few)
    reference = ticks(one, audio)
    for _ in range(100):
        one.reset(range(3))
        assert_equal(ticks(one, audio), reference)


def test_codes_are_bitwise_the_same_however_pushed() -> None:
    audio = noise(5 * HOP).numpy()
    wanted = codec().stream_encoder(6.0, graph=False).push(audio)
    for size in (1000, 77, 320):
        encoder = codec().stream_encoder(6.0, graph=True)
        parts = [encoder.push(audio[at : at + size]) for at in range(0, len(audio), size)]
        assert np.array_equal(np.concatenate(parts), wanted)


def test_a_stream_has_the_bits_of_an_engine_s_slot() -> None:
    audio = noise(1, 5 * HOP)
    codes, heard = ticks(engine(1, graph=True), audio)
    for graph in (True, False):
        encoder = codec().stream_encoder(6.0, start="zero", graph=graph)
        decoder = codec().stream_decoder(6.0, start="zero", graph=graph)
        given = encoder.push(audio[0])
        assert np.array_equal(given, codes[:, 0].numpy())
        assert np.array_equal(decoder.push(given), heard[:, 0].flatten().numpy())


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
def test_a_dropped_stream_frees_its_memory_at_once(direction: str) -> None:
    make = codec().stream_encoder if direction == "encoder" else codec().stream_decoder
    make(6.0, start="zero", graph=True)
    gc.collect()
    gc.disable()
    try:
        before = torch.cuda.memory_allocated()
        one = make(6.0, start="zero", graph=True)
        dropped = weakref.ref(one)
        assert torch.cuda.memory_allocated() > before
        del one
        assert dropped() is None
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() == before
    finally:
        gc.enable()


def test_a_dropped_engine_frees_its_memory_at_once() -> None:
    gc.collect()
    gc.disable()
    try:
        before = torch.cuda.memory_allocated()
        one = engine(64, graph=True)
        tick = weakref.ref(one.ticks["encode"])
        assert torch.cuda.memory_allocated() > before
        del one
        assert tick() is None
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() == before
    finally:
        gc.enable()


def test_an_engine_that_is_dropped_while_others_are_made_spoils_no_capture() -> None:
    audio = noise(2, 3 * HOP)
    wanted = ticks(engine(2, graph=True), audio)
    ring: list[object] = []
    for _ in range(5):
        # In a cycle of its own, so that only the collector can free it, at a time of its choosing.
        ring = [engine(2, graph=True), ring[-1:]]
        ring.append(ring)
        assert_equal(ticks(engine(2, graph=True), audio), wanted)


@pytest.mark.parametrize("few", [False, True])
def test_codes_are_those_of_the_offline_model(few: bool) -> None:
    model, audio = random_24khz(), noise(2, 60 * HOP)
    model.config.target_bandwidths = model.config.target_bandwidths[:3]
    codes, _ = ticks(engine(2, graph=True, few=few), audio)
    for slot in range(2):
        given = codes[:, slot].numpy().astype(np.uint16)
        whole = audio[slot : slot + 1]
        assert_codes_agree(model, whole, given, offline_codes(model, whole))
