from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from encodec_rt.atomic import part_name, publish, replacing
from encodec_rt.errors import InputError


def test_a_device_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    with replacing("/dev/null", force=False) as part:
        part.write_text("gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(InputError, match="not a regular file"), replacing(tmp_path, force=True):
        pass
    with (
        pytest.raises(InputError, match="folder"),
        replacing(tmp_path / "none" / "x", force=True),
    ):
        pass


def test_a_link_keeps_pointing_to_the_new_content(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    with replacing(link, force=True) as part:
        part.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_what_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def write() -> None:
        with replacing(path, force=False) as part:
            part.write_text("ours")
            path.write_text("theirs")

    with pytest.raises(InputError, match="--force"):
        write()
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("links", [True, False])
def test_of_two_writers_to_one_name_one_wins_and_the_other_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, links: bool
) -> None:
    if not links:

        def refuse(*_: Path) -> None:
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "x"
    together = threading.Barrier(8)
    outcomes: list[tuple[str | None, str]] = []

    def write(text: str) -> None:
        try:
            with replacing(path, force=False) as part:
                part.write_text(text)
                together.wait()
            outcomes.append((text, ""))
        except InputError as error:
            outcomes.append((None, str(error)))

    threads = [threading.Thread(target=write, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [text for text, _ in outcomes if text is not None]
    assert sum("exists; --force replaces it" in error for _, error in outcomes) == 7
    assert path.read_text() == winner
    assert list(tmp_path.iterdir()) == [path]


def test_a_replaced_file_hands_on_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for mode in (0o600, 0o640, 0o444):
        path.unlink(missing_ok=True)
        path.write_text("old")
        path.chmod(mode)
        with replacing(path, force=True) as part:
            assert stat.S_IMODE(part.stat().st_mode) & 0o077 == 0
            part.write_text("new")
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert path.read_text() == "new"


def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "x", force=False) as part:
            part.write_text("new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", [b"a" * 255, b"\xff\xe9.wav", "ü".encode() * 127 + b"a"])
def test_the_longest_names_and_names_that_are_not_utf8_work(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    with replacing(path, force=False) as part:
        part.write_text("new")
    assert os.listdir(os.fsencode(tmp_path)) == [name]
    assert len(os.fsencode(part_name(path, ".part.wav", hidden=False).name)) <= 255


def test_an_error_without_a_name_gets_that_of_the_target(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def fail(*arguments: int | str) -> None:
        with replacing(path, force=False):
            raise OSError(*arguments)

    with pytest.raises(OSError, match="No space") as caught:
        fail(28, "No space left on device")
    assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="other") as caught:
        fail(28, "No space left on device", "other")
    assert caught.value.filename == "other"
    assert list(tmp_path.iterdir()) == []


def test_publishing_leaves_the_part_where_the_name_is_taken(tmp_path: Path) -> None:
    part, target = tmp_path / "part", tmp_path / "target"
    part.write_text("ours")
    target.write_text("theirs")
    with pytest.raises(InputError, match="--force"):
        publish(part, target, force=False)
    assert (part.read_text(), target.read_text()) == ("ours", "theirs")
    publish(part, target, force=True)
    assert target.read_text() == "ours"
