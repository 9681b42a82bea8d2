from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from encodec_rt.config import EncodecConfig
from encodec_rt.errors import ConfigError, WeightsError
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.training.data import index_sources
from encodec_rt.training.initialisation import initialise
from encodec_rt.training.losses import si_sdr_db
from encodec_rt.training.presets import PRESETS
from encodec_rt.training.recipe import Stage, TrainingConfig
from encodec_rt.training.run import Budget, Run, read_checkpoint
from encodec_rt.training.sources import Source

ASSETS = Path(__file__).parents[2] / "encodec_rt" / "assets"
SMOKE = PRESETS["smoke"]
STEPS = 30


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    own = Source("bundled", "speech", "CC-BY", "two speakers", held_out_files=("speech_it.flac",))
    index_sources([(own, ASSETS)], folder)
    return folder


@pytest.fixture(scope="module")
def finished(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = smoke_run(tmp_path_factory.mktemp("run"), packed)
    run.train()
    return run


def smoke_run(
    folder: Path, packed: Path, config: TrainingConfig = SMOKE, steps: int = STEPS
) -> Run:
    return Run(folder, packed, config, Budget(steps=steps), log_steps=5, validation_items=2)


def curve(run: Run, name: str) -> list[float]:
    return [value for _, _, _, row, value in run.rows if row == name]


def test_the_loss_falls_and_every_part_takes_part(finished: Run) -> None:
    falling = curve(finished, "compressed")
    assert falling[-1] < 0.8 * falling[0]
    assert len(curve(finished, "discriminator")) >= 2
    assert len(curve(finished, "features")) >= 2
    assert curve(finished, "live_share")[-1] > 0.5
    (balancer,) = finished.trainer.balancers.values()
    assert set(balancer.state_dict()["norms"]) == set(balancer.weights)


def test_a_run_leaves_its_configuration_curves_and_audio(finished: Run) -> None:
    assert TrainingConfig.load(finished.folder / "training.json") == SMOKE
    assert (finished.folder / "curves.csv").read_text().startswith("step,progress,minutes,name")
    names = {path.name for path in (finished.folder / "validation").iterdir()}
    assert names == {f"0{n}-{what}.flac" for n in (0, 1) for what in ("original", "decoded")}
    assert not list(finished.folder.glob("*.part*"))


def test_every_checkpoint_is_scored_on_held_out_speech(finished: Run) -> None:
    scores = {row: value for _, _, _, row, value in finished.rows if row.startswith("held_out_")}
    assert 1.0 <= scores["held_out_pesq_wb"] < 2.0
    assert -1.0 <= scores["held_out_estoi"] < 0.9
    assert scores["held_out_band_2_4_khz_db"] < 20
    # The bundled recordings end at 8 kHz, so that nothing above can be compared.
    assert "held_out_band_8_11_khz_db" not in scores
    assert finished.validation.missing == ""


def test_a_run_without_the_speech_metrics_says_what_it_does_not_score(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pesq", None)
    lines: list[str] = []
    smoke_run(tmp_path, packed, steps=1).train(lines.append)
    assert "the package pesq" in lines[-1]
    assert "held_out_estoi" in lines[-1]


def test_a_frozen_encoder_and_its_codebooks_stay_bit_for_bit(
    finished: Run, packed: Path, tmp_path: Path
) -> None:
    adversarial = SMOKE.stages[-1]
    frozen = replace(SMOKE, stages=(replace(adversarial, frozen_encoder=True),))
    trained = finished.trainer.average
    run = Run(tmp_path, packed, frozen, Budget(steps=6), validation_items=1, start_from=trained)
    run.train()
    for model in (run.trainer.model, run.trainer.average):
        moved = {
            name
            for name, value in trained.state_dict().items()
            if not torch.equal(model.state_dict()[name], value)
        }
        assert moved
        assert all(name.startswith("decoder.") for name in moved)
    assert "discriminator" in read_checkpoint(tmp_path / "checkpoint.pt")["trainer"]


def test_freezing_midway_fixes_the_encoder_that_is_exported(packed: Path, tmp_path: Path) -> None:
    codec = replace(SMOKE.stages[1], until=0.5)
    alone = replace(SMOKE.stages[-1], frozen_encoder=True)
    run = smoke_run(tmp_path, packed, replace(SMOKE, stages=(codec, alone)), steps=8)
    run.train()
    exported = run.trainer.average.encoder.state_dict()
    for name, value in run.trainer.model.encoder.state_dict().items():
        assert torch.allclose(exported[name], value, rtol=1e-6, atol=0), name
    again = smoke_run(tmp_path, packed, replace(SMOKE, stages=(codec, alone)), steps=9)
    assert again.trainer.encoder_frozen


def test_a_stereo_model_in_chunks_is_trained_through_all_its_stages(tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).standard_normal((60_000, 2))
        soundfile.write(recordings / f"{number}.wav", 0.1 * noise * [1.0, 0.3], 48_000)
    own = Source("own", "music", "CC0", "nobody")
    packed = tmp_path / "packed"
    (source,) = index_sources([(own, recordings)], packed, sampling_rate=48_000, channels=2)
    assert source.hours("train") == pytest.approx(2 * 1.25 / 3600)
    preset = PRESETS["default-48k"]
    small = replace(
        preset.model,
        num_filters=4,
        hidden_size=16,
        codebook_dim=16,
        codebook_size=16,
        target_bandwidths=(0.6, 1.2),
    )
    stages = tuple(replace(stage, items=2) for stage in SMOKE.stages)
    config = replace(
        preset,
        model=small,
        stages=stages,
        bandwidth_shares=(),
        precision="float32",
        discriminator=SMOKE.discriminator,
        kmeans_batches=2,
    )
    run = Run(tmp_path / "run", packed, config, Budget(steps=6), validation_items=1)
    run.train()
    assert curve(run, "held_out_si_sdr_db")
    assert run.trainer.codebooks_started
    audio, rate = soundfile.read(tmp_path / "run" / "validation" / "00-decoded.flac")
    assert (rate, audio.shape) == (48_000, (144_000, 2))
    with pytest.raises(ConfigError, match="48000 Hz with 2 channels"):
        smoke_run(tmp_path / "other", packed)


def test_a_checkpoint_stores_nothing_twice(finished: Run) -> None:
    state = read_checkpoint(finished.folder / "checkpoint.pt")["trainer"]
    assert not any(name.endswith(".embed") for name in state["model"])
    assert set(state["average"]) == {name for name, _ in finished.trainer.model.named_parameters()}


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    finished: Run, packed: Path, tmp_path: Path
) -> None:
    class Interrupted(Exception):
        pass

    def stop_in_the_adversarial_stage(line: str) -> None:
        if line.startswith("step 25 "):
            raise Interrupted

    first = smoke_run(tmp_path, packed)
    with pytest.raises(Interrupted):
        first.train(stop_in_the_adversarial_stage)
    second = smoke_run(tmp_path, packed)
    assert second.trainer.step == 25
    second.train()
    wanted, got = finished.trainer.state_dict(), second.trainer.state_dict()
    for part in ("model", "average", "discriminator"):
        for name, value in wanted[part].items():
            assert torch.equal(value, got[part][name]), (part, name)
    for name, value in finished.trainer.average.state_dict().items():
        assert torch.equal(value, second.trainer.average.state_dict()[name]), name
    assert got["balancers"] == wanted["balancers"]
    for theirs, ours in zip(wanted["optimiser"], got["optimiser"], strict=True):
        assert theirs["state"].keys() == ours["state"].keys()
        for key, moments in theirs["state"].items():
            for name, value in moments.items():
                assert torch.equal(value, ours["state"][key][name]), (key, name)
    assert curve(second, "relative_l1") == curve(finished, "relative_l1")


def test_a_checkpoint_of_another_model_is_refused_by_name(finished: Run, packed: Path) -> None:
    other = replace(SMOKE, model=replace(SMOKE.model, num_filters=8))
    with pytest.raises(WeightsError, match="num_filters is 4 there and 8 here"):
        smoke_run(finished.folder, packed, other)


def test_a_new_run_may_begin_with_a_trained_models_weights(
    finished: Run, packed: Path, tmp_path: Path
) -> None:
    trained = finished.trainer.average
    run = Run(tmp_path, packed, SMOKE, Budget(steps=1), validation_items=1, start_from=trained)
    assert run.trainer.codebooks_started
    for name, value in trained.state_dict().items():
        assert torch.equal(run.trainer.model.state_dict()[name], value), name
    other = EncodecModel(replace(SMOKE.model, num_filters=8))
    with pytest.raises(WeightsError, match="num_filters is 8 there and 4 here"):
        run.trainer.start_from(other)


def test_a_new_run_may_begin_with_some_scales_of_a_trained_discriminator(
    finished: Run, packed: Path, tmp_path: Path
) -> None:
    theirs = read_checkpoint(finished.folder / "checkpoint.pt")
    trained = theirs["trainer"]["discriminator"]
    fewer = replace(SMOKE, discriminator=replace(SMOKE.discriminator, windows=(128,)))
    run = Run(tmp_path, packed, fewer, Budget(steps=1), discriminator_from=theirs)
    for name, value in run.trainer.adversary.discriminator.state_dict().items():
        assert torch.equal(value, trained[name.replace("scales.0", "scales.1")]), name
    for change, reason in (
        ({"windows": (64,)}, r"windows is \[\] there and \[64\] here"),
        ({"filters": 8}, "filters is 4 there and 8 here"),
    ):
        other = replace(SMOKE, discriminator=replace(SMOKE.discriminator, **change))
        with pytest.raises(WeightsError, match=reason):
            Run(tmp_path / "other", packed, other, Budget(steps=1), discriminator_from=theirs)
    alone = replace(SMOKE, stages=(replace(SMOKE.stages[1], until=1.0),))
    with pytest.raises(ConfigError, match="no stage of the run has one"):
        Run(tmp_path / "other", packed, alone, Budget(steps=1), discriminator_from=theirs)


def test_a_damaged_checkpoint_is_refused(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(WeightsError, match="not a training checkpoint"):
        smoke_run(tmp_path, packed)


def test_a_failed_write_keeps_the_last_checkpoint(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = smoke_run(tmp_path, packed, steps=2)
    run.train()
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full_disk(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run.save()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert read_checkpoint(tmp_path / "checkpoint.pt")["trainer"]["step"] == 2


def test_a_deadline_ends_the_schedule_on_time_after_an_interruption() -> None:
    budget = Budget(deadline=1_000.0)
    assert budget.progress(5, 0.0, 0.0, 500.0) == 0.5
    # Half the schedule was left at second 800; it is spread over the last 200.
    assert budget.progress(5, 0.5, 800.0, 900.0) == pytest.approx(0.75)
    assert budget.progress(5, 0.5, 800.0, 1_000.0) == 1.0
    assert budget.progress(5, 0.5, 1_200.0, 1_200.0) == 1.0
    for settings in ({}, {"steps": 3, "deadline": 4.0}, {"steps": 0}):
        with pytest.raises(ConfigError):
            Budget(**settings)


def test_variance_preserving_start_lets_the_signal_through() -> None:
    config = EncodecConfig(num_filters=8, hidden_size=32, pad_mode="constant")
    model = EncodecModel(config)
    initialise(model, torch.Generator().manual_seed(0))
    audio = 0.1 * torch.randn(2, 1, 4_800, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = [model.decoder(model.encoder(sign * audio)) for sign in (1, -1)]
    assert float((outputs[0] - outputs[1]).std()) > 0.005


def test_si_sdr_knows_the_ratio_it_is_given_at_any_gain() -> None:
    target = torch.zeros(1, 1, 200)
    target[..., ::2] = 1.0
    error = torch.zeros(1, 1, 200)
    error[..., 1::2] = 0.1
    assert float(si_sdr_db(3 * (target + error), target)[0]) == pytest.approx(20, abs=1e-3)


def test_presets_survive_json(tmp_path: Path) -> None:
    for name, preset in PRESETS.items():
        assert TrainingConfig.from_dict(preset.to_dict()) == preset, name
    assert PRESETS["default"].model.num_quantizers == 16


def test_impossible_runs_are_refused_in_words() -> None:
    stage = SMOKE.stages[0]
    with pytest.raises(ConfigError, match="exactly 1"):
        replace(SMOKE, stages=(replace(stage, until=0.5),))
    with pytest.raises(ConfigError, match="weighs loudness"):
        replace(SMOKE, stages=(Stage("a", 1.0, 4, 1e-3, {"loudness": 1.0}),))
    with pytest.raises(ConfigError, match="bandwidth_shares"):
        replace(SMOKE, bandwidth_shares=(1.0,))
    with pytest.raises(ConfigError, match="has no colour"):
        TrainingConfig.from_dict({**SMOKE.to_dict(), "colour": "red"})
