"""`start_level=...`: sampling that begins with a draw of the model's mixture, as a user of the scripts sees it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.scripts import assert_refused, call

import evaluate
import sample
from diffusion.evaluation import table
from diffusion.evaluation.results import results_of
from diffusion.runs.checkpoints import read
from diffusion.runs.models import build_model
from diffusion.runs.parts import Parts
from diffusion.sampling import Pipeline
from diffusion.sampling.method import first_time, method_of
from diffusion.schedules import CosineSchedule, LinearSchedule, Schedule, VarianceExplodingSchedule, VPSchedule, time_of

FIXTURES = Path(__file__).parents[1] / "fixtures"
BEGUN = ("sampler=dpmpp_2m", "grid=karras", "steps=4", "start_level=2.5")


def tensor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def draw(folder: Path, name: str, *arguments: str) -> np.ndarray:
    outcome = call(sample, folder, f"ckpt={FIXTURES / name}.ckpt", "out=x.npz", "accelerator=cpu", *arguments)
    assert outcome.code == 0, outcome.err
    with np.load(folder / "x.npz") as file:
        images: np.ndarray = file[file.files[0]]
        return images


@pytest.mark.parametrize("schedule", [VarianceExplodingSchedule(), VPSchedule(), LinearSchedule(), CosineSchedule(100)])
def test_the_time_of_a_level_has_that_level_or_is_the_nearest_row(schedule: Schedule) -> None:
    for level in (0.3, 2.5, 5.0):
        t = time_of(schedule, level)
        count = schedule.timesteps
        if count is None:
            log_snr = schedule.log_snr(tensor(t))
            assert (-log_snr / 2).exp().item() == pytest.approx(level, rel=1e-9)
        else:
            rows = schedule.inverse(tensor(-2 * math.log(level))).item() * count
            assert round(t * count) == pytest.approx(t * count)
            assert abs(t * count - rows) <= 0.5
    assert time_of(schedule, 1e9) == time_of(schedule, math.inf) == 1


@pytest.mark.parametrize("name", ["residual", "latent"])
def test_it_draws_images_that_depend_on_seed_and_number_alone(name: str, tmp_path: Path) -> None:
    images = draw(tmp_path, name, *BEGUN, "n=5")
    assert np.array_equal(draw(tmp_path, name, *BEGUN, "n=3", "batch_size=2"), images[:3])
    for other in ("seed=1", "start_level=1.5", "start_level=inf"):
        assert (draw(tmp_path, name, *BEGUN, "n=5", other) != images).any()


def test_the_line_about_a_drawing_says_where_it_begins(tmp_path: Path) -> None:
    command = (f"ckpt={FIXTURES / 'residual.ckpt'}", *BEGUN[:3], "n=1", "out=a.png")
    drawn = call(sample, tmp_path, *command, "start_level=2.5")
    assert "DPMSolverPP2MSampler, 4 steps from the model's mixture at sigma / alpha = 2.5\n" in drawn.err
    varied = call(sample, tmp_path, *command, "init=a.png", "resize=true", "t_start=0.5")
    assert ", 4 steps from the image at sigma / alpha = " in varied.err


@pytest.mark.parametrize("grid", ["trailing", "uniform", "quadratic", "log_snr", "karras", "levels"])
def test_every_grid_goes_from_that_level_on(grid: str) -> None:
    config = read(FIXTURES / "residual.ckpt").config
    described = {"_target_": f"diffusion.samplers.{''.join(part.title() for part in grid.split('_'))}Grid"}
    described["_target_"] = described["_target_"].replace("Snr", "SNR")
    changes = {"sampler": {"_target_": "diffusion.samplers.DDIMSampler"}, "grid": described, "steps": 4}
    pipeline = Pipeline.load(str(FIXTURES / "residual.ckpt"), start_level=2.5, **changes)
    assert pipeline.times[0].item() == time_of(pipeline.denoiser.schedule, 2.5)
    assert len(pipeline.times) == 5
    changed = Parts(config | changes | {"start_level": 2.5})
    assert first_time(changed, pipeline.denoiser, 0.3) == 0.3  # what an image begins at comes first


def test_every_timestep_is_every_one_below_the_level() -> None:
    """Of a discrete schedule, whose `steps: null` is all rows."""
    schedule = {"_target_": "diffusion.schedules.LinearSchedule"}
    config = read(FIXTURES / "residual.ckpt").config | {"schedule": schedule, "steps": None, "start_level": 2.5}
    config |= {"sampler": {"_target_": "diffusion.samplers.DDPMSampler"}}
    config |= {"grid": {"_target_": "diffusion.samplers.TrailingGrid"}}
    model = build_model(config)
    _, times = method_of(Parts(config), model)  # type: ignore[arg-type]
    assert len(times) - 1 == round(1000 * time_of(LinearSchedule(), 2.5)) < 600


def test_a_score_says_where_its_samples_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "CLASSIFIER_STEPS", 5)
    arguments = (f"ckpt={FIXTURES / 'residual.ckpt'}", "n=100", "extractors=[random]", "split=train", "cache=null")
    for begins, out in (("2.5", "a"), ("inf", "b")):
        outcome = call(evaluate, tmp_path, *arguments, *BEGUN, f"start_level={begins}", f"out={out}")
        assert outcome.code == 0, outcome.err
    found = [next(results_of(next((tmp_path / out).glob("metrics*.json")), lambda group, part: None)) for out in "ab"]
    assert found[0].settings["start_level"] == 2.5
    assert "start_level" not in found[1].settings
    assert json.dumps(found[0].settings, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("digits", BEGUN, "mixture of denoiser=residual, and this model, a NetworkDenoiser, has none: leave it out"),
        ("residual", (*BEGUN, "start_level=0"), "start_level must be a level of sigma / alpha above 0"),
        ("residual", (*BEGUN, "start_level=nan"), "start_level must be a level of sigma / alpha above 0"),
        ("residual", (*BEGUN, "start_level=1000"), "start_level=1000 must lie between"),
        ("residual", (*BEGUN, "init=a.png", "t_start=0.4"), "both say where sampling begins: give one of them"),
        ("residual", (*BEGUN, "interpolate=[1,2]"), "goes from noise to data, and sampling begins between them"),
        ("residual", (*BEGUN, "init=a.png", "invert=true"), "goes from noise to data"),
        ("residual", (*BEGUN, "init=a.png", "mask=a.png"), "Inpainting does not steer: give start_level=inf"),
        (
            "residual",
            (*BEGUN, "init=a.png", "measure=blur", "blur_width=1"),
            "MeasurementGuidance does not steer: give",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_where_it_cannot_begin_so_is_refused(name: str, arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 255).save(tmp_path / "a.png")
    assert_refused(call(sample, tmp_path, f"ckpt={FIXTURES / name}.ckpt", "accelerator=cpu", *arguments), said)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a.png"]


@pytest.mark.parametrize("further", [("interpolate=[1,2]",), ("init=a.png", "mask=a.png")], ids=["interpolate", "mask"])
def test_what_is_advised_instead_draws(further: tuple[str, ...], tmp_path: Path) -> None:
    Image.new("L", (8, 8), 255).save(tmp_path / "a.png")
    outcome = call(
        sample, tmp_path, f"ckpt={FIXTURES / 'residual.ckpt'}", *BEGUN, *further, "start_level=inf", "out=x.gif"
    )
    assert outcome.code == 0, outcome.err
