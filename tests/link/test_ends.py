from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import soundfile

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import AudioDeviceError, ConfigError, InputError
from encodec_rt.link.devices import DeviceSink, DeviceSource
from encodec_rt.link.ends import FileSink, FileSource
from encodec_rt.live.streams import StreamCounts
from models import tiny_config

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
        return len(self.captured)

    @property
    def fill(self) -> int:
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


def test_a_file_is_read_in_hops_and_filled_up_with_silence(tmp_path: Path, config: EncodecConfig):
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
):
    path = tmp_path / "heard.wav"
    sink = FileSink(path, config)
    sink.write(np.full(HOP, 0.25, np.float32))
    assert not path.exists()
    sink.close()
    assert soundfile.read(path)[0].tolist() == [0.25] * HOP
    with pytest.raises(InputError, match="exists"):
        FileSink(path, config)


def test_ticks_are_a_hop_apart_however_late_they_are_taken(tmp_path: Path, config: EncodecConfig):
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


def test_a_microphone_gives_hops_and_tells_when_it_is_gone(config: EncodecConfig):
    captured = np.sin(np.arange(20 * HOP) / 9).astype(np.float32)
    stream = FakeStream(captured)

    async def main() -> None:
        source = DeviceSource(stream, config)
        hops = [await source.read() for _ in range(17)]
        assert all(hop is not None and hop.shape == (1, HOP) for hop in hops)
        stream.active = False
        rest = [source.read() for _ in range(5)]
        ends = await asyncio.gather(*rest, return_exceptions=True)
        assert isinstance(ends[-1], AudioDeviceError)
        source.close()

    asyncio.run(main())
    assert stream.closed


def test_a_speaker_asks_for_audio_while_its_queue_is_low(config: EncodecConfig):
    stream = FakeStream()

    async def main() -> None:
        sink = DeviceSink(stream, config)
        for _ in range(3):
            await sink.ready()
            sink.write(np.zeros(HOP, np.float32))
        waiting = asyncio.ensure_future(sink.ready())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        stream.queued.clear()
        assert await asyncio.wait_for(waiting, 2) > 0
        stream.queued.append(np.zeros(100 * HOP, np.int16))
        stream.active = False
        with pytest.raises(AudioDeviceError, match="'fake' is gone"):
            await sink.ready()

    asyncio.run(main())


def test_devices_are_for_mono_models():
    with pytest.raises(ConfigError, match="mono"):
        DeviceSource(FakeStream(), tiny_config(audio_channels=2))
