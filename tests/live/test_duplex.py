from __future__ import annotations

import errno
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encodec_rt.atomic import WholeWrites
from encodec_rt.audio import AudioRecording
from encodec_rt.bitstream.ecdc import EcdcHeader, EcdcReader, read_header
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import AudioDeviceError, ConfigError
from encodec_rt.live.duplex import Duplex
from encodec_rt.live.loop import CodecLoop
from encodec_rt.live.recording import EcdcRecording
from encodec_rt.sound import portaudio
from encodec_rt.sound.streams import MAX_BACKLOG_S
from encodec_rt.sound.supervision import LOST_AFTER_S
from encodec_rt.streaming.codec import Codec
from encodec_rt.types import Audio, Codes
from tests.support.models import random_model, speech, tiny_config
from tests.support.tolerances import bound
from tests.support.virtual_audio import (
    MICROPHONE,
    SPEAKER,
    VirtualCard,
    VirtualSystem,
    device,
    install,
)

RATE = 24_000
HOP = 320


@pytest.fixture(scope="module")
def codec() -> Codec:
    config = tiny_config(
        sampling_rate=RATE, upsampling_ratios=(8, 5, 4, 2), pad_mode="constant", num_lstm_layers=1
    )
    return Codec(random_model(config))


def voice(seconds: int, seed: int = 0) -> NDArray[np.int16]:
    return (speech(1, int(seconds * RATE), seed=seed)[0].numpy() * 16_000).astype(np.int16)


