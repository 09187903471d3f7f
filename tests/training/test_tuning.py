"""A trained run is tuned to draw in one or two calls, with the model and the data that it has."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.configs import resolved
from support.scripts import assert_refused, call

import evaluate
import export
import sample
import train
from diffusion.build import Unfit, build, canonical
from diffusion.denoisers import Denoiser, ResidualDenoiser
from diffusion.runs.checkpoints import read
from diffusion.runs.models import planned
from diffusion.runs.parts import Parts
from diffusion.samplers import ConsistencySampler, LevelsGrid
from diffusion.sampling import Pipeline
from diffusion.sampling.method import first_time, method_of
from diffusion.training.previews import preview_pipeline
from diffusion.training.run import Run
from diffusion.training.tuning import _start_level

FIXTURES = Path(__file__).parents[1] / "fixtures"
RESIDUAL = f"init_from={FIXTURES / 'residual.ckpt'}"
BRIEF = ("experiment=few_step", "trainer.max_steps=3", "val_every=3", "preview_every=0", "accelerator=cpu")


def stored(name: str) -> dict[str, Any]:
    return read(FIXTURES / f"{name}.ckpt").config


@pytest.mark.parametrize("name", ["residual", "enlarging"])
def test_a_tuning_takes_data_and_model_of_the_run_it_begins_from(name: str) -> None:
    config, theirs = resolved("experiment=few_step", f"init_from={FIXTURES / name}.ckpt"), stored(name)
    for part in ("dataset", "network", "schedule", "denoiser", "condition_dropout"):
        assert canonical(config[part]) == canonical(theirs[part]), part
    assert config["objective"]["sigma_data"] == theirs["dataset"]["recipe"]["sigma_data"]
    assert (config["steps"], config["sampler"]["_target_"]) == (2, "diffusion.samplers.ConsistencySampler")
    assert theirs["clip"] and not config["clip"]
    sigma_data = theirs["dataset"]["recipe"]["sigma_data"]
    assert config["start_level"] == config["objective"]["times"]["highest"] == round(3.5 * sigma_data, 4)


def test_a_model_without_a_prior_is_tuned_and_drawn_from_noise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ResidualDenoiser, "has_prior", False)
    config = resolved("experiment=few_step", RESIDUAL)
    assert config["start_level"] is config["objective"]["times"]["highest"] is None
    said = "begins with a draw of the mixture of denoiser=residual, and this model, a ResidualDenoiser, has none"
    assert_refused(call(train, tmp_path, *BRIEF, RESIDUAL, "start_level=2.5"), said)
    said = "up to 2 alone, and sampling would begin with noise, at t = 1: leave objective.times.highest out"
    outcome = call(train, tmp_path, *BRIEF, RESIDUAL, "objective.times.highest=2")
    assert_refused(outcome, said)
    assert "denoiser=" not in outcome.err.partition("this would do")[2]  # which belongs to the model


def test_training_at_low_noise_alone_is_for_a_model_that_is_tuned(tmp_path: Path) -> None:
    arguments = ("experiment=fast_digits", "+objective.times.highest=2", "start_level=2", "accelerator=cpu")
    assert_refused(call(train, tmp_path, *arguments), "objective.times.highest is for a model that is tuned")
    arguments = ("experiment=autoencoder_fashion", "dataset=digits", "start_level=2", "accelerator=cpu")
    assert_refused(call(train, tmp_path, *arguments), "start_level= does nothing for an autoencoder")


def test_a_level_that_the_schedule_has_not_is_none_to_begin_at() -> None:
    """`schedule=geometric` of small noise."""
    schedule = {"_target_": "diffusion.schedules.VarianceExplodingSchedule", "sigma_max": 2.0}
    model = planned(stored("residual") | {"schedule": schedule})
    assert _start_level(model, 0.6) is None
    assert _start_level(model, 0.1) == pytest.approx(0.35)


@pytest.mark.parametrize("grid", ["trailing", "uniform", "quadratic", "log_snr", "karras"])
def test_any_grid_goes_with_it(grid: str) -> None:
    assert resolved("experiment=few_step", RESIDUAL, f"grid={grid}")["start_level"] > 2


@pytest.mark.parametrize("timesteps", [50, 100, 1000])
def test_a_discrete_schedule_is_tuned_up_to_the_row_that_sampling_begins_at(timesteps: int) -> None:
    schedule = {"_target_": "diffusion.schedules.LinearSchedule", "timesteps": timesteps}
    config = resolved("experiment=few_step", RESIDUAL) | {"schedule": schedule}
    model = planned(config)
    assert isinstance(model, Denoiser)
    begins = first_time(Parts(config), model)
    u = torch.linspace(0.001, 0.999999, 5000, dtype=torch.float64)
    assert build(config["objective"], "objective").times(model.schedule, u).max() == begins


def test_sampling_that_begins_above_the_levels_of_the_tuning_is_refused(tuned: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 255).save(tmp_path / "a.png")
    for arguments, said in (
        (("start_level=inf",), "would begin with noise, at t = 1: give start_level="),
        (("start_level=20",), "would begin above that, at start_level=20: give start_level="),
        (("sampler=ddim", "start_level=inf"), "would begin with noise, at t = 1: give start_level="),
        (("init=a.png", "t_start=0.99"), "would begin above that, at t_start=0.99: give t_start=0."),
        (("init=a.png", "mask=a.png", "start_level=inf"), "begin with an image, init=photo.png t_start=0."),
    ):
        assert_refused(call(sample, tmp_path, f"ckpt={tuned}", "out=x.png", *arguments), said)
    advised = call(sample, tmp_path, f"ckpt={tuned}", "out=x.png", "init=a.png", "t_start=0.99").err.split("t_start=")[
        -1
    ]
    for arguments in (("init=a.png", f"t_start={advised.split()[0]}"), ("start_level=1.5",)):
        outcome = call(sample, tmp_path, f"ckpt={tuned}", "out=x.png", *arguments)
        assert outcome.code == 0, outcome.err
    assert_refused(
        call(train, tmp_path, *BRIEF, RESIDUAL, "objective.times.highest=1"), "sampling would begin above that"
    )


def test_what_would_do_in_the_place_of_a_grid_that_does_not_is_no_other_kind_of_sampler(tuned: Path) -> None:
    grid = {"_target_": "diffusion.samplers.LevelsGrid", "levels": [0.5, 0.2]}
    with pytest.raises(Unfit) as raised:
        Pipeline.load(str(tuned), grid=grid)
    ddim = {
        "sampler": {"_target_": "diffusion.samplers.DDIMSampler"},
        "grid": {"_target_": "diffusion.samplers.LogSNRGrid"},
    }
    with pytest.raises(ValueError, match="it needs a posterior mean"):
        raised.value.attempt(raised.value.config | ddim)


def test_the_run_that_is_tuned_may_be_number_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lightning_logs" / "digits" / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(FIXTURES / "residual.ckpt", folder / "last.ckpt")
    monkeypatch.chdir(tmp_path)
    assert canonical(resolved("experiment=few_step", "init_from=0")["network"]) == canonical(
        stored("residual")["network"]
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a tuned run."""
    folder = tmp_path_factory.mktemp("tuned")
    outcome = call(train, folder, *BRIEF, RESIDUAL, "train_images=64", "objective.images_per_stage=64")
    assert outcome.code == 0, outcome.err
    return folder / "lightning_logs" / "digits" / "version_0" / "checkpoints" / "last.ckpt"


