"""The sound devices of this machine.

The only module that imports sounddevice, and inside a function, so that everything else works on a
machine without PortAudio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from encodec_rt.errors import AudioDeviceError
from encodec_rt.native_output import quietly

Direction = Literal["input", "output"]
Choice = int | str | None
"""A device by its index, by a part of its name, or the system's default."""

WORDS = {"input": "microphone", "output": "speaker"}


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
    sounddevice = sounddevice_module()
    with quietly():
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
    """The device of ``direction`` with that index or whose name contains that text.

    None is the system's default. Raises AudioDeviceError, listing the devices.
    """
    word = WORDS[direction]
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


def sounddevice_module() -> Any:
    """The module ``sounddevice``. Raises AudioDeviceError without the PortAudio library."""
    try:
        with quietly():
            import sounddevice
    except OSError as error:
        raise AudioDeviceError(
            f"sound needs the PortAudio library, which is not installed ({error}); on Debian and "
            "Ubuntu: apt-get install libportaudio2"
        ) from error
    return sounddevice
