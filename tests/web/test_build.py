"""The committed WebAssembly is what its source compiles to."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from encodec_rt.export.blob import blob
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.web.build import WASM, build
from tests.portable.test_streams import GOLDEN

HARNESS = Path(__file__).with_name("golden.mjs")


def test_the_committed_wasm_is_what_the_source_compiles_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("ZIG_LOCAL_CACHE_DIR", str(tmp_path / "cache"))
    build(tmp_path / "codec.wasm")
    compiled = (tmp_path / "codec.wasm").read_bytes()
    assert hashlib.sha256(compiled).digest() == hashlib.sha256(WASM.read_bytes()).digest()


def test_the_wasm_imports_nothing() -> None:
    import wasmtime

    with wasmtime.Engine() as engine, wasmtime.Module.from_file(engine, str(WASM)) as module:
        assert module.imports == []


def test_v8_computes_the_bits_that_cranelift_computes(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    file = tmp_path / "model.bin"
    file.write_bytes(blob(EncodecModel.from_pretrained("default")))
    command = [node, str(HARNESS), str(WASM), str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(printed.stdout) == {"sha256": GOLDEN}
