"""Sound devices: finding them, opening them, and saying what is wrong with them.

The only module that imports sounddevice, and inside functions, so that everything else works on a
machine without PortAudio.
"""

from __future__ import annotations

import atexit
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from encodec_rt.errors import AudioDeviceError
from encodec_rt.sound.streams import BLOCK_S, InputStream, OutputStream

log = logging.getLogger(__name__)

Direction = Literal["input", "output"]
Choice = int | str | None
"""A device by its index, by a part of its name, or the system's default."""

HANG_S = 5.0
"""PortAudio opens or closes a stream within two seconds even on a busy machine, or never."""

_WORDS = {"input": "microphone", "output": "speaker"}


@dataclass(frozen=True)
class DeviceInfo:
    """One entry of PortAudio's list, with the directions that it is the default for."""

    index: int
    name: str
    host: str
    input_channels: int
    output_channels: int
    rate_hz: int
    default_for: tuple[Direction, ...]

    def channels(self, direction: Direction) -> int:
        """Channels that the device has in one direction, 0 if it has none."""
        return self.input_channels if direction == "input" else self.output_channels


def list_devices() -> list[DeviceInfo]:
    """Every device that PortAudio sees, in its order. Raises AudioDeviceError without PortAudio."""
    sounddevice = _sounddevice()
    with _quiet():
        found, hosts = sounddevice.query_devices(), sounddevice.query_hostapis()
    defaults: dict[Direction, int] = {
        "input": sounddevice.default.device[0],
        "output": sounddevice.default.device[1],
    }
    return [
        DeviceInfo(
            index,
            device["name"],
            hosts[device["hostapi"]]["name"],
            device["max_input_channels"],
            device["max_output_channels"],
            round(device["default_samplerate"]),
            tuple(way for way, default in defaults.items() if default == index),
        )
        for index, device in enumerate(found)
    ]


def find_device(choice: Choice, direction: Direction) -> DeviceInfo:
    """The device of ``direction`` with that index or whose name holds those letters.

    None is the system's default. Raises AudioDeviceError, saying what there is.
    """
    word = _WORDS[direction]
    usable = [device for device in list_devices() if device.channels(direction)]
    if not usable:
        raise AudioDeviceError(
            f"no {word} was found; plug one in, or check that the system's sound service runs"
        )
    there = ", ".join(f"{device.index} {device.name!r}" for device in usable)
    if choice is None:
        matches = [device for device in usable if direction in device.default_for] or usable[:1]
    elif isinstance(choice, int):
        matches = [device for device in usable if device.index == choice]
    else:
        wanted = choice.casefold()
        matches = [device for device in usable if wanted in device.name.casefold()]
        matches = [device for device in matches if device.name.casefold() == wanted] or matches
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise AudioDeviceError(f"no {word} matches {choice!r}; available: {there}")
    several = ", ".join(f"{device.index} {device.name!r}" for device in matches)
    raise AudioDeviceError(f"more than one {word} matches {choice!r}: {several}; give the index")