def test_it_trains_and_draws_in_two_calls_or_one(tuned: Path, tmp_path: Path) -> None:
    weights, before = (read(path).part("denoiser.network.") for path in (tuned, FIXTURES / "residual.ckpt"))
    assert any(not torch.equal(weights[name], before[name]) for name in weights)
    prior, before = (read(path).part("denoiser.prior.") for path in (tuned, FIXTURES / "residual.ckpt"))
    assert all(torch.equal(prior[name], before[name]) for name in prior)  # what was fitted to the data stays
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # its own sampler is not tried on Gaussians, where it would be far off
        outcome = call(sample, tmp_path, f"ckpt={tuned}", "out=x.png")
    assert "ConsistencySampler, 2 steps" in outcome.err
    chosen = ("steps=3", "grid.levels=[1.5,0.5]", "grid=levels")
    for further in (("steps=1", "label=3", "guidance=2"), chosen):
        outcome = call(sample, tmp_path, f"ckpt={tuned}", "out=x.png", *further)
        assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("condition_dropout", [0, 0.1])
@pytest.mark.parametrize("typed", [(), ("steps=3", "grid.levels=[1.8,1.2]"), ("sampler=ddim", "steps=9")], ids=str)
def test_its_previews_and_scores_while_it_trains_are_drawn_as_its_samples_will_be(
    condition_dropout: float, typed: tuple[str, ...]
) -> None:
    config = resolved("experiment=few_step", RESIDUAL, *typed) | {"condition_dropout": condition_dropout}
    run = Run(parts := Parts(config), None)  # type: ignore[arg-type]
    preview, scores = run.watchers
    few = typed[0] == "steps=3" if typed else True
    _, times = method_of(parts, parts.model)  # type: ignore[arg-type]
    expected = times if few else LevelsGrid()(parts.model.schedule, 2, times[0].item())  # type: ignore[attr-defined]
    assert torch.equal(preview.times, expected)  # type: ignore[attr-defined]
    assert torch.equal(scores.times, expected)  # type: ignore[attr-defined]
    assert preview.steps == scores.steps == len(expected) - 1  # type: ignore[attr-defined]
    pipeline = preview_pipeline(run.module, (1, 8, 8), clip=True, steps=2, times=expected)
    assert pipeline.sample(3).isfinite().all()
    assert isinstance(pipeline.sampler, ConsistencySampler)


