from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import AudioDeviceError, ConfigError, InputError
from encodec_rt.link import device_pair
from encodec_rt.link.device_endpoints import DeviceSource
from encodec_rt.link.device_pair import DevicePair
from encodec_rt.link.endpoints import FileSink, FileSource
from encodec_rt.sound.processing import VoiceProcessor
from encodec_rt.sound.streams import MAX_BACKLOG_S, StreamCounts
from encodec_rt.types import Audio
from tests.support.models import speech, tiny_config
from tests.support.narrow import present
from tests.support.tolerances import bound

HOP = 8


@pytest.fixture
def config() -> EncodecConfig:
    return tiny_config()


class FakeStream:
    """Both ends of a device at the model's rate, without a clock."""

    def __init__(self, captured: np.ndarray | None = None, rate_hz: int = 800) -> None:
        self.name = "fake"
        self.rate_hz = rate_hz
        self.latency_ms = 0.0
        self.counts = StreamCounts()
        self.active = True
        self.captured = np.zeros(0, np.float32) if captured is None else captured
        self.queued: list[np.ndarray] = []
        self.closed = False

    @property
    def waiting(self) -> int:
        self.counts.callbacks += 1
        return len(self.captured)

    @property
    def fill(self) -> int:
        self.counts.callbacks += 1
        return sum(len(block) for block in self.queued)

    def read(self, most: int) -> np.ndarray:
        given, self.captured = self.captured[:most], self.captured[most:]
        return given

    def skip(self, count: int) -> int:
        return len(self.read(count))

    def write(self, samples: np.ndarray) -> int:
        self.queued.append(samples)
        return 0

    def pause(self) -> None:
        return

    def close(self) -> None:
        self.closed = True


def test_a_file_is_read_in_hops_and_filled_up_with_silence(
    tmp_path: Path, config: EncodecConfig
) -> None:
    samples = np.linspace(-0.5, 0.5, 3 * HOP + 3).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, config.sampling_rate, subtype="FLOAT")

    async def main() -> list[np.ndarray]:
        source, hops = FileSource(tmp_path / "a.wav", config), []
        while (hop := await source.read()) is not None:
            hops.append(hop)
        source.close()
        return hops

    hops = asyncio.run(main())
    assert [hop.shape for hop in hops] == [(1, HOP)] * 4
    np.testing.assert_allclose(np.concatenate(hops, axis=1)[0, : len(samples)], samples, atol=1e-6)
    assert not hops[-1][0, 3:].any()


def test_a_recording_appears_when_it_is_closed_and_never_replaces_another(
    tmp_path: Path, config: EncodecConfig
) -> None:
    path = tmp_path / "heard.wav"
    sink = FileSink(path, config)
    sink.write(np.full(HOP, 0.25, np.float32))
    assert not path.exists()
    sink.close()
    assert soundfile.read(path)[0].tolist() == [0.25] * HOP
    with pytest.raises(InputError, match="exists"):
        FileSink(path, config)


def test_ticks_are_a_hop_apart_however_late_they_are_taken(
    tmp_path: Path, config: EncodecConfig
) -> None:
    async def main() -> list[float]:
        sink = FileSink(tmp_path / "a.wav", config)
        times = []
        for step in range(6):
            times.append(await sink.ready())
            if step == 2:
                await asyncio.sleep(0.05)
        sink.close()
        return times

    np.testing.assert_allclose(np.diff(asyncio.run(main())), HOP / config.sampling_rate)


class FakeSystem:
    """Opens the streams that it was given, one after the other, and refuses when none is left."""

    def __init__(
        self,
        *,
        sources: list[FakeStream] | tuple[()] = (),
        sinks: list[FakeStream] | tuple[()] = (),
    ) -> None:
        self.sources, self.sinks = list(sources), list(sinks)
        self.told: list[str] = []
        self.rescans = 0

    def open_source(self) -> FakeStream:
        return self._next(self.sources)

    def open_sink(self) -> FakeStream:
        return self._next(self.sinks)

    def _next(self, streams: list[FakeStream]) -> FakeStream:
        if not streams:
            raise AudioDeviceError("nothing is plugged in")
        return streams.pop(0)

    def rescan(self) -> None:
        self.rescans += 1

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def pair(self, config: EncodecConfig, **options: Any) -> DevicePair:
        return DevicePair(self, config, on_event=self.told.append, **options)


@pytest.fixture(autouse=True)
def _watched_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_pair, "LOOK_S", 0.0)


def sound(hops: int) -> np.ndarray:
    return np.sin(np.arange(hops * HOP) / 9).astype(np.float32)


def test_a_microphone_that_is_lost_is_silent_until_it_is_back(config: EncodecConfig) -> None:
    streams = [FakeStream(sound(20)), FakeStream(sound(20))]
    system = FakeSystem(sources=streams[:1])

    async def until(source: DeviceSource, wanted: Callable[[Audio], object]) -> None:
        while not wanted(present(await source.read())):
            pass

    async def main() -> dict[str, Any]:
        pair = system.pair(config, speaker=False)
        hops = [present(await pair.source.read()) for _ in range(8)]
        assert all(hop.shape == (1, HOP) and hop.any() for hop in hops)
        streams[0].active = False
        await until(pair.source, lambda hop: not hop.any())
        system.sources.append(streams[1])
        await until(pair.source, lambda hop: hop.any())
        statistics = pair.statistics()
        pair.source.close()
        return statistics

    statistics = asyncio.run(asyncio.wait_for(main(), 20))
    assert statistics["microphone"]["timesLost"] == 1
    assert statistics["microphone"]["samplesOfSilence"] > 0
    assert "speaker" not in statistics
    assert [stream.closed for stream in streams] == [True, True]
    assert system.told == [
        "the microphone 'fake' was lost; waiting for it to come back",
        "nothing is plugged in",
        "the microphone is back",
    ]