class PortAudio:
    """The machine's sound devices, opened one input and one output at a time."""

    def __init__(
        self,
        rate_hz: int,
        *,
        source: Choice = None,
        sink: Choice = None,
        block_s: float = BLOCK_S,
    ) -> None:
        """Streams at ``rate_hz`` where the device takes it, else at the device's own rate."""
        self._rate_hz = rate_hz
        self._block_s = block_s
        self._choices: dict[Direction, Choice] = {"input": source, "output": sink}
        self._chosen: dict[Direction, DeviceInfo] = {}
        self._hanging: threading.Thread | None = None

    def open_source(self) -> InputStream:
        """The input, started. Raises AudioDeviceError."""
        module = _sounddevice()
        device = self._find("input")
        rate_hz, channels = self._accepted(device, "input", module.check_input_settings)
        source = InputStream(device.name, rate_hz, channels)
        self._start(module.RawInputStream, device, "input", source)
        return source

    def open_sink(self) -> OutputStream:
        """The output, started. Raises AudioDeviceError."""
        module = _sounddevice()
        device = self._find("output")
        rate_hz, channels = self._accepted(device, "output", module.check_output_settings)
        sink = OutputStream(device.name, rate_hz, channels)
        self._start(module.RawOutputStream, device, "output", sink)
        return sink

    def rescan(self) -> None:
        """Look for devices anew, which ends every stream that is still open."""
        module = _sounddevice()

        def restart() -> None:
            # PortAudio lists devices once, at its start, and sounddevice has no public restart.
            module._terminate()
            module._initialize()

        try:
            with _quiet():
                self._bounded(restart, "looking for devices anew")
        except module.PortAudioError as error:
            raise AudioDeviceError(f"PortAudio cannot start again: {error}") from error

    def now(self) -> float:
        """Seconds of a clock that is never set."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Come back after ``seconds``."""
        time.sleep(seconds)

    def _find(self, direction: Direction) -> DeviceInfo:
        """The chosen device, or after it was lost the one of its name, whose index may be new."""
        before = self._chosen.get(direction)
        if before is None or self._choices[direction] is None:
            self._chosen[direction] = find_device(self._choices[direction], direction)
            return self._chosen[direction]
        same = [
            device
            for device in list_devices()
            if (device.name, device.host) == (before.name, before.host)
        ]
        if not same:
            raise AudioDeviceError(
                f"the {_WORDS[direction]} {before.name!r} is gone; plug it in again, or restart "
                f"with another --{direction}"
            )
        return min(same, key=lambda device: device.index != before.index)

    def _accepted(
        self, device: DeviceInfo, direction: Direction, check: Callable[..., None]
    ) -> tuple[int, int]:
        """The first rate and number of channels that the device takes, ours and mono before all."""
        module = _sounddevice()
        reason = ""
        for channels in sorted({1, min(2, device.channels(direction))}):
            for rate_hz in (self._rate_hz, device.rate_hz):
                try:
                    with _quiet():
                        self._bounded(
                            partial(
                                check,
                                device=device.index,
                                samplerate=rate_hz,
                                channels=channels,
                                dtype="int16",
                            ),
                            f"asking the {_WORDS[direction]} {device.name!r}",
                        )
                except (module.PortAudioError, ValueError) as error:
                    reason = reason or str(error)
                else:
                    return rate_hz, channels
        raise AudioDeviceError(
            f"the {_WORDS[direction]} {device.name!r} opens neither at {self._rate_hz} nor at "
            f"{device.rate_hz} samples per second ({reason}); check that it is plugged in, or "
            f"choose another one with --{direction}, 'encodec-rt devices' lists them"
        )

    def _start(
        self,
        make: Callable[..., Any],
        device: DeviceInfo,
        direction: Direction,
        end: InputStream | OutputStream,
    ) -> None:
        module = _sounddevice()
        name = f"the {_WORDS[direction]} {device.name!r}"

        def start() -> Any:
            stream = make(
                device=device.index,
                samplerate=end.rate_hz,
                blocksize=round(self._block_s * end.rate_hz),
                channels=end.channels,
                dtype="int16",
                latency="low",
                callback=end.callback,
            )
            try:
                stream.start()
            except module.PortAudioError:
                stream.close()
                raise
            return stream

        def close() -> None:
            # Closing alone cancels the callback's thread wherever it stands, which may be inside
            # the sound service's client with a lock in its hand.
            stream.stop()
            stream.close()

        try:
            with _quiet():
                stream = self._bounded(start, f"opening {name}")
        except (module.PortAudioError, ValueError) as error:
            raise AudioDeviceError(
                f"{name} cannot be opened ({error}); another program may hold it, or it was "
                "unplugged"
            ) from error
        end.attach(stream, lambda: self._bounded(close, f"closing {name}"))

    def _bounded(self, work: Callable[[], Any], doing: str) -> Any:
        """What ``work`` gives or raises; AudioDeviceError where it does not come back.

        A call that hangs inside PortAudio cannot be ended, only left behind, and no other may
        follow it.
        """
        if self._hanging is None or not self._hanging.is_alive():
            outcome: Future[Any] = Future()
            thread = threading.Thread(target=_fulfil, args=(outcome, work), daemon=True)
            thread.start()
            thread.join(HANG_S)
            if not thread.is_alive():
                return outcome.result(timeout=0)
            self._hanging = thread
            # At the end of the program PortAudio would wait for the same call.
            atexit.unregister(_sounddevice()._exit_handler)
        raise AudioDeviceError(
            f"{doing}: the sound system does not answer; check that its service runs, and restart"
        )


def _fulfil(outcome: Future[Any], work: Callable[[], Any]) -> None:
    try:
        outcome.set_result(work())
    except (_sounddevice().PortAudioError, ValueError) as error:
        outcome.set_exception(error)


def _sounddevice() -> Any:
    try:
        with _quiet():
            import sounddevice
    except OSError as error:
        raise AudioDeviceError(
            f"sound needs the PortAudio library, which is not installed ({error}); on Debian and "
            "Ubuntu: apt-get install libportaudio2"
        ) from error
    return sounddevice


@contextmanager
def _quiet() -> Iterator[None]:
    """Send what PortAudio and ALSA print by themselves to the debug log, not to the terminal."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as spool:
        os.dup2(spool.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            spool.seek(0)
            for line in spool.read().decode(errors="replace").splitlines():
                log.debug("%s", line)
