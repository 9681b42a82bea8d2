"""A virtual sound card: a stand-in for sounddevice, driven by a clock that tests advance."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np
import pytest
from numpy.typing import NDArray

from encodec_rt.sound.devices import Choice, Direction
from encodec_rt.sound.portaudio import PortAudio

if TYPE_CHECKING:
    from typing_extensions import Unpack

FLAGS = (
    "input_overflow",
    "input_underflow",
    "output_overflow",
    "output_underflow",
    "priming_output",
)


class Device(TypedDict):
    """An entry of the device list, and the rates and channels that the device accepts."""

    name: str
    hostapi: int
    max_input_channels: int
    max_output_channels: int
    default_samplerate: float
    rates: tuple[int, ...]
    channels: tuple[int, ...]


class Settings(TypedDict):
    """The arguments with which a stream is opened."""

    device: int
    samplerate: int
    channels: int
    blocksize: int
    dtype: str
    latency: float | str
    callback: Callable[[memoryview, int, None, SimpleNamespace], None]


def flags(*names: str) -> SimpleNamespace:
    return SimpleNamespace(**{name: name in names for name in FLAGS})


def device(
    name: str,
    *,
    inputs: int = 1,
    outputs: int = 0,
    rates: tuple[int, ...] = (24_000,),
    channels: tuple[int, ...] = (1, 2),
) -> Device:
    return {
        "name": name,
        "hostapi": 0,
        "max_input_channels": inputs,
        "max_output_channels": outputs,
        "default_samplerate": float(rates[-1]),
        "rates": rates,
        "channels": channels,
    }


MICROPHONE = device("Desk Microphone")
SPEAKER = device("Desk Speaker", inputs=0, outputs=1)


class VirtualCard:
    """Stands in for the module ``sounddevice``; time passes only in ``sleep``."""

    class PortAudioError(Exception):
        pass

    def __init__(
        self,
        *devices: Device,
        sound: NDArray[np.int16] | None = None,
        input_ppm: float = 0.0,
        output_ppm: float = 0.0,
        tick_s: float = 0.0,
    ) -> None:
        self.plugged = list(devices or (MICROPHONE, SPEAKER))
        self.time_s = 0.0
        self.sound = np.zeros(0, np.int16) if sound is None else sound
        self.played: list[NDArray[np.int16]] = []
        self.rescans = 0
        self.opened: list[tuple[str, str, int]] = []
        self._streams: list[VirtualStream] = []
        self._ppm: dict[Direction, float] = {"input": input_ppm, "output": output_ppm}
        self._tick_s = tick_s
        self.answers = threading.Event()
        self.answers.set()
        self._initialize()

    def _terminate(self) -> None:
        for stream in self._streams:
            stream.active = False
        self._streams.clear()

    def _initialize(self) -> None:
        self.rescans += 1
        self._listed = list(self.plugged)
        self.default = SimpleNamespace(
            device=[self._first("max_input_channels"), self._first("max_output_channels")]
        )

    def _first(self, channels: Literal["max_input_channels", "max_output_channels"]) -> int:
        return next((i for i, entry in enumerate(self._listed) if entry[channels]), -1)

    def _exit_handler(self) -> None:
        """What sounddevice runs at the end of the program."""

    def query_devices(self) -> tuple[Device, ...]:
        return tuple(self._listed)

    def query_hostapis(self) -> tuple[dict[str, str], ...]:
        return ({"name": "Virtual"},)

    def check_input_settings(
        self, *, device: int, samplerate: int, channels: int, dtype: str
    ) -> None:
        self._check(device, samplerate, channels)

    check_output_settings = check_input_settings

    def _check(self, index: int, rate: int, channels: int) -> None:
        entry = self._listed[index]
        if entry not in self.plugged:
            raise self.PortAudioError("Device unavailable")
        if rate not in entry["rates"]:
            raise self.PortAudioError("Invalid sample rate")
        if channels not in entry["channels"]:
            raise self.PortAudioError("Invalid number of channels")

    def RawInputStream(self, **settings: Unpack[Settings]) -> VirtualStream:
        return self._open("input", settings)

    def RawOutputStream(self, **settings: Unpack[Settings]) -> VirtualStream:
        return self._open("output", settings)

    def _open(self, direction: Direction, settings: Settings) -> VirtualStream:
        self._check(settings["device"], settings["samplerate"], settings["channels"])
        entry = self._listed[settings["device"]]
        stream = VirtualStream(self, direction, entry, settings, self._ppm[direction])
        self.opened.append((direction, entry["name"], settings["samplerate"]))
        return stream

    def unplug(self, entry: Device) -> None:
        self.plugged = [other for other in self.plugged if other is not entry]
        for stream in self._streams:
            if stream.entry is entry:
                stream.active = False

    def plug(self, entry: Device) -> None:
        self.plugged.append(entry)

    def freeze(self, entry: Device) -> None:
        """Stop the device's callbacks, while the device stays listed."""
        for stream in self._streams:
            if stream.entry is entry:
                stream.next_s = float("inf")

    def hang(self) -> None:
        """Make the sound system hang: stopping a stream never returns."""
        self.answers.clear()

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass, and run every callback that is due, in order of time."""
        end = self.time_s + max(seconds, self._tick_s)
        while True:
            due = [stream for stream in self._streams if stream.active and stream.next_s <= end]
            if not due:
                break
            stream = min(due, key=lambda one: one.next_s)
            self.time_s = max(self.time_s, stream.next_s)
            stream.call()
        self.time_s = end

    def heard(self) -> NDArray[np.int16]:
        """Everything that was played."""
        return np.concatenate(self.played) if self.played else np.zeros(0, np.int16)


class VirtualStream:
    latency = 0.02

    def __init__(
        self,
        card: VirtualCard,
        direction: Direction,
        entry: Device,
        settings: Settings,
        ppm: float,
    ) -> None:
        self.entry = entry
        self.active = False
        self._card = card
        self._direction = direction
        self._block = settings["blocksize"]
        self._channels = settings["channels"]
        self._callback = settings["callback"]
        self._rate = settings["samplerate"] * (1 + 1e-6 * ppm)
        self._scale = settings["samplerate"] / 24_000

    def start(self) -> None:
        self.active = True
        self._began_s = self._card.time_s
        self._blocks = itertools.count(1)
        self.next_s = self._began_s + self._block / self._rate
        self._card._streams.append(self)

    def call(self) -> None:
        block = np.zeros((self._block, self._channels), np.int16)
        if self._direction == "input":
            # The sound has a rate of 24 kHz, whatever the stream's rate is.
            begin = round((self._card.time_s * self._rate - self._block) / self._scale)
            at = begin + np.arange(self._block) / self._scale
            inside = (at >= 0) & (at < len(self._card.sound))
            block[inside] = self._card.sound[at[inside].astype(int), None]
        data = bytearray(block.tobytes())
        self._callback(memoryview(data), self._block, None, flags())
        if self._direction == "output":
            played = np.frombuffer(data, np.int16).reshape(-1, self._channels)
            self._card.played.append(played[:, 0].copy())
        self.next_s = self._began_s + (next(self._blocks) + 1) * self._block / self._rate

    def stop(self) -> None:
        self._card.answers.wait()

    def close(self) -> None:
        self.active = False
        if self in self._card._streams:
            self._card._streams.remove(self)


class VirtualSystem(PortAudio):
    """The package's own ``PortAudio``, with the card instead of the library, and its clock."""

    def __init__(
        self,
        card: VirtualCard,
        rate_hz: int = 24_000,
        *,
        source: Choice = None,
        sink: Choice = None,
    ) -> None:
        super().__init__(rate_hz, source=source, sink=sink)
        self.card = card

    def now(self) -> float:
        return self.card.time_s

    def sleep(self, seconds: float) -> None:
        self.card.sleep(seconds)


def install(monkeypatch: pytest.MonkeyPatch, card: VirtualCard) -> VirtualCard:
    """Make ``import sounddevice`` return ``card``."""
    monkeypatch.setitem(sys.modules, "sounddevice", card)
    return card
