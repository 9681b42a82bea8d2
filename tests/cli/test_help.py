"""What --help shows on a terminal of 80 columns."""

from __future__ import annotations

import re
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from encodec_rt.cli import app, habits
from tests.cli.test_foolish import FOUND

WIDTH = 80
LIVE = """\
Usage: encodec-rt live [OPTIONS]

  Hear the microphone through the codec, until Ctrl-C.

Options:
  -b, --bandwidth NUMBER        Bandwidth in kbps, one of the model's.
                                [default: 6.0]
  --record OUT                  Record the decoded audio.
  --save OUT.encodec            Record the codes.
"""


def shown(*arguments: str) -> str:
    return (
        CliRunner(env={"COLUMNS": str(WIDTH)})
        .invoke(app, [*arguments, "--help"], prog_name="encodec-rt")
        .stdout
    )


@pytest.mark.parametrize("name", ["", "train", "data", "link", "export", *FOUND])
def test_no_option_and_no_sentence_is_cut(name: str) -> None:
    text = shown(*name.split())
    assert max(map(len, text.splitlines())) <= WIDTH
    assert not re.search(r"[a-z]\.\.\.$|…", text, re.MULTILINE)
    if name in FOUND:
        for parameter in FOUND[name].params:
            for option in (*parameter.opts, *getattr(parameter, "secondary_opts", ())):
                assert not option.startswith("-") or option in text
    for type_of_python in ("<bool>", "<float", "<int"):
        assert type_of_python not in text


def test_what_is_used_most_comes_first() -> None:
    assert shown("live").startswith(LIVE)


def test_only_commands_that_write_files_can_be_forced_to_replace_them() -> None:
    with_force = {name for name in FOUND if "--force" in shown(*name.split())}
    writers = {"encode", "decode", "roundtrip", "scale", "cut", "cat", "live"}
    exports = {"export onnx", "export web", "data join", "link listen", "link call"}
    assert with_force == writers | exports


def test_every_group_lists_its_commands() -> None:
    root = typer.main.get_command(app)
    for name in root.commands:  # type: ignore[attr-defined]
        assert f"\n  {name} " in shown()


def test_an_option_without_a_default_keeps_its_name_where_python_wraps_its_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def command(end: Annotated[float | None, "to"] = None, start: float = 0.0) -> None:
        """Does nothing."""

    told = habits.hints_of(command)
    # What Python 3.10 gives for a default of None.
    wrapped = {**told, "end": told["end"] | None}
    monkeypatch.setattr(habits, "get_type_hints", lambda *_, **__: dict(wrapped))
    assert wrapped != told
    assert habits.hints_of(command) == told
