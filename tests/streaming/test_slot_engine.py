"""Slots stepped by name: what they give, whom an error concerns, and how they travel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from encodec_rt.errors import ConfigError, InputError, PacketError, StateError
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.slot_snapshot import SlotSnapshot
from encodec_rt.streaming.slot_steps import batch_sizes
from tests.support.models import random_model, speech, tiny_config

BACKENDS = ("torch", "cpu")
CLIP = Path(__file__).parents[2] / "encodec_rt" / "assets" / "speech_en.flac"


@pytest.fixture(scope="module", params=BACKENDS)
def codec(request: pytest.FixtureRequest) -> Codec:
    return Codec(random_model(tiny_config()), backend=request.param)


@pytest.fixture(params=[False, True], ids=["masked", "gathered"])
def engine(codec: Codec, request: pytest.FixtureRequest) -> Engine:
    return codec.engine(5, kbps(codec), gather=request.param)


def kbps(codec: Codec) -> float:
    return codec.config.target_bandwidths[-1]


def states(engine: Engine) -> list[tuple[Tensor, Tensor]]:
    return [engine.state_of(slot) for slot in range(engine.slots)]


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_sizes_of_batches_never_waste_more_than_a_third() -> None:
    assert batch_sizes(16) == [1, 2, 3, 4, 6, 8, 12, 16]
    assert batch_sizes(1) == [1]
    assert batch_sizes(10) == [1, 2, 3, 4, 6, 8, 10]
    for count in range(1, 200):
        size = next(size for size in batch_sizes(200) if size >= count)
        assert size <= 1.5 * count


def test_codes_are_the_same_in_a_batch_of_any_size() -> None:
    """Speech of the embedded model, with other slots coming and going around it."""
    codec = Codec.load("default")
    hop, frames = codec.config.hop_length, 250
    clip = soundfile.read(str(CLIP), dtype="float32")[0][: frames * hop]
    wanted = codec.stream_encoder(6.0).push(clip)
    engine = codec.engine(9, 6.0, gather=True)
    random = np.random.default_rng(0)
    sizes, given = set(), []
    for frame in torch.from_numpy(clip).split(hop):
        count = int(random.integers(9))
        slots = [4, *random.permutation([0, 1, 2, 3, 5, 6, 7, 8])[:count].tolist()]
        random.shuffle(slots)
        pcm = torch.from_numpy(random.normal(0, 0.1, (len(slots), hop)).astype(np.float32))
        pcm[slots.index(4)] = frame
        codes = engine.encode_slots(slots, pcm).rows
        given.append(codes[slots.index(4), 0].numpy().copy())
        engine.decode_slots(slots, engine.dequantize(codes).rows)
        sizes.add(len(slots))
    assert sizes == set(range(1, 10))
    assert np.array_equal(np.stack(given), wanted)


def test_named_slots_move_as_streams_do_and_no_other_does(codec: Codec, engine: Engine) -> None:
    hop, audio = codec.config.hop_length, speech(1, 400)[0]
    encoder, decoder = codec.stream_encoder(kbps(codec)), codec.stream_decoder(kbps(codec))
    before = states(engine)
    for start, frames in ((0, 1), (hop, 3), (4 * hop, 2)):
        piece = audio[start : start + frames * hop]
        codes = engine.encode_slots([3, 1], torch.stack([torch.zeros_like(piece), piece])).rows
        wanted = encoder.push(piece)
        assert np.array_equal(codes[1].numpy(), wanted)
        latents = engine.dequantize(codes).rows
        heard = engine.decode_slots([3, 1], latents).rows[1]
        np.testing.assert_allclose(heard.numpy(), decoder.push(wanted), atol=1e-5)
    after = states(engine)
    assert [same(*each) for each in zip(before, after, strict=True)] == [
        True, False, True, False, True,
    ]  # fmt: skip


def test_lockstep_calls_of_a_gathering_engine_give_what_others_give(codec: Codec) -> None:
    hop, audio = codec.config.hop_length, speech(4, 40)
    plain, gathered = (codec.engine(4, kbps(codec), gather=each) for each in (False, True))
    masks = [None, torch.tensor([True, False, True, False]), torch.zeros(4, dtype=torch.bool)]
    for frame, mask in zip(audio.split(hop, dim=1), [*masks, *masks], strict=False):
        rows = torch.ones(4, dtype=torch.bool) if mask is None else mask
        codes = plain.encode(frame.contiguous(), mask).clone()
        assert torch.equal(gathered.encode(frame.contiguous(), mask)[rows], codes[rows])
        heard = gathered.decode(codes, mask)[rows]
        torch.testing.assert_close(heard, plain.decode(codes, mask)[rows], rtol=0, atol=1e-5)
    for one, other in zip(states(plain), states(gathered), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_slot_that_is_given_garbage_is_refused_alone(codec: Codec, engine: Engine) -> None:
    hop, width = codec.config.hop_length, codec.config.hidden_size
    pcm = speech(3, hop)
    pcm[1, 3] = torch.nan
    before = states(engine)
    stepped = engine.encode_slots([0, 2, 4], pcm)
    assert set(stepped.refused) == {2}
    assert isinstance(stepped.refused[2], InputError)
    assert same(engine.state_of(2), before[2])
    assert not same(engine.state_of(0), before[0])
    alone = codec.stream_encoder(kbps(codec)).push(pcm[2])
    assert np.array_equal(stepped.rows[2].numpy(), alone)
    codes = stepped.rows.clone()
    codes[1, 0, 0] = codec.config.codebook_size
    latents = engine.dequantize(codes)
    assert set(latents.refused) == {1}
    bad = torch.zeros(2, 1, width)
    bad[0, 0, 0] = torch.inf
    assert set(engine.decode_slots([3, 0], bad).refused) == {3}
    assert set(engine.decode_slots([3], bad[:1]).refused) == {3}
    assert same(engine.state_of(3), before[3])


def test_what_no_slot_could_take_is_refused(codec: Codec, engine: Engine) -> None:
    hop = codec.config.hop_length
    for slots in ([], [0, 0], [5], [-1]):
        with pytest.raises(InputError, match="distinct"):
            engine.encode_slots(slots, torch.zeros(len(slots), hop))
    with pytest.raises(InputError, match="whole frames"):
        engine.encode_slots([0], torch.zeros(1, hop + 1))
    with pytest.raises(InputError, match="latents"):
        engine.decode_slots([0], torch.zeros(1, 3))
    with pytest.raises(ConfigError, match="for a slot"):
        codec.engine(1, codec.config.target_bandwidths[0]).reset([0], kbps(codec))


def test_a_slot_has_a_bandwidth_of_its_own_from_its_start(codec: Codec, engine: Engine) -> None:
    low = codec.config.target_bandwidths[0]
    engine.reset([2], low)
    books = engine.codebooks_of(2)
    assert books < engine.codebooks == engine.codebooks_of(1)
    encoder, decoder = codec.stream_encoder(low), codec.stream_decoder(low)
    for piece in speech(2, 64).split(codec.config.hop_length, dim=1):
        codes = engine.encode_slots([2, 1], piece.contiguous()).rows.clone()
        assert np.array_equal(codes[0, :, :books].numpy(), encoder.push(piece[0]))
        assert (codes[0, :, books:] == -1).all()
        heard = engine.decode_slots([2, 1], engine.dequantize(codes).rows).rows[0]
        wanted = decoder.push(codes[0, :, :books])
        np.testing.assert_allclose(heard.numpy(), wanted, atol=1e-5)
    engine.reset(2)
    assert engine.codebooks_of(2) == engine.codebooks


def test_a_slot_goes_on_in_another_engine_with_the_same_codes(codec: Codec, engine: Engine) -> None:
    hop, low = codec.config.hop_length, codec.config.target_bandwidths[0]
    audio = speech(1, 40 * hop)
    wanted = codec.stream_encoder(low).push(audio[0])
    engine.reset([1], low)
    given = [
        engine.encode_slots([1], piece).rows[0].clone()
        for piece in audio[:, : 20 * hop].split(hop, 1)
    ]
    data = engine.snapshot(1).to_bytes()
    other = codec.engine(3, kbps(codec), gather=not engine.gather)
    other.restore(2, SlotSnapshot.from_bytes(data))
    assert other.codebooks_of(2) == engine.codebooks_of(1)
    given += [
        other.encode_slots([2], piece).rows[0].clone()
        for piece in audio[:, 20 * hop :].split(hop, 1)
    ]
    assert np.array_equal(torch.cat(given)[:, : wanted.shape[1]].numpy(), wanted)


def test_a_slot_goes_on_in_another_process_with_the_same_codes(tmp_path: Path) -> None:
    codec = Codec.load("default")
    hop = codec.config.hop_length
    clip = soundfile.read(str(CLIP), dtype="float32")[0][: 100 * hop]
    engine = codec.engine(2, 6.0, gather=True)
    engine.encode_slots([1], torch.from_numpy(clip[: 50 * hop])[None])
    (tmp_path / "slot").write_bytes(engine.snapshot(1).to_bytes())
    np.save(tmp_path / "rest.npy", clip[50 * hop :])
    code = (
        "import sys, numpy as np, torch; from pathlib import Path\n"
        "from encodec_rt import Codec\n"
        "from encodec_rt.streaming.slot_snapshot import SlotSnapshot\n"
        "folder = Path(sys.argv[1]); torch.set_num_threads(1)\n"
        "engine = Codec.load('default').engine(4, 6.0)\n"
        "engine.restore(0, SlotSnapshot.from_bytes((folder / 'slot').read_bytes()))\n"
        "rest = torch.from_numpy(np.load(folder / 'rest.npy'))[None]\n"
        "np.save(folder / 'codes.npy', engine.encode_slots([0], rest).rows[0].numpy())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    wanted = codec.stream_encoder(6.0).push(clip)[50:]
    assert np.array_equal(np.load(tmp_path / "codes.npy"), wanted)


def test_a_snapshot_fits_only_what_it_was_taken_from(codec: Codec, engine: Engine) -> None:
    snapshot = engine.snapshot(0)
    other = Codec(random_model(tiny_config(), seed=5), backend=codec.ops.name)
    with pytest.raises(StateError, match="weights"):
        other.engine(1, kbps(codec)).restore(0, snapshot)
    with pytest.raises(StateError, match="start primed where this has zero"):
        codec.engine(1, kbps(codec), start="zero").restore(0, snapshot)
    with pytest.raises(StateError, match="codebooks"):
        codec.engine(1, codec.config.target_bandwidths[0]).restore(0, snapshot)
    with pytest.raises(InputError, match="state"):
        engine.load_state(0, (torch.zeros(7), None))


def test_bytes_that_are_not_a_snapshot_are_refused(engine: Engine) -> None:
    data = engine.snapshot(0).to_bytes()
    random = np.random.default_rng(0)
    damaged = [b"", b"{}", data[:-1], data[:40], data + b"\0", b"[" * 100_000]
    damaged += [len(b"[" * 9000).to_bytes(8, "little") + b"[" * 9000]
    damaged += [data.replace(b'\\"version\\": 1', b'\\"version\\": 2')]
    nan = engine.snapshot(0)
    nan.encoder.numpy()[0] = np.nan
    damaged.append(nan.to_bytes())
    for each in damaged:
        with pytest.raises(PacketError):
            SlotSnapshot.from_bytes(each)
    for _ in range(300):
        flipped = bytearray(data)
        flipped[random.integers(400)] ^= 1 << int(random.integers(8))
        try:
            engine.restore(0, SlotSnapshot.from_bytes(bytes(flipped)))
        except (PacketError, StateError, InputError):
            continue


def test_an_exact_stream_is_begun_and_finished_apart_from_the_ticks(codec: Codec) -> None:
    hop = codec.config.hop_length
    audio = speech(1, 30 * hop + 3)[0]
    engine = codec.engine(3, kbps(codec), start="exact", gather=True)
    wanted = codec.encode(audio, kbps(codec))
    head, tail = codec.packed.encoder_start_frames * hop, 30 * hop
    before = states(engine)
    codes, row = engine.edges.begin_encoder(audio[:head])
    assert all(same(*each) for each in zip(before, states(engine), strict=True))
    engine.load_state(1, (row, None))
    middle = engine.encode_slots([1], audio[None, head:tail]).rows[0].clone()
    end = engine.edges.finish_encoder(engine.state_of(1)[0], audio[tail:])
    whole = torch.cat([codes, middle, end])
    assert np.array_equal(whole.numpy(), wanted)
    short = engine.edges.finish_encoder(None, audio[: hop + 1])
    assert np.array_equal(short.numpy(), codec.encode(audio[: hop + 1], kbps(codec)))
    first = codec.packed.decoder_start_frames
    heard, row = engine.edges.begin_decoder(whole[:first])
    engine.load_state(1, (None, row))
    more = engine.decode_slots([1], engine.dequantize(whole[None, first:]).rows).rows[0].clone()
    last = engine.edges.finish_decoder(engine.state_of(1)[1], whole[:0])
    given = torch.cat([heard, more, last])[: len(audio)]
    np.testing.assert_allclose(given.numpy(), codec.decode(wanted, len(audio)), atol=1e-5)


def test_prewarming_moves_no_slot_and_leaves_nothing_to_be_made(
    codec: Codec, engine: Engine
) -> None:
    engine.encode_slots([1], speech(1, codec.config.hop_length))
    before = states(engine)
    engine.prewarm((1, 2))
    assert all(same(*each) for each in zip(before, states(engine), strict=True))
    made = [set(steps._made) for steps in engine._steps.values()]  # type: ignore[attr-defined]
    for count in range(1, 6):
        codes = engine.encode_slots(range(count), torch.zeros(count, 2 * codec.config.hop_length))
        engine.decode_slots(range(count), engine.dequantize(codes.rows).rows)
    assert made == [set(steps._made) for steps in engine._steps.values()]  # type: ignore[attr-defined]


def test_a_copied_gathering_engine_goes_on_alike(codec: Codec, engine: Engine) -> None:
    low = codec.config.target_bandwidths[0]
    engine.reset([2], low)
    piece = speech(1, codec.config.hop_length)
    engine.encode_slots([2], piece)
    other = engine.__deepcopy__({})
    assert other.codebooks_of(2) == engine.codebooks_of(2)
    given = engine.encode_slots([2], piece).rows.clone()
    assert torch.equal(other.encode_slots([2], piece).rows, given)
