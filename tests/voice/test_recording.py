"""What a call says and hears, recorded as codes."""

from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path

import numpy as np
import pytest

from encodec_rt.bitstream.coding import RawCoder
from encodec_rt.bitstream.container_reader import CodeBlock, PacketReader, read_codes
from encodec_rt.container_audio import header_for
from encodec_rt.errors import InputError
from encodec_rt.link.endpoints import NullSink, SilentSource
from encodec_rt.live.recording import ContainerRecording
from encodec_rt.netsim.impairment import PathProfile
from encodec_rt.netsim.transport import SimulatedTransport
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio, Codes
from encodec_rt.voice import recording
from encodec_rt.voice.call import VoiceCall, VoiceOptions
from encodec_rt.voice.recording import HELD_FRAMES, CallRecording, StandIns
from tests.support.models import speech

SILENCE = np.array([7, 8, 9], np.uint16)
LEAST = np.array([1, 2, 3], np.uint16)
STAND_INS = StandIns(SILENCE, LEAST)


class Kept:
    """A recording in memory, which fails when it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.codes: list[Codes] = []
        self.finished = False
        self.error = error

    def write(self, codes: Codes) -> None:
        if self.error is not None:
            raise self.error
        self.codes.append(codes)

    def finish(self, samples: int | None = None) -> None:
        self.finished = True


def test_what_did_not_come_is_recorded_as_the_last_frame_and_then_as_silence() -> None:
    kept = Kept()
    call = CallRecording(STAND_INS, heard=kept)
    call.hear(None)
    call.hear(np.array([[4, 5, 6]], np.uint16))
    for _ in range(HELD_FRAMES + 1):
        call.hear(None)
    call.hear(np.array([[4]], np.uint16))
    call.close()
    call.close()
    assert kept.finished
    wanted = [[7, 8, 9], *[[4, 5, 6]] * (1 + HELD_FRAMES), [7, 8, 9], [4, 2, 3]]
    assert np.concatenate(kept.codes).tolist() == wanted


def test_codebooks_that_did_not_come_hardly_change_the_sound(codec: Codec) -> None:
    kbps = codec.config.target_bandwidths[-1]
    stand_ins = StandIns.of(codec, kbps)
    codes = codec.stream_encoder(kbps).push(speech(codec.config.sampling_rate).numpy())
    first = codes[:, :1]
    decoder = codec.stream_decoder(kbps)
    few, whole = (decoder.dequantize(part).numpy() for part in (first, stand_ins.whole(first)))
    books = [stage.codebook.embed for stage in codec.model.quantizer.stages[1 : codes.shape[1]]]
    least = sum(float(book.norm(dim=1).min()) for book in books)
    assert np.linalg.norm(whole - few, axis=1).max() <= least * (1 + 1e-5)


def test_a_recording_that_fails_is_told_of_once_and_the_call_goes_on() -> None:
    told: list[str] = []
    broken, good = Kept(OSError(28, "No space left on device", "x.encodec")), Kept()
    call = CallRecording(STAND_INS, heard=broken, said=good, on_error=told.append)
    for _ in range(3):
        call.hear(None)
    call.close()
    assert isinstance(call.error, OSError)
    assert len(told) == 1
    assert "No space left" in told[0]
    assert broken.finished
    assert good.finished


def test_frames_that_wait_for_a_stuck_disk_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_WAITING", 10)
    stuck = threading.Event()

    class Slow(Kept):
        def write(self, codes: Codes) -> None:
            stuck.wait(60)
            super().write(codes)

    slow = Slow()
    call = CallRecording(STAND_INS, said=slow)
    for _ in range(100):
        call.say(SILENCE[None])
    assert isinstance(call.error, InputError)
    assert "too slow" in str(call.error)
    stuck.set()
    call.close()
    assert len(slow.codes) <= 1


class Microphone(SilentSource):
    """Gives the hops of a recording."""

    def __init__(self, codec: Codec, audio: Audio) -> None:
        super().__init__(codec.config)
        self._hops = list(audio.reshape(-1, 1, codec.config.hop_length))

    async def read(self) -> Audio | None:
        await super().read()
        return self._hops.pop(0) if self._hops else None


def test_a_call_leaves_the_codes_that_were_said_and_those_that_were_heard(
    codec: Codec, tmp_path: Path
) -> None:
    config = codec.config
    kbps = config.target_bandwidths[-1]
    said = speech(config.sampling_rate).numpy()
    options = VoiceOptions(bandwidth_kbps=kbps, hang_up_s=0.5, dtx=False)
    stand_ins = StandIns.of(codec, kbps)
    header = header_for(codec, config.codebooks_for(kbps), start="primed")

    def recorder(name: str) -> ContainerRecording:
        return ContainerRecording(tmp_path / name, header, RawCoder(config.codebook_size))

    async def main() -> None:
        ends = SimulatedTransport.pair(PathProfile(delay_ms=5), PathProfile(delay_ms=5))
        recordings = (
            CallRecording(stand_ins, said=recorder("said.encodec")),
            CallRecording(stand_ins, heard=recorder("heard.encodec")),
        )
        sources = Microphone(codec, said), SilentSource(config)
        calls = [
            VoiceCall(
                codec.stream_encoder(kbps),
                codec.stream_decoder(kbps),
                source,
                NullSink(config),
                end,
                options,
                recording=kept,
            )
            for source, end, kept in zip(sources, ends, recordings, strict=True)
        ]
        await asyncio.gather(*(call.run() for call in calls))

    asyncio.run(main())
    sent = codes_of(tmp_path / "said.encodec", codec)
    assert np.array_equal(sent, codec.stream_encoder(kbps).push(said))
    heard = {tuple(row) for row in codes_of(tmp_path / "heard.encodec", codec).tolist()}
    # Whatever the network and this machine's clock did: whole frames, coarse ones, or silence.
    came = [stand_ins.whole(sent[:, :books]) for books in range(1, sent.shape[1] + 1)]
    known = {tuple(row) for codes in came for row in codes.tolist()}
    assert heard & known
    assert heard <= known | {tuple(stand_ins.silence.tolist())}


def codes_of(path: Path, codec: Codec) -> Codes:
    reader = PacketReader(io.BytesIO(path.read_bytes()))
    coder = RawCoder(codec.config.codebook_size)
    blocks = list(read_codes(reader, reader.header, coder, salvage=False))
    assert reader.ended
    assert all(isinstance(block, CodeBlock) for block in blocks)
    return np.concatenate([block.codes for block in blocks if isinstance(block, CodeBlock)])
