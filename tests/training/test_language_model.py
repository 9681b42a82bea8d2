from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from encodec_rt.errors import ConfigError, InputError, WeightsError
from encodec_rt.lm.integer import IntegerLm
from encodec_rt.lm.tensors import LmConfig
from encodec_rt.lm.trainable import TrainableLm
from encodec_rt.training.language_model import LmRecipe, bits_per_code, train_lm
from encodec_rt.types import Codes

CONFIG = LmConfig((1, 1), 16, (24, 16), (1, 2))


def chained(frames: int, seed: int) -> Codes:
    """Codes [frames, 2]: the first walks by a step or two, the second follows the first."""
    rng = np.random.default_rng(seed)
    first = np.cumsum(rng.integers(1, 3, frames)) % 16
    second = (first + rng.integers(0, 2, frames) * 5) % 16
    return np.stack([first, second], axis=1).astype(np.uint16)


@pytest.fixture(scope="module")
def trained() -> TrainableLm:
    torch.set_num_threads(1)
    clips = [chained(400, seed) for seed in range(20)]
    recipe = LmRecipe(steps=150, batch=8, frames=60, learning_rate=1e-2)
    return train_lm(clips, CONFIG, recipe)


def test_a_model_learns_what_there_is_to_learn(trained: TrainableLm) -> None:
    bits = bits_per_code(trained.export(), [chained(600, 99)], 600)
    # Each code is one of two, so that 1 bit of 4 is left.
    assert (bits < 1.25).all()


def test_in_whole_numbers_it_predicts_as_it_was_trained(trained: TrainableLm) -> None:
    codes = chained(300, 98)
    with torch.no_grad():
        floating = trained(torch.from_numpy(codes.astype(np.int64))[None]).numpy()
    whole = bits_per_code(trained.export(), [codes], 300)
    assert np.abs(whole - floating).max() < 0.02


def test_an_exported_model_is_the_same_after_its_file(trained: TrainableLm, tmp_path: Path) -> None:
    model = trained.export(bytes(range(32)))
    model.save(tmp_path / "lm.safetensors")
    again = IntegerLm.load(tmp_path / "lm.safetensors")
    assert (again.sha256, again.codes_sha256) == (model.sha256, bytes(range(32)))


def test_too_little_to_train_on_is_refused() -> None:
    with pytest.raises(InputError, match="299 frames of 2 codebooks to train on; at least 300"):
        train_lm([chained(299, 0)], CONFIG, LmRecipe(steps=1))


def test_clips_that_are_shorter_than_a_piece_are_seen_one_by_one(trained: TrainableLm) -> None:
    clips = [torch.from_numpy(chained(n, n).astype(np.int64)) for n in (3, 1, 40, 16)]
    ages = torch.cat([torch.arange(len(clip)) for clip in clips])[None]
    with torch.no_grad():
        alone = torch.stack([trained(clip[None]) * len(clip) for clip in clips]).sum(0) / 60
        joined = trained(torch.cat(clips)[None], ages)
        leaking = trained(torch.cat(clips)[None])
    torch.testing.assert_close(joined, alone)
    assert (leaking - alone).abs().max() > 0.01
    short = [chained(20, seed) for seed in range(5)]
    recipe = LmRecipe(steps=1, batch=1, frames=60)
    assert bits_per_code(train_lm(short, CONFIG, recipe).export(), short, 600).max() < 6


def test_training_goes_on_where_an_exported_model_stands(trained: TrainableLm) -> None:
    exported = trained.export(bytes(range(32)))
    again = TrainableLm(CONFIG)
    again.start_from(exported)
    whole = again.export(bytes(range(32)))
    for name, tensor in exported.tensors.items():
        assert np.abs(whole.tensors[name].astype(int) - tensor.astype(int)).max() <= 1, name
    clips = [chained(400, seed) for seed in range(4)]
    recipe = LmRecipe(steps=1, batch=2, frames=60, learning_rate=1e-6)
    on = train_lm(clips, CONFIG, recipe, start_from=exported).export()
    codes = [chained(600, 99)]
    before, after = (bits_per_code(model, codes, 600) for model in (exported, on))
    assert np.abs(before - after).max() < 0.01
    other = LmConfig((1, 1), 16, (24, 8), (1, 2))
    with pytest.raises(ConfigError, match="this one has"):
        train_lm(clips, other, recipe, start_from=exported)


def test_an_interrupted_training_goes_on_to_the_same_model(tmp_path: Path) -> None:
    clips = [chained(400, seed) for seed in range(4)]
    recipe = LmRecipe(steps=12, batch=2, frames=60)
    whole = train_lm(clips, CONFIG, recipe).export()

    class Cut(Exception):
        pass

    def cut(share: float, bits: float) -> None:
        if share >= 0.5:
            raise Cut

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Cut):
        train_lm(clips, CONFIG, recipe, cut, checkpoint=path)
    shares: list[float] = []
    on = train_lm(clips, CONFIG, recipe, lambda share, _: shares.append(share), checkpoint=path)
    assert shares[0] == 7 / 12
    assert on.export().sha256 == whole.sha256


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    clips = [chained(400, 0)]
    path = tmp_path / "checkpoint.safetensors"
    train_lm(clips, CONFIG, LmRecipe(steps=1, batch=1, frames=60), checkpoint=path)
    other = LmConfig((1, 1), 16, (24, 8), (1, 2))
    with pytest.raises(WeightsError, match="train in another folder"):
        train_lm(clips, other, LmRecipe(steps=1, frames=60), checkpoint=path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match="not a checkpoint of a language model"):
        train_lm(clips, CONFIG, LmRecipe(steps=1, frames=60), checkpoint=path)
