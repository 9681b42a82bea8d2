"""What an extra brings is named, in one sentence, where it is missing."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tomllib
from typer.testing import CliRunner

from encodec_rt.cli import app
from encodec_rt.errors import BackendUnavailable, CodecError
from encodec_rt.extras import EXTRAS, needed_for

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {"visqol": "visqol-python"}
"""Where the name of a package is not the one that is imported."""


HOSTS = {"encodec_rt/agents": {"pipecat"}}
"""Frameworks that modules of a folder plug into: whoever imports those has the framework."""


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let every import of ``package`` fail as where it is not installed, and be tried again."""
    for name in list(sys.modules):
        if name.partition(".")[0] in (package, "encodec_rt_kernels"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


def requirements(lines: Iterable[str]) -> set[str]:
    return {re.split(r"[\[<>=; ]", line)[0] for line in lines}


def third_party(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"encodec_rt", "encodec_rt_kernels"}


def test_every_import_is_of_the_base_or_of_a_known_extra() -> None:
    base = requirements(PROJECT["dependencies"])
    for folder in ("encodec_rt", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            hosts = HOSTS.get(path.parent.relative_to(ROOT).as_posix(), set())
            unknown = third_party(path) - base - set(EXTRAS) - hosts
            assert not unknown, f"{path} imports {unknown}; put it in an extra and in EXTRAS"


@pytest.mark.parametrize("package", sorted(EXTRAS))
def test_the_extra_that_is_named_brings_the_package(package: str) -> None:
    lines = PROJECT["optional-dependencies"][EXTRAS[package]]
    assert DISTRIBUTIONS.get(package, package) in requirements(lines)


def command(*arguments: str) -> Callable[[Path], str]:
    """A command line that must be refused, -> what it says."""

    def run(folder: Path) -> str:
        done = CliRunner().invoke(app, [text.format(folder=folder) for text in arguments])
        assert done.exit_code == 2, done.output
        return done.output

    return run


def encode_m4a(folder: Path) -> str:
    (folder / "clip.m4a").write_bytes(b"\0\0\0\x18ftypM4A " + bytes(64))
    return command("encode", "{folder}/clip.m4a", "{folder}/out.ecdc")(folder)


def score(**settings: bool) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        audio = np.random.default_rng(0).standard_normal(48_000).astype(np.float32) / 10
        quality = import_module("encodec_rt.quality")
        with pytest.raises(CodecError) as refusal:
            quality.score(audio, audio, 48_000, kind="speech", **settings)
        return str(refusal.value)

    return run


def refused(make: Callable[[], object]) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        with pytest.raises(CodecError) as refusal:
            make()
        return str(refusal.value)

    return run


def converter() -> object:
    return import_module("encodec_rt.sound.drift").Converter()


def processor() -> object:
    return import_module("encodec_rt.sound.processing").VoiceProcessor(24_000, echo=True)


def hub_model() -> object:
    return import_module("encodec_rt").EncodecConfig.from_pretrained("someone/some-model")


def triton_ops() -> object:
    cpu = import_module("torch").device("cpu")
    return import_module("encodec_rt.streaming.backends.triton").triton_ops(cpu)


@pytest.mark.parametrize(
    ("package", "attempt"),
    [
        ("aiohttp", command("link", "listen")),
        ("aiortc", command("link", "call", "http://127.0.0.1:1")),
        ("cryptography", command("link", "token")),
        ("prometheus_client", command("serve")),
        ("av", encode_m4a),
        ("huggingface_hub", refused(hub_model)),
        ("livekit", refused(processor)),
        ("samplerate", refused(converter)),
        ("triton", refused(triton_ops)),
        ("pesq", score()),
        ("pystoi", score()),
        ("zimtohrli", score()),
        ("visqol", score(visqol=True)),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    package: str,
    attempt: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    hide(monkeypatch, package)
    said = attempt(tmp_path)
    assert f"encodec-rt[{EXTRAS[package]}]" in said
    assert "Traceback" not in said


def test_a_demo_without_matplotlib_says_so_and_leaves_its_sound(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hide(monkeypatch, "matplotlib")
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, np.full(8_000, 0.01, np.float32), 24_000)
    options = ["--fast", "--input", str(clip), "--out", str(tmp_path)]
    done = CliRunner().invoke(app, ["demo", *options])
    assert done.exit_code == 0
    assert "no picture" in done.stdout
    assert "encodec-rt[plots]" in done.stdout
    assert (tmp_path / "out.wav").is_file()
    assert not (tmp_path / "out.png").exists()


def test_an_import_that_fails_for_another_reason_is_not_hidden() -> None:
    with pytest.raises(BackendUnavailable, match="cannot be imported here"), needed_for("this"):
        raise ImportError("undefined symbol", name="av.audio")
    with pytest.raises(ModuleNotFoundError), needed_for("this"):
        import_module("encodec_rt.no_such_module")