class Session:
    """A duplex on a virtual card, with what it said."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        codec: Codec,
        card: VirtualCard,
        *,
        decode: bool = True,
        **options: Any,
    ) -> None:
        self.card = install(monkeypatch, card)
        self.told: list[str] = []
        self.captured: list[Audio] = []
        self.decoded: list[Audio] = []
        self.kbps = codec.config.target_bandwidths[-1]
        self.loop = CodecLoop(codec, self.kbps, decode=decode)
        self.duplex = Duplex(
            self.loop,
            VirtualSystem(card),
            on_event=self.told.append,
            replace_output=self._replace_output,
            **options,
        )

    def _replace_output(self, captured: Audio, heard: Audio) -> Audio:
        self.captured.append(captured)
        self.decoded.append(heard)
        return heard

    def run(
        self, seconds: float, events: Sequence[tuple[float, Callable[[], object]]] = ()
    ) -> Session:
        """Open and work for ``seconds``, doing each of ``events``, (time, call), at its time."""
        pending = sorted(events, key=lambda event: event[0])

        def stop() -> bool:
            while pending and self.card.time_s >= pending[0][0]:
                pending.pop(0)[1]()
            return self.card.time_s >= seconds

        self.duplex.open()
        self.duplex.run(stop)
        return self

    @property
    def counts(self) -> dict[str, int]:
        return self.duplex.status().counts

    def faults(self) -> dict[str, int]:
        return {name: count for name, count in self.counts.items() if count}

    def heard(self) -> Audio:
        return np.concatenate(self.decoded)


def read_wav(path: Path) -> NDArray[np.int16]:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def read_codes(path: Path, config: EncodecConfig) -> tuple[EcdcHeader, Codes]:
    with path.open("rb") as file:
        header = read_header(file)
        return header, np.concatenate([b.codes for b in EcdcReader(file, header, config)])


def low(sound: Audio | NDArray[np.float64]) -> NDArray[np.float64]:
    """The part below 1.5 kHz, where a fraction of a sample's delay matters little."""
    spectrum = np.fft.rfft(sound)
    spectrum[1500 * len(sound) // RATE :] = 0
    filtered: NDArray[np.float64] = np.fft.irfft(spectrum, len(sound))
    return filtered


def place(piece: Audio, sound: NDArray[np.int16]) -> int:
    """Where ``piece`` lies in ``sound``, every sample of it."""
    windows = np.lib.stride_tricks.sliding_window_view(sound, 50)
    starts = np.flatnonzero((windows == piece[:50]).all(axis=1))
    (found,) = [start for start in starts if np.array_equal(sound[start:][: len(piece)], piece)]
    return int(found)


def through(codec: Codec, audio: Audio, kbps: float) -> tuple[Codes, Audio]:
    """What a stream encoder and decoder of their own make of ``audio``."""
    encoder, decoder = codec.stream_encoder(kbps), codec.stream_decoder(kbps)
    codes = np.concatenate([encoder.push(audio), encoder.flush()])
    return codes, decoder.push(codes)[: len(audio)]


def test_what_the_speaker_plays_is_what_the_codec_makes_of_the_microphone(
    monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    sound = voice(2)
    session = Session(monkeypatch, codec, VirtualCard(sound=sound)).run(2.0)
    captured = np.concatenate(session.captured)
    assert np.array_equal(captured * 32768, sound[: len(captured)])
    _, wanted = through(codec, captured, session.kbps)
    heard = session.heard()
    assert np.array_equal(heard, wanted[: len(heard)])
    assert session.faults() == {}
    played = session.card.heard() / 32768
    begun = np.flatnonzero(played)[0]
    piece = low(heard[RATE // 4 :][:RATE])
    likeness = [
        np.corrcoef(low(played[begun + RATE // 4 + lag :][:RATE]), piece)[0, 1]
        for lag in range(-40, 40)
    ]
    assert max(likeness) > bound("played back", "correlation")


def test_recordings_hold_the_same_frames_as_the_session(
    monkeypatch: pytest.MonkeyPatch, codec: Codec, tmp_path: Path
) -> None:
    session = Session(monkeypatch, codec, VirtualCard(sound=voice(1)), keep_all=True)
    books = session.loop.codebooks
    session.loop.record(
        wav=AudioRecording(tmp_path / "out.wav", rate_hz=RATE),
        codes=EcdcRecording(tmp_path / "out.ecdc", codec.config, codec.name, books),
    )
    session.run(1.01)
    captured = np.concatenate(session.captured)
    codes, audio = through(codec, captured, session.kbps)
    header, saved = read_codes(tmp_path / "out.ecdc", codec.config)
    assert np.array_equal(saved, codes)
    assert header.samples == len(captured)
    assert np.array_equal(read_wav(tmp_path / "out.wav"), np.rint(audio * 32768).astype(np.int16))


def test_a_failure_amid_a_session_keeps_what_was_recorded(
    monkeypatch: pytest.MonkeyPatch, codec: Codec, tmp_path: Path
) -> None:
    session = Session(monkeypatch, codec, VirtualCard(sound=voice(1)), keep_all=True)
    session.loop.record(
        wav=AudioRecording(tmp_path / "out.wav", rate_hz=RATE),
        codes=EcdcRecording(
            tmp_path / "out.ecdc", codec.config, codec.name, session.loop.codebooks
        ),
    )

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.run(1.0, [(0.5, fail)])
    _, saved = read_codes(tmp_path / "out.ecdc", codec.config)
    assert len(saved) == session.loop.frames > 30
    assert len(read_wav(tmp_path / "out.wav")) == len(saved) * HOP
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ecdc", "out.wav"]


def test_a_microphone_that_is_unplugged_comes_back_and_the_recording_goes_on(
    monkeypatch: pytest.MonkeyPatch, codec: Codec, tmp_path: Path
) -> None:
    session = Session(monkeypatch, codec, VirtualCard(sound=voice(4)), keep_all=True)
    session.loop.record(wav=AudioRecording(tmp_path / "out.wav", rate_hz=RATE))
    card = session.card
    session.run(4.0, [(1.0, lambda: card.unplug(MICROPHONE)), (2.5, lambda: card.plug(MICROPHONE))])
    captured = np.concatenate(session.captured) * 32768
    before, after = captured[: RATE * 9 // 10], captured[-RATE:]
    assert place(before, card.sound) == 0
    assert place(after, card.sound) >= 2.5 * RATE
    assert len(read_wav(tmp_path / "out.wav")) == len(captured)
    assert session.faults() == {"microphone lost": 1}
    assert session.told[0] == (
        "the microphone 'Desk Microphone' was lost; waiting for it to come back"
    )
    assert session.told[-1] == "the microphone is back"


def test_callbacks_that_stop_are_a_loss_too(monkeypatch: pytest.MonkeyPatch, codec: Codec) -> None:
    session = Session(monkeypatch, codec, VirtualCard(sound=voice(1)))
    card = session.card
    session.run(LOST_AFTER_S + 1.5, [(0.5, lambda: card.freeze(MICROPHONE))])
    assert session.counts["microphone lost"] == 1
    assert [name for _, name, _ in card.opened].count("Desk Microphone") == 2
    assert session.loop.samples_in > 1.2 * RATE


def test_a_device_that_stays_away_is_looked_for_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    session = Session(monkeypatch, codec, VirtualCard())
    card = session.card
    session.run(60.0, [(1.0, lambda: card.unplug(MICROPHONE))])
    assert 5 <= card.rescans <= 16
    assert len(session.told) <= 4
    assert session.told[-1].startswith("no microphone was found; plug one in")


def test_a_lost_speaker_never_interrupts_a_microphone_that_records(
    monkeypatch: pytest.MonkeyPatch, codec: Codec, tmp_path: Path
) -> None:
    session = Session(monkeypatch, codec, VirtualCard(sound=voice(3)), keep_all=True)
    session.loop.record(wav=AudioRecording(tmp_path / "out.wav", rate_hz=RATE))
    card = session.card
    session.run(3.0, [(1.0, lambda: card.unplug(SPEAKER))])
    captured = np.concatenate(session.captured) * 32768
    assert np.array_equal(captured, card.sound[: len(captured)])
    assert len(captured) > 2.9 * RATE
    assert card.rescans == 1
    assert session.counts["speaker lost"] == 1
    assert session.counts["samples unplayed"] > 1.5 * RATE
    assert session.counts["microphone lost"] == 0


def test_without_a_recording_a_speaker_that_was_replugged_is_found_by_rescanning(
    monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    session = Session(monkeypatch, codec, VirtualCard(sound=voice(3)))
    card = session.card

    def replug() -> None:
        card.plugged.insert(0, SPEAKER)

    session.run(3.0, [(0.5, lambda: card.unplug(SPEAKER)), (1.0, replug)])
    assert session.told[-1] == "the speaker is back"
    assert card.rescans > 1
    assert session.counts["speaker lost"] == 1
    assert session.counts["microphone lost"] == 0
    assert len(card.heard()) > 1.5 * RATE


def test_a_stall_sheds_the_oldest_input_and_says_how_much(
    monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    session = Session(monkeypatch, codec, VirtualCard(sound=voice(3)))
    session.run(2.5, [(0.5, lambda: session.card.sleep(1.0))])
    captured = sum(map(len, session.captured))
    shed = session.counts["input samples shed"]
    assert shed > (1.0 - MAX_BACKLOG_S) * RATE
    assert captured + shed == pytest.approx(2.5 * RATE, abs=HOP)
    assert session.counts["playback starved"] == 1


def test_a_stall_costs_a_recording_nothing(monkeypatch: pytest.MonkeyPatch, codec: Codec) -> None:
    session = Session(monkeypatch, codec, VirtualCard(sound=voice(3)), keep_all=True)
    session.run(2.5, [(0.5, lambda: session.card.sleep(1.0))])
    captured = np.concatenate(session.captured) * 32768
    assert np.array_equal(captured, session.card.sound[: len(captured)])
    assert session.counts["input samples shed"] == 0
    assert session.counts["samples skipped"] > 0


def test_without_playback_no_speaker_is_opened_and_nothing_need_be_decoded(
    monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    session = Session(
        monkeypatch, codec, VirtualCard(MICROPHONE, sound=voice(1)), playback=False, decode=False
    ).run(1.0)
    assert [direction for direction, *_ in session.card.opened] == ["input"]
    assert session.loop.frames == -(-session.loop.samples_in // HOP) > 70
    assert len(session.heard()) == 0
    assert session.duplex.status().output_name == "no playback"


def test_a_microphone_of_another_rate_is_resampled(
    monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    card = VirtualCard(device("Studio", rates=(48_000,)), SPEAKER, sound=voice(2))
    session = Session(monkeypatch, codec, card).run(2.0)
    captured = np.concatenate(session.captured)
    assert len(captured) == pytest.approx(2 * RATE, abs=2 * HOP)
    sound = card.sound[: len(captured)] / 32768
    likeness = [np.corrcoef(captured[60:-60], np.roll(sound, lag)[60:-60])[0, 1] for lag in (0, 1)]
    assert max(likeness) > 0.97
    assert session.faults() == {}


def test_the_budget_has_what_the_devices_granted_and_what_waits(
    monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    session = Session(monkeypatch, codec, VirtualCard(sound=voice(1)), buffer_ms=60.0).run(6.0)
    budget = session.duplex.status().budget
    assert (budget.input_buffer, budget.output_buffer) == (20.0, 20.0)
    assert budget.hop == pytest.approx(40 / 3)
    assert 0 < budget.encode < 1000
    assert budget.input_queue < 3.0
    assert 0.65 * (60 - 40 / 3) < budget.playback_queue < 60
    assert 0.5 < budget.resampler < 1.0


def test_the_bitrate_is_that_of_the_packets_with_their_first_byte(
    monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    session = Session(monkeypatch, codec, VirtualCard(sound=voice(1))).run(1.0)
    payload = 1 + -(-session.loop.codebooks * codec.config.codebook_nbits // 8)
    assert session.loop.kbps == pytest.approx(payload * 8 * RATE / HOP / 1000)
    status = session.duplex.status()
    assert status.kbps == session.loop.kbps
    assert status.input_db > -60


def test_a_speaker_that_cannot_be_opened_leaves_no_stream_behind(
    monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    card = VirtualCard(device("Broken", inputs=1, outputs=1, channels=()))
    session = Session(monkeypatch, codec, card)
    with pytest.raises(AudioDeviceError):
        session.duplex.open()
    assert card.opened == []


def test_a_stereo_model_is_refused() -> None:
    config = tiny_config(audio_channels=2)
    with pytest.raises(ConfigError, match="live audio is mono"):
        CodecLoop(Codec(random_model(config)), config.target_bandwidths[0])


def test_more_codebooks_than_a_packet_carries_are_refused() -> None:
    config = tiny_config(books=(1, 33))
    with pytest.raises(ConfigError, match="33 codebooks; a packet carries 32"):
        CodecLoop(Codec(random_model(config)), config.target_bandwidths[1])


def test_a_full_disk_ends_the_session_with_its_reason_and_the_recording_until_then(
    monkeypatch: pytest.MonkeyPatch, codec: Codec, tmp_path: Path
) -> None:
    session = Session(monkeypatch, codec, VirtualCard(sound=voice(1)), keep_all=True)
    recording = AudioRecording(tmp_path / "out.wav", rate_hz=RATE)
    write = WholeWrites.write

    def fill(file: WholeWrites, data: bytes) -> int:
        if recording.samples > RATE // 2:
            raise OSError(errno.ENOSPC, "No space left on device", file.name)
        return write(file, data)

    monkeypatch.setattr(WholeWrites, "write", fill)
    session.loop.record(wav=recording)
    with pytest.raises(OSError, match=r"No space left on device: .*out.wav"):
        session.run(1.0)
    assert 0 < len(read_wav(tmp_path / "out.wav")) <= RATE // 2


def test_a_session_on_a_hanging_sound_system_ends_with_one_error_and_its_recording(
    monkeypatch: pytest.MonkeyPatch, codec: Codec, tmp_path: Path
) -> None:
    monkeypatch.setattr(portaudio, "HANG_S", 0.05)
    card = VirtualCard(sound=voice(2))
    session = Session(monkeypatch, codec, card, keep_all=True)
    session.loop.record(wav=AudioRecording(tmp_path / "out.wav", rate_hz=RATE))
    with pytest.raises(AudioDeviceError, match="the sound system does not answer"):
        session.run(1, [(0.9, card.hang)])
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert file.getnframes() == session.loop.samples_in > 0.8 * RATE
    card.answers.set()


def test_a_session_ends_though_the_codec_is_slower_than_the_microphone(
    monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    card = VirtualCard(sound=voice(2))
    session = Session(monkeypatch, codec, card, keep_all=True)
    slow = session._replace_output

    def replace_output(captured: Audio, heard: Audio) -> Audio:
        card.sleep(2 * len(captured) / RATE)
        return slow(captured, heard)

    session.duplex._replace_output = replace_output
    session.run(1)
    assert card.time_s < 4
    assert session.loop.samples_in > 0.4 * RATE