def test_other_samplers_draw_from_it_with_a_warning(tuned: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="DDIMSampler takes answers of this model for the mean"):
        outcome = call(sample, tmp_path, f"ckpt={tuned}", "out=x.png", "sampler=ddim", "steps=2")
    assert outcome.code == 0


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        (evaluate, ["likelihood=ode"], "has no likelihood"),
        (export, ["out=page.html"], "a page has no sampler=consistency"),
        (export, ["out=x.onnx"], "is trained for sampling that begins with its mixture: export the model that it was"),
        (
            sample,
            ["init=a.png", "mask=a.png"],
            "does not steer: begin with an image, init=photo.png t_start=0.",
        ),
        (export, ["out=folder"], "sampler=consistency"),
        (sample, ["interpolate=[1,2]"], "need the whole way between noise and data, and this model is trained at low"),
        (sample, ["measure=blur", "blur_width=1", "init=a.png"], "restore with the model that it was tuned from"),
        (sample, [f"guide={FIXTURES / 'residual.ckpt'}", "guidance=1.5"], "their answers are not of one kind"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_tuned_model_cannot_do_is_refused(
    script: Any, arguments: list[str], said: str, tuned: Path, tmp_path: Path
) -> None:
    Image.new("L", (8, 8), 255).save(tmp_path / "a.png")
    assert_refused(call(script, tmp_path, f"ckpt={tuned}", *arguments), said)


def test_a_model_that_is_not_tuned_is_not_drawn_in_a_call() -> None:
    sampler = {"_target_": "diffusion.samplers.ConsistencySampler"}
    with pytest.raises(Unfit, match="the one call of another gives the mean of the data; .*experiment=few_step"):
        Pipeline.load(str(FIXTURES / "residual.ckpt"), sampler=sampler, steps=2)


@pytest.mark.parametrize(
    ("levels", "said"), [([0.8, 0.2], "set steps=3, or other levels"), ([100.0], "levels must lie between")]
)
def test_levels_that_do_not_fit_are_refused(levels: list[float], said: str, tuned: Path) -> None:
    with pytest.raises(Unfit, match=said):
        Pipeline.load(str(tuned), grid={"_target_": "diffusion.samplers.LevelsGrid", "levels": levels})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "tunes a trained model: add init_from="),
        (["init_from=nowhere"], "there is no checkpoint nowhere"),
        (
            [f"init_from={FIXTURES / 'digits.ckpt'}"],
            "a model of denoiser=edm, residual, v or flow can",
        ),
        ([f"init_from={FIXTURES / 'learned.ckpt'}"], "does not train the variance"),
        ([f"init_from={FIXTURES / 'classifier.ckpt'}"], "is a loss of a RegressionDenoiser"),
        ([f"init_from={FIXTURES / 'autoencoder.ckpt'}"], "is a loss of a RegressionDenoiser"),
        ([f"init_from={FIXTURES / 'swissroll.ckpt'}"], "is a loss of a RegressionDenoiser"),
        ([RESIDUAL, "network.widths=[8]"], "network.widths= belongs to the model that is tuned"),
        ([RESIDUAL, "dataset=fashion"], "dataset= belongs to the model that is tuned"),
        ([RESIDUAL, "schedule=vp"], "schedule= belongs to the model that is tuned"),
        ([RESIDUAL, "timesteps=50"], "timesteps= belongs to the model that is tuned"),
        ([RESIDUAL, "autoencoder=last"], "autoencoder= belongs to the model that is tuned"),
    ],
    ids=lambda value: " ".join(Path(word).name for word in value) if isinstance(value, list) else "",
)
def test_what_cannot_be_tuned_is_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    assert_refused(call(train, tmp_path, *BRIEF, *arguments), said)
    assert not (tmp_path / "lightning_logs").exists()


