"""A model and a file are known by hashes of what they hold."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from encodec_rt.config import PRESETS
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.model.identity import (
    TRAINING_ONLY,
    file_sha256,
    identify,
    model_name,
    weights_sha256,
)
from encodec_rt.streaming.codec import Codec
from tests.support.models import random_model, tiny_config


def test_a_model_of_the_paper_has_its_name_and_others_the_hash_of_their_weights() -> None:
    for name, preset in PRESETS.items():
        assert model_name(EncodecModel(preset)) == name
    model = random_model(tiny_config())
    found = identify(model)
    assert found.weights_sha256 == weights_sha256(model)
    assert found.name == model_name(model) == f"encodec_rt-{found.codes_sha256[:8]}"


def test_the_hash_is_of_every_weight_and_of_nothing_that_only_training_reads() -> None:
    model = random_model(tiny_config())
    known = {weights_sha256(model)}
    training_only = ("inited", "cluster_size", "embed_avg")
    for name, tensor in model.state_dict().items():
        tensor.view(-1)[0] += 1
        digest = weights_sha256(model)
        assert (digest in known) == name.endswith(training_only), name
        known.add(digest)
    assert len(known) > len(model.quantizer.layers)


def test_the_hash_is_the_one_that_files_already_name() -> None:
    model = random_model(tiny_config())
    content = b"".join(
        name.encode() + tensor.numpy().tobytes()
        for name, tensor in sorted(model.state_dict().items())
        if not name.endswith(("inited", "cluster_size", "embed_avg"))
    )
    assert weights_sha256(model) == hashlib.sha256(content).hexdigest()


def test_a_model_has_one_hash_in_every_type_that_holds_its_weights() -> None:
    model = random_model(tiny_config()).half().float()
    digest = weights_sha256(model)
    for dtype in (torch.float16, torch.float64):
        assert weights_sha256(model.to(dtype)) == digest
    assert weights_sha256(model.bfloat16()) != digest


def test_a_codec_is_known_by_the_weights_it_was_made_of() -> None:
    model = random_model(tiny_config())
    known, codec = identify(model), Codec(model)
    model.state_dict()["quantizer.layers.0.codebook.embed"].zero_()
    assert codec.weights_sha256 == known.weights_sha256
    assert codec.codes_sha256 == known.codes_sha256
    assert codec.name == known.name


def test_the_hash_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(str(tmp_path / "a")).startswith("ba7816bf8f01cfea414140de5dae2223")


def test_codes_are_known_by_what_makes_them_and_not_by_the_decoder() -> None:
    model = EncodecModel(tiny_config())
    before = identify(model)
    with torch.no_grad():
        next(model.decoder.parameters()).add_(1)
    other_decoder = identify(model)
    assert other_decoder.codes_sha256 == before.codes_sha256
    assert other_decoder.name == before.name
    assert other_decoder.weights_sha256 != before.weights_sha256
    for name, tensor in model.state_dict().items():
        if name.startswith(("encoder.", "quantizer.")) and not name.endswith(TRAINING_ONLY):
            known = identify(model).codes_sha256
            tensor.view(-1)[0] += 1
            assert identify(model).codes_sha256 != known, name
