"""Opening sound devices through PortAudio, and reporting what is wrong with them."""

from __future__ import annotations

import atexit
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from encodec_rt.errors import AudioDeviceError
from encodec_rt.native_output import quietly
from encodec_rt.sound.devices import (
    WORDS,
    Choice,
    DeviceInfo,
    Direction,
    find_device,
    list_devices,
    sounddevice_module,
)
from encodec_rt.sound.streams import BLOCK_S, InputStream, OutputStream

log = logging.getLogger(__name__)

End = TypeVar("End", InputStream, OutputStream)

COMMON_RATES_HZ = (48_000, 44_100)
HANG_S = 5.0
"""PortAudio opens or closes a stream within two seconds even on a busy machine, or never."""


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
        """Streams at ``rate_hz`` if the device takes it, else at the device's own rate."""
        self._rate_hz = rate_hz
        self._block_s = block_s
        self._choices: dict[Direction, Choice] = {"input": source, "output": sink}
        self._chosen: dict[Direction, DeviceInfo] = {}
        self._hanging: threading.Thread | None = None

    def open_source(self) -> InputStream:
        """The input, started. Raises AudioDeviceError."""
        module = sounddevice_module()
        return self._open("input", InputStream, module.check_input_settings, module.RawInputStream)

    def open_sink(self) -> OutputStream:
        """The output, started. Raises AudioDeviceError."""
        module = sounddevice_module()
        return self._open(
            "output", OutputStream, module.check_output_settings, module.RawOutputStream
        )

    def rescan(self) -> None:
        """Rescan the devices, which ends every stream that is still open."""
        module = sounddevice_module()

        def restart() -> None:
            # PortAudio lists devices once, at its start, and sounddevice has no public restart.
            module._terminate()
            module._initialize()

        try:
            with quietly():
                self._bounded(restart, "rescanning the devices")
        except module.PortAudioError as error:
            raise AudioDeviceError(f"PortAudio cannot start again: {error}") from error

    def now(self) -> float:
        """Seconds on a monotonic clock."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds``."""
        time.sleep(seconds)

    def _find(self, direction: Direction) -> DeviceInfo:
        """The chosen device, or after a loss the one with its name; its index may have changed."""
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
                f"the {WORDS[direction]} {before.name!r} is gone; plug it in again, or restart "
                f"with another --{direction}"
            )
        return min(same, key=lambda device: device.index != before.index)

    def _open(
        self,
        direction: Direction,
        kind: Callable[[str, int, int], End],
        check: Callable[..., None],
        make: Callable[..., Any],
    ) -> End:
        """The chosen device in the first format that it opens in."""
        module = sounddevice_module()
        device = self._find(direction)
        asking = f"asking the {WORDS[direction]} {device.name!r}"
        rates_hz, channels = self._rates_hz(device), _channels(device.channels(direction))
        reasons: list[str] = []
        for count, rate_hz in itertools.product(channels, rates_hz):
            settings = {"device": device.index, "samplerate": rate_hz, "channels": count}
            try:
                with quietly():
                    self._bounded(partial(check, **settings, dtype="int16"), asking)
                    end = kind(device.name, rate_hz, count)
                    self._start(make, f"the {WORDS[direction]} {device.name!r}", settings, end)
            except (module.PortAudioError, ValueError) as error:
                if str(error) not in reasons:
                    reasons.append(str(error))
            else:
                return end
        raise AudioDeviceError(
            f"the {WORDS[direction]} {device.name!r} cannot be opened at {_either(rates_hz)} "
            f"samples per second with {_either(channels)} channels ({'; '.join(reasons)}); check "
            "that it is plugged in and that no other program holds it, or choose another one with "
            f"--{direction}, 'encodec-rt devices' lists them"
        )

    def _rates_hz(self, device: DeviceInfo) -> list[int]:
        """The model's rate and the device's own first; some accept neither but a common one."""
        return list(dict.fromkeys((self._rate_hz, device.rate_hz, *COMMON_RATES_HZ)))

    def _start(
        self,
        make: Callable[..., Any],
        name: str,
        settings: dict[str, int],
        end: InputStream | OutputStream,
    ) -> None:
        """Start a stream that ``end`` belongs to. Raises PortAudioError and ValueError."""
        module = sounddevice_module()

        def start() -> Any:
            stream = make(
                **settings,
                blocksize=round(self._block_s * end.rate_hz),
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
            # Closing alone cancels the callback's thread wherever it is, perhaps inside the sound
            # service's client and holding a lock.
            stream.stop()
            stream.close()

        stream = self._bounded(start, f"opening {name}")
        end.attach(stream, lambda: self._bounded(close, f"closing {name}"))

    def _bounded(self, work: Callable[[], Any], doing: str) -> Any:
        """What ``work`` returns or raises; AudioDeviceError if it does not return in time.

        A call that hangs inside PortAudio cannot be ended, only abandoned, and no other may follow.
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
            atexit.unregister(sounddevice_module()._exit_handler)
        raise AudioDeviceError(
            f"{doing}: the sound system does not answer; check that its service runs, and restart"
        )


def _fulfil(outcome: Future[Any], work: Callable[[], Any]) -> None:
    try:
        outcome.set_result(work())
    except (sounddevice_module().PortAudioError, ValueError) as error:
        outcome.set_exception(error)


def _channels(most: int) -> list[int]:
    """One channel, two, or all: microphone arrays and mixers accept nothing less."""
    return sorted({1, min(2, most), most})


def _either(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
