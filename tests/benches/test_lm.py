"""The bench of the language model: its cases on a small model, and the picture of its record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benches import lm, lm_picture
from benches.record import Record
from encodec_rt.bitstream.container import StreamHeader
from encodec_rt.lm.tensors import LmConfig
from encodec_rt.streaming.codec import Codec
from tests.support.lms import likely_codes, random_lm
from tests.support.models import random_model, tiny_config


def test_every_case_is_measured_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Codec(random_model(tiny_config()))
    config = codec.config
    header = StreamHeader.for_model(
        config, config.num_quantizers, start="exact", codes_sha256=bytes(32)
    )
    widths = tuple(8 for _ in header.layers)
    model = random_lm(LmConfig(header.layers, config.codebook_size, widths, (1, 2)))
    model.save(tmp_path / "lm.safetensors")
    clip = np.zeros((config.audio_channels, 20 * config.hop_length), np.float32)
    monkeypatch.setattr(lm, "both_clips", lambda codec: [clip])
    monkeypatch.setattr(lm, "paper_frames", lambda books, frames: [1.0])
    monkeypatch.setattr(lm, "FRAME_RATE", 20)
    record = Record("lm", folder=tmp_path)
    lm.measure(record, codec, model, likely_codes(model, 60), lm=tmp_path / "lm.safetensors")
    path = record.save()
    codings = {entry.case.get("coding") for entry in record.cases}
    assert {"packed", "xz -9e of packed codes", "zstd -22 of packed codes"} < codings
    found = lm_picture.rates(json.loads(path.read_text()))
    assert len(found["packed"]) == len(found["language model"]) == len(header.layers)
    assert found["language model"][-1] < found["packed"][-1]
    steps = {rate: {"pesq_wb": rate, "visqol": rate} for rate in found["packed"]}
    lm_picture.draw(found, steps, {}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_of_two_records_the_later_score_is_shown() -> None:
    def scored(rate: float | None, pesq: float, codec: str = "opus") -> dict[str, object]:
        case = {"kind": "speech", "codec": codec, "kbps": rate}
        return {"case": case, "values": {"pesq_wb": pesq}}

    old = {"cases": [scored(6.0, 1.0), scored(12.0, 2.0), scored(None, 9.0)]}
    new = {"cases": [scored(6.0, 3.0), scored(6.0, 4.0, "encodec_rt")]}
    found = lm_picture.scores([old, new], "opus")
    assert found == {6.0: {"pesq_wb": 3.0}, 12.0: {"pesq_wb": 2.0}}
