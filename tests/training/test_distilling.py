"""A trained run is distilled into one that draws in a call or two: what differs from a tuning by consistency."""

from pathlib import Path

import pytest
import torch
from support.configs import resolved
from support.scripts import assert_refused, call

import sample
import train
from diffusion.runs.checkpoints import read

FIXTURES = Path(__file__).parents[1] / "fixtures"
RESIDUAL = f"init_from={FIXTURES / 'residual.ckpt'}"
BRIEF = (
    *("experiment=few_step_matching", "val_every=3", "preview_every=0", "accelerator=cpu", "train_images=64"),
    *("batch_size=8", "objective.warmup_images=8", "learning_rate.warmup_images=0", "learning_rate.decay=none"),
)
LAST = "lightning_logs/digits/version_0/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a run of six steps, and below it, in parts/, with the same run cut off after three."""
    folder = tmp_path_factory.mktemp("distilled")
    (folder / "parts").mkdir()
    for place, limits in ((folder, [6]), (folder / "parts", [3, 6])):
        for limit in limits:
            again = ("resume=last",) if limit != limits[0] else (*BRIEF, RESIDUAL)
            outcome = call(train, place, *again, f"trainer.max_steps={limit}")
            assert outcome.code == 0, outcome.err
    return folder


def test_a_resumed_run_is_the_one_that_was_not_cut_off(distilled: Path) -> None:
    whole, parts = (read(folder / LAST) for folder in (distilled, distilled / "parts"))
    assert whole.state.keys() == parts.state.keys()
    assert all(torch.equal(whole.state[name], parts.state[name]) for name in whole.state)


def test_the_generator_and_the_critic_learn_and_the_teacher_is_the_model_before(distilled: Path) -> None:
    before, after = read(FIXTURES / "residual.ckpt").part("ema.network."), read(distilled / LAST)
    teacher, critic, generator = (
        after.part(f"{name}.")
        for name in ("objective.objective.teacher", "objective.objective.critic", "denoiser.network")
    )
    assert all(torch.equal(teacher[name], before[name]) for name in before)
    for learned in (critic, generator):
        assert any(not torch.equal(learned[name], before[name]) for name in before)
    assert not any(
        name.startswith("objective.objective.teacher.prior") for name in after.state
    )  # the networks alone are kept


def test_it_draws_in_one_call_and_in_more(distilled: Path, tmp_path: Path) -> None:
    for typed in (("steps=1",), (), ("steps=3", "grid=levels", "grid.levels=[1.8,1.2]")):
        outcome = call(sample, tmp_path, f"ckpt={distilled / LAST}", "out=x.png", "n=4", *typed)
        assert outcome.code == 0, outcome.err
    assert_refused(
        call(sample, tmp_path, f"ckpt={distilled / LAST}", "out=x.png", "start_level=inf"),
        "would begin with noise, at t = 1: give start_level=2.6",
    )


def test_it_begins_where_the_tuning_of_consistency_does() -> None:
    levels = [resolved(f"experiment={name}", RESIDUAL)["start_level"] for name in ("few_step", "few_step_matching")]
    assert levels[0] == levels[1]
    config = resolved("experiment=few_step_matching", RESIDUAL, "start_level=1.5")
    assert config["objective"]["start_level"] == config["start_level"] == 1.5


@pytest.mark.parametrize("experiment", ["few_step", "few_step_matching"])
def test_a_model_that_is_distilled_is_not_tuned_again(experiment: str, distilled: Path, tmp_path: Path) -> None:
    outcome = call(train, tmp_path, f"experiment={experiment}", f"init_from={distilled / LAST}")
    assert_refused(outcome, "is tuned for few calls already, and gives no mean of the data", "init_from=")
    assert not (tmp_path / "lightning_logs").exists()


def test_a_run_that_ends_before_the_generator_learns_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ends after 16 images, and until objective.warmup_images=16 the model learns"):
        call(train, tmp_path, *BRIEF, RESIDUAL, "objective.warmup_images=16", "trainer.max_steps=2")


@pytest.mark.parametrize(
    "typed",
    [
        ("grid=karras",),
        ("grid=levels", "grid.levels=[1.5]"),
        ("optimizer=adamw",),
        ("objective.steps=2", "grid=karras"),
    ],
    ids=" ".join,
)
def test_other_grids_and_optimizers_can_be_chosen(typed: tuple[str, ...]) -> None:
    assert resolved("experiment=few_step_matching", RESIDUAL, *typed)["steps"] == 2


def test_near_noise_levels_are_not_near_each_other() -> None:
    near = [
        resolved("experiment=few_step_matching", RESIDUAL, *typed)["grid"]["near"]
        for typed in ((), ("start_level=inf",))
    ]
    assert near == [True, False]


def test_what_is_said_of_a_level_names_the_setting_that_bounds_it(tmp_path: Path) -> None:
    settings = ("start_level=inf", "objective.start_level=1", "trainer.max_steps=2")
    assert_refused(call(train, tmp_path, *BRIEF, RESIDUAL, *settings), "up to 1 alone", "give start_level=1")


@pytest.mark.parametrize("name", ["latent", "enlarging"])
def test_latents_and_stages_of_cascades_are_distilled(name: str, tmp_path: Path) -> None:
    path = FIXTURES / f"{name}.ckpt"
    outcome = call(train, tmp_path, *BRIEF, f"init_from={path}", "trainer.max_steps=2")
    assert outcome.code == 0, outcome.err
    stages = f"ckpt=[{FIXTURES / 'base.ckpt'},last]" if name == "enlarging" else "ckpt=last"
    outcome = call(sample, tmp_path, stages, "out=x.png", "n=4")
    assert outcome.code == 0, outcome.err