def test_input_from_before_a_stall_is_let_go(config: EncodecConfig) -> None:
    piled = sound(round(5 * MAX_BACKLOG_S * config.sampling_rate / HOP))
    system = FakeSystem(sources=[FakeStream(piled)])

    async def main() -> dict[str, Any]:
        pair = system.pair(config, speaker=False)
        await pair.source.read()
        pair.close()
        return pair.statistics()

    shed = asyncio.run(main())["microphone"]["samplesShed"]
    assert shed == len(piled) - round(MAX_BACKLOG_S * config.sampling_rate)


def test_a_speaker_asks_for_audio_while_its_queue_is_low_and_keeps_the_pace_while_it_is_away(
    config: EncodecConfig,
) -> None:
    streams = [FakeStream(), FakeStream()]
    system = FakeSystem(sinks=streams[:1])

    async def main() -> dict[str, Any]:
        pair = system.pair(config, microphone=False)
        sink, times = pair.sink, []

        async def play() -> None:
            times.append(await sink.ready())
            sink.write(np.ones(HOP, np.float32))

        for _ in range(3):
            await play()
        waiting = asyncio.ensure_future(sink.ready())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        streams[0].queued.clear()
        assert await waiting > 0
        streams[0].queued.append(np.zeros(100 * HOP, np.int16))
        streams[0].active = False
        while not sink.statistics()["samplesUnplayed"]:
            await play()
        away = len(times)
        for _ in range(4):
            await play()
        np.testing.assert_allclose(np.diff(times[away:]), HOP / config.sampling_rate, rtol=0.5)
        system.sinks.append(streams[1])
        while not streams[1].fill:
            await play()
        statistics = pair.statistics()
        pair.sink.close()
        return statistics

    statistics = asyncio.run(asyncio.wait_for(main(), 20))["speaker"]
    assert statistics["timesLost"] == 1
    assert statistics["samplesUnplayed"] >= 5 * HOP
    assert streams[1].closed


def test_what_the_speaker_plays_is_taken_out_of_what_the_microphone_hears() -> None:
    pytest.importorskip("livekit.rtc")
    config = tiny_config(sampling_rate=24_000, upsampling_ratios=(8, 5, 4, 2))
    hop = config.hop_length
    microphone, speaker = FakeStream(rate_hz=24_000), FakeStream(rate_hz=24_000)
    system = FakeSystem(sources=[microphone], sinks=[speaker])
    far = speech(1, 4 * 24_000 // hop * hop, seed=4)[0].numpy()
    echoes: list[Audio] = []
    heard: list[Audio] = []

    async def main() -> dict[str, Any]:
        pair = system.pair(config, voice=VoiceProcessor(24_000))
        delay = [np.zeros(hop, np.float32)] * 4
        for piece in far.reshape(-1, hop):
            await pair.sink.ready()
            pair.sink.write(piece)
            played = np.concatenate([np.zeros(0, np.int16), *speaker.queued])[-hop:]
            speaker.queued.clear()
            delay.append(np.float32(0.3 / 32768) * played.astype(np.float32))
            echo = delay.pop(0)
            echoes.append(echo)
            microphone.captured = np.concatenate([microphone.captured, echo])
            # The resampler and the canceller's blocks hold back less than a hop.
            if len(echoes) > 1:
                heard.append(present(await pair.source.read()))
        pair.close()
        return pair.statistics()

    statistics = asyncio.run(main())
    assert statistics["latencyMs"]["voiceProcessing"] > 5
    tail = 24_000 // hop
    left, before = np.concatenate(heard[-tail:], axis=1), np.concatenate(echoes[-tail:])
    assert 10 * np.log10(np.mean(before**2) / np.mean(left**2)) > bound("echo return loss", "dB")


def test_echo_cancellation_is_for_both_devices(config: EncodecConfig) -> None:
    pytest.importorskip("livekit.rtc")
    voice = VoiceProcessor(24_000)
    for missing in ("microphone", "speaker"):
        with pytest.raises(ConfigError, match="use both, or leave it off"):
            FakeSystem().pair(config, voice=voice, **{missing: False})


def test_a_device_that_cannot_be_opened_leaves_none_open(config: EncodecConfig) -> None:
    speaker = FakeStream()
    with pytest.raises(AudioDeviceError, match="nothing is plugged in"):
        FakeSystem(sinks=[speaker]).pair(config)
    assert speaker.closed


def test_devices_are_for_mono_models() -> None:
    with pytest.raises(ConfigError, match="mono"):
        FakeSystem().pair(tiny_config(audio_channels=2))


def test_a_file_that_is_closed_while_a_hop_is_waited_for_has_ended(tmp_path: Path) -> None:
    config = tiny_config()
    soundfile.write(tmp_path / "a.flac", speech(8_000).numpy(), config.sampling_rate)

    async def main() -> None:
        source = FileSource(tmp_path / "a.flac", config)
        assert await source.read() is not None
        waiting = asyncio.create_task(source.read())
        await asyncio.sleep(0)
        source.close()
        assert await waiting is None

    asyncio.run(main())