def test_the_name_of_its_own_dataset_may_be_typed(tmp_path: Path) -> None:
    outcome = call(train, tmp_path, *BRIEF, RESIDUAL, "dataset=digits", "download=false", "trainer.max_steps=1")
    assert_refused(outcome, "download= does nothing for dataset=digits")


def test_a_model_of_latents_keeps_its_codec(tmp_path: Path) -> None:
    path = FIXTURES / "latent.ckpt"
    outcome = call(train, tmp_path, *BRIEF, f"init_from={path}", "train_images=64", "trainer.max_steps=1")
    assert outcome.code == 0, outcome.err
    found = read(tmp_path / "lightning_logs" / "digits" / "version_0" / "checkpoints" / "last.ckpt")
    before, after = (checkpoint.part("objective.codec.") for checkpoint in (read(path), found))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    outcome = call(sample, tmp_path, "ckpt=last", "out=x.png")
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
def test_a_resumed_tuning_is_the_run_that_was_not_cut_off(tmp_path: Path) -> None:
    settings = (*BRIEF, RESIDUAL, "train_images=64", "objective.images_per_stage=128", "learning_rate.decay=none")
    for folder, limits in (("whole", [6]), ("parts", [3, 6])):
        (tmp_path / folder).mkdir()
        for limit in limits:
            again = ("resume=last",) if limit != limits[0] else settings
            outcome = call(train, tmp_path / folder, *again, f"trainer.max_steps={limit}")
            assert outcome.code == 0, outcome.err
    whole, parts = (
        read(tmp_path / folder / "lightning_logs/digits/version_0/checkpoints/last.ckpt").state
        for folder in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_a_tuned_stage_of_a_cascade_enlarges_in_two_calls(tmp_path: Path) -> None:
    outcome = call(train, tmp_path, *BRIEF, f"init_from={FIXTURES / 'enlarging.ckpt'}", "train_images=64")
    assert outcome.code == 0, outcome.err
    stages = f"ckpt=[{FIXTURES / 'base.ckpt'},last]"
    outcome = call(sample, tmp_path, stages, "out=x.png", "n=4")
    assert outcome.code == 0, outcome.err
