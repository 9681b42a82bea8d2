"""What was written once is read for ever: the files in tests/golden are never changed."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from encodec_rt.bitstream.coding import CodeCoder, Coding, coder_for
from encodec_rt.bitstream.container_reader import CodeBlock, PacketReader, read_codes
from encodec_rt.lm.coding import LmCoder
from encodec_rt.lm.files import lm_by_hash
from tests.bitstream.test_container import assert_accepted

GOLDEN = Path(__file__).parents[1] / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())


def links(data: bytes) -> Iterator[dict[str, int | str]]:
    reader = PacketReader(io.BytesIO(data))
    while True:
        header = reader.header
        if header.coding is Coding.LANGUAGE_MODEL:
            coder: CodeCoder = LmCoder(lm_by_hash(header.coder_sha256, GOLDEN))
        else:
            coder = coder_for(
                header.coding, header.coder_sha256, header.codebook_size, folder=GOLDEN
            )
        digest, frames, end = hashlib.sha256(), 0, 0
        for block in read_codes(reader, header, coder, salvage=False):
            assert isinstance(block, CodeBlock)
            digest.update(repr(block.scale).encode() + block.codes.astype("<u2").tobytes())
            frames, end = frames + len(block.codes), block.end
        yield {"frames": frames, "samples": end, "sha256": digest.hexdigest()}
        if not reader.next_link():
            return


@pytest.mark.parametrize("name", INDEX)
def test_a_golden_file_decodes_to_its_codes(name: str) -> None:
    assert list(links((GOLDEN / f"{name}.encodec").read_bytes())) == INDEX[name]


def test_every_golden_file_is_in_the_index() -> None:
    assert {path.stem for path in GOLDEN.glob("*.encodec")} == set(INDEX)


@pytest.mark.skipif(shutil.which("oggz") is None, reason="oggz-tools is not installed")
@pytest.mark.parametrize("name", INDEX)
def test_independent_tools_accept_a_golden_file(name: str) -> None:
    assert_accepted(GOLDEN / f"{name}.encodec")
