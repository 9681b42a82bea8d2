from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encodec_rt.errors import AudioDeviceError
from encodec_rt.sound import portaudio
from encodec_rt.sound.devices import Direction, find_device, list_devices
from encodec_rt.sound.portaudio import PortAudio
from tests.support.narrow import present
from tests.support.virtual_audio import (
    MICROPHONE,
    SPEAKER,
    VirtualCard,
    VirtualSystem,
    device,
    install,
)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> VirtualCard:
    return install(monkeypatch, VirtualCard(MICROPHONE, SPEAKER, device("Room Microphone")))


def test_the_list_says_what_each_device_is_and_which_is_the_default(card: VirtualCard) -> None:
    desk, speaker, room = list_devices()
    assert (desk.index, desk.name, desk.input_channels, desk.output_channels) == (
        0,
        "Desk Microphone",
        1,
        0,
    )
    assert (desk.host, desk.rate_hz) == ("Virtual", 24_000)
    assert [entry.default_for for entry in (desk, speaker, room)] == [("input",), ("output",), ()]


@pytest.mark.parametrize("choice", [2, "Room Microphone", "room", "ROOM mic"])
def test_a_device_is_found_by_index_or_by_a_part_of_its_name(
    card: VirtualCard, choice: int | str
) -> None:
    assert find_device(choice, "input").index == 2


def test_no_choice_is_the_systems_default(card: VirtualCard) -> None:
    assert find_device(None, "input").name == "Desk Microphone"
    assert find_device(None, "output").name == "Desk Speaker"


def test_without_a_default_the_first_of_its_direction_is_taken(card: VirtualCard) -> None:
    card.default.device = [-1, -1]
    assert find_device(None, "output").name == "Desk Speaker"


def test_a_whole_name_wins_over_a_part_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, VirtualCard(device("USB Audio 2"), device("USB Audio")))
    assert find_device("usb audio", "input").index == 1


def test_a_name_that_fits_several_is_refused_with_their_indices(card: VirtualCard) -> None:
    with pytest.raises(AudioDeviceError, match=r"0 'Desk Microphone', 2 'Room Micro.*give the ind"):
        find_device("microphone", "input")


@pytest.mark.parametrize("choice", ["kitchen", 9, "Desk Speaker", 1])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    card: VirtualCard, choice: int | str
) -> None:
    with pytest.raises(AudioDeviceError, match="available: 0 'Desk Microphone', 2 'Room"):
        find_device(choice, "input")


@pytest.mark.parametrize(("direction", "word"), [("input", "microphone"), ("output", "speaker")])
def test_a_machine_without_any_device_is_told_so(
    monkeypatch: pytest.MonkeyPatch, direction: Direction, word: str
) -> None:
    card = VirtualCard()
    card.plugged = []
    card._initialize()
    install(monkeypatch, card)
    assert list_devices() == []
    with pytest.raises(AudioDeviceError, match=f"no {word} was found; plug one in"):
        find_device(None, direction)


def test_a_missing_portaudio_is_one_sentence_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(AudioDeviceError, match="apt-get install libportaudio2") as caught:
        list_devices()
    assert "\n" not in str(caught.value)


def test_streams_are_opened_at_the_models_rate_with_blocks_of_one_frame(card: VirtualCard) -> None:
    system = VirtualSystem(card)
    source, sink = system.open_source(), system.open_sink()
    assert (source.name, source.rate_hz, source.channels) == ("Desk Microphone", 24_000, 1)
    assert (sink.name, sink.latency_ms) == ("Desk Speaker", 20.0)
    card.sleep(0.1)
    assert source.waiting == 7 * 320
    assert sink.counts.samples == 7 * 320


@pytest.mark.parametrize(
    ("rates", "channels", "opened"),
    [
        ((24_000, 48_000), (1, 2), (24_000, 1)),
        ((48_000,), (1, 2), (48_000, 1)),
        ((24_000, 44_100), (2,), (24_000, 2)),
        ((44_100,), (2,), (44_100, 2)),
        ((48_000,), (8,), (48_000, 8)),
        ((24_000,), (6, 8), (24_000, 8)),
    ],
)
def test_a_device_is_opened_as_near_to_the_models_format_as_it_goes(
    monkeypatch: pytest.MonkeyPatch,
    rates: tuple[int, ...],
    channels: tuple[int, ...],
    opened: tuple[int, int],
) -> None:
    card = VirtualCard(
        device("In", inputs=max(channels), rates=rates, channels=channels),
        device("Out", inputs=0, outputs=max(channels), rates=rates, channels=channels),
    )
    system = VirtualSystem(install(monkeypatch, card))
    for end in (system.open_source(), system.open_sink()):
        assert (end.rate_hz, end.channels) == opened


