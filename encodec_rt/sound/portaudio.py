"""Opening sound devices through PortAudio, and saying what is wrong with them."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from encodec_rt.errors import AudioDeviceError
from encodec_rt.sound.devices import (
    WORDS,
    Choice,
    DeviceInfo,
    Direction,
    find_device,
    list_devices,
    quietly,
    sounddevice_module,
)
from encodec_rt.sound.streams import BLOCK_S, InputStream, OutputStream

log = logging.getLogger(__name__)


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
        """Streams at ``rate_hz`` where the device takes it, else at the device's own rate."""
        self._rate_hz = rate_hz
        self._block_s = block_s
        self._choices: dict[Direction, Choice] = {"input": source, "output": sink}
        self._chosen: dict[Direction, DeviceInfo] = {}
        self._hanging: threading.Thread | None = None

    def open_source(self) -> InputStream:
        """The input, started. Raises AudioDeviceError."""
        module = sounddevice_module()
        device = self._find("input")
        rate_hz, channels = self._accepted(device, "input", module.check_input_settings)
        source = InputStream(device.name, rate_hz, channels)
        self._start(module.RawInputStream, device, "input", source)
        return source

    def open_sink(self) -> OutputStream:
        """The output, started. Raises AudioDeviceError."""
        module = sounddevice_module()
        device = self._find("output")
        rate_hz, channels = self._accepted(device, "output", module.check_output_settings)
        sink = OutputStream(device.name, rate_hz, channels)
        self._start(module.RawOutputStream, device, "output", sink)
        return sink

    def rescan(self) -> None:
        """Rescan the devices, which ends every stream that is still open."""
        module = sounddevice_module()

        def restart() -> None:
            # PortAudio lists devices once, at its start, and sounddevice has no public restart.
            module._terminate()
            module._initialize()

        try:
            with quietly():
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
                f"the {WORDS[direction]} {before.name!r} is gone; plug it in again, or restart "
                f"with another --{direction}"
            )
        return min(same, key=lambda device: device.index != before.index)

    def _accepted(
        self, device: DeviceInfo, direction: Direction, check: Callable[..., None]
    ) -> tuple[int, int]:
        """The first rate and number of channels that the device takes, ours and mono before all."""
        module = sounddevice_module()
        reason = ""
        for channels in sorted({1, min(2, device.channels(direction))}):
            for rate_hz in (self._rate_hz, device.rate_hz):
                try:
                    with quietly():
                        self._bounded(
                            partial(
                                check,
                                device=device.index,
                                samplerate=rate_hz,
                                channels=channels,
                                dtype="int16",
                            ),
                            f"asking the {WORDS[direction]} {device.name!r}",
                        )
                except (module.PortAudioError, ValueError) as error:
                    reason = reason or str(error)
                else:
                    return rate_hz, channels
        raise AudioDeviceError(
            f"the {WORDS[direction]} {device.name!r} opens neither at {self._rate_hz} nor at "
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
        module = sounddevice_module()
        name = f"the {WORDS[direction]} {device.name!r}"

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
            with quietly():
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
            atexit.unregister(sounddevice_module()._exit_handler)
        raise AudioDeviceError(
            f"{doing}: the sound system does not answer; check that its service runs, and restart"
        )


def _fulfil(outcome: Future[Any], work: Callable[[], Any]) -> None:
    try:
        outcome.set_result(work())
    except (sounddevice_module().PortAudioError, ValueError) as error:
        outcome.set_exception(error)