@pytest.mark.parametrize("rate_hz", [48_000, 44_100])
def test_a_device_that_refuses_its_own_rate_is_opened_at_a_common_one(
    monkeypatch: pytest.MonkeyPatch, rate_hz: int
) -> None:
    card = device("Array", inputs=8, rates=(rate_hz,), channels=(8,))
    system = VirtualSystem(
        install(monkeypatch, VirtualCard(card | {"default_samplerate": 16_000.0}))
    )
    source = system.open_source()
    assert (source.rate_hz, source.channels) == (rate_hz, 8)


def test_a_device_that_takes_nothing_is_named_with_all_that_was_tried_and_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stubborn = device("Old Phone", inputs=6, rates=(8_000,)) | {"default_samplerate": 11_025.0}
    system = VirtualSystem(install(monkeypatch, VirtualCard(stubborn)))
    with pytest.raises(
        AudioDeviceError,
        match=r"'Old Phone' cannot be opened at 24000, 11025, 48000 or 44100 samples per second "
        r"with 1, 2 or 6 channels \(Invalid sample rate\)",
    ):
        system.open_source()


def test_a_format_that_is_accepted_and_then_does_not_open_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = VirtualCard(device("Array", inputs=8, rates=(24_000, 48_000), channels=(1, 8)))
    made = card.RawInputStream

    def refuse_mono(**settings: Any) -> Any:
        if settings["channels"] == 1:
            raise card.PortAudioError("Unanticipated host error")
        return made(**settings)

    monkeypatch.setattr(card, "RawInputStream", refuse_mono)
    source = VirtualSystem(install(monkeypatch, card)).open_source()
    assert (source.rate_hz, source.channels) == (24_000, 8)


def test_all_channels_of_a_microphone_array_are_heard_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound = np.full(24_000, 8000, np.int16)
    card = VirtualCard(device("Array", inputs=8, channels=(8,)), sound=sound)
    source = VirtualSystem(install(monkeypatch, card)).open_source()
    card.sleep(0.1)
    heard = source.read(source.waiting)
    assert len(heard) > 1000
    assert np.allclose(heard[-1000:], 8000 / 32768)


def test_a_device_that_another_program_holds_is_named(
    monkeypatch: pytest.MonkeyPatch, card: VirtualCard
) -> None:
    def refuse(**settings: int) -> None:
        raise card.PortAudioError("Device unavailable")

    monkeypatch.setattr(card, "RawInputStream", refuse)
    with pytest.raises(AudioDeviceError, match="'Desk Microphone' cannot be opened"):
        PortAudio(24_000).open_source()


def test_a_lost_device_is_found_again_by_name_though_its_index_changed(card: VirtualCard) -> None:
    system = VirtualSystem(card, source=2)
    assert system.open_source().name == "Room Microphone"
    room = card.plugged[2]
    card.unplug(room)
    system.rescan()
    with pytest.raises(AudioDeviceError, match="'Room Microphone' is gone; plug it in again"):
        system.open_source()
    card.plugged.insert(0, room)
    system.rescan()
    assert system.open_source().name == "Room Microphone"
    assert card.opened[-1][1] == "Room Microphone"


def test_importing_the_package_needs_no_portaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    for name in [name for name in sys.modules if name.startswith("encodec_rt.live")]:
        monkeypatch.delitem(sys.modules, name)
    import encodec_rt.live.duplex

    assert callable(encodec_rt.live.duplex.Duplex)


def test_a_sound_system_that_hangs_is_left_behind_with_one_error(
    monkeypatch: pytest.MonkeyPatch, card: VirtualCard
) -> None:
    monkeypatch.setattr(portaudio, "HANG_S", 0.05)
    forgotten: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "unregister", forgotten.append)
    system = VirtualSystem(card)
    source = system.open_source()
    card.hang()
    with pytest.raises(AudioDeviceError, match=r"closing the .*'Desk Microphone': .*not answer"):
        source.close()
    assert forgotten == [card._exit_handler]
    for call in (system.open_sink, system.rescan):
        with pytest.raises(AudioDeviceError, match="not answer; check that its service runs"):
            call()
    card.answers.set()
    present(system._hanging).join()
    system.open_sink().close()
