"""`sample.py` with guide=, guide_weights=, snapshots and clip=dynamic, as a user sees it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.scripts import TINY, assert_refused, call
from test_steering import draw

import sample
import train
from diffusion.runs.checkpoints import find
from diffusion.runs.trained import load_model
from diffusion.sampling import Pipeline
from diffusion.settings.sampling import Steering

MODEL, WORSE, SPREAD, POINTS = (f"lightning_logs/{name}" for name in ("digits/version_0", "digits/version_1",
                                "digits/version_2", "swissroll/version_0"))  # fmt: skip
LATENTS = Path(__file__).parents[1] / "fixtures" / "latent.ckpt"
QUICK = ("preview_every=0", "trainer.max_steps=6", "val_every=6", "lr=0.02", "learning_rate.warmup_images=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny runs: a model with snapshots; one that is worse; one on another schedule; one of points."""
    folder = tmp_path_factory.mktemp("runs")
    small = [option for option in TINY if not option.startswith("network.")]
    for arguments in (
        (*TINY, *QUICK, "ema=power", "ema.snapshots=3"),
        (*TINY, *QUICK, "trainer.max_steps=1", "network.widths=[4,4]"),
        (
            *TINY,
            *QUICK,
            "trainer.max_steps=1",
            "schedule=variance_exploding",
            "timesteps=null",
            "steps=4",
            "denoiser=edm",
        ),
        (
            *small,
            *QUICK,
            "trainer.max_steps=1",
            "val_every=1",
            "dataset=swissroll",
            "network.width=8",
            "network.depth=1",
        ),
    ):
        outcome = call(train, folder, *arguments)
        assert outcome.code == 0, outcome.err
    return folder


def test_a_worse_model_guides_and_its_answers_are_what_d_leads_away_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    guided = Pipeline.load(MODEL, steering=Steering(guidance=3.0, guide=WORSE), clip=False).denoiser
    model, worse = (load_model(find(run)) for run in (MODEL, WORSE))
    t, x_t = torch.tensor(0.5, dtype=torch.float64), torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(guided(x_t, t), worse(x_t, t) + 3 * (model(x_t, t) - worse(x_t, t)))
    base = (f"ckpt={MODEL}", "n=2", f"guide={WORSE}", "guidance=4")
    assert (draw(folder, *base) != draw(folder, f"ckpt={MODEL}", "n=2")).any()
    assert (draw(folder, *base) != draw(folder, *base, "guidance_interval=[0.5,2]")).any()


def test_other_weights_of_the_model_guide_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    snapshots = sorted(int(path.stem) for path in (folder / MODEL / "averages").glob("*.pt"))
    t, x_t = torch.tensor(0.5, dtype=torch.float64), torch.randn(2, 1, 8, 8)
    for weights in ("raw", snapshots[0]):
        steering = Steering(guidance=3.0, guide_weights=weights)
        guided = Pipeline.load(MODEL, steering=steering, clip=False).denoiser
        model, worse = load_model(find(MODEL)), load_model(find(MODEL), weights=weights)
        with torch.no_grad():
            expected = worse(x_t, t) + 3 * (model(x_t, t) - worse(x_t, t))
            torch.testing.assert_close(guided(x_t, t), expected)
            assert (expected - model(x_t, t)).abs().max() > 1e-4


def test_a_snapshot_is_the_first_average_of_its_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    step = min(int(path.stem) for path in (folder / MODEL / "averages").glob("*.pt"))
    stored = torch.load(folder / MODEL / "averages" / f"{step}.pt", weights_only=True)["averages"][0]
    for name, value in load_model(find(MODEL), weights=step).named_parameters():
        assert torch.equal(value, stored[name].float()), name
    assert (draw(folder, f"ckpt={MODEL}", "n=2", f"weights={step}") != draw(folder, f"ckpt={MODEL}", "n=2")).any()


def test_a_guide_of_another_schedule_is_met_at_equal_log_snr(folder: Path) -> None:
    inside = (f"ckpt={MODEL}", "n=2", f"guide={SPREAD}", "guidance=4", "guidance_interval=[0.1,50]")
    assert (draw(folder, *inside) != draw(folder, f"ckpt={MODEL}", "n=2")).any()


def test_dynamic_thresholding_brings_samples_back_into_the_range(folder: Path) -> None:
    base = (f"ckpt={MODEL}", "n=4", f"guide={WORSE}", "guidance=30")
    clamped, dynamic = (draw(folder, *base, f"clip={clip}") for clip in ("true", "dynamic"))
    saturated = [np.isin(images, (0, 255)).mean() for images in (clamped, dynamic)]
    assert saturated[1] < 0.5 * saturated[0]
    wrapped = draw(folder, *base, "clip=false", "wrapper=dynamic_threshold")
    assert np.array_equal(wrapped, dynamic)
    other = draw(folder, *base, "clip=false", "wrapper=dynamic_threshold", "wrapper.share=0.5")
    assert (other != dynamic).any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (f"ckpt={MODEL} guide={WORSE}", "guide= does nothing at guidance=1: add guidance=1.5"),
        (f"ckpt={MODEL} guide_weights=raw", "guide_weights= does nothing at guidance=1"),
        (f"ckpt={MODEL} guide={MODEL} guidance=2", f"guide={MODEL} is the model itself, which has no effect"),
        (f"ckpt={MODEL} guide_weights=ema guidance=2", "guide_weights=ema is the model itself"),
        (f"ckpt={MODEL} guide={MODEL}/checkpoints/best.ckpt guidance=2", "is the model itself, which has no effect"),
        (
            f"ckpt={MODEL} guide={WORSE} guidance=2 guidance_interval=[1e8,1e9]",
            "guidance_interval=[1e+08,1e+09] has no noise level of the sampler: the nearest sigma / alpha is",
        ),
        (
            f"ckpt={MODEL} guide={WORSE} guidance=1e30 clip=false out=x.png",
            "9 of 9 samples are not finite: the model or",
        ),
        (f"ckpt={POINTS} wrapper=dynamic_threshold", "scales pixels into [-1, 1], and this model draws points"),
        (f"ckpt={LATENTS} wrapper=dynamic_threshold", "scales pixels into [-1, 1], and this model draws latents"),
        (f"ckpt={MODEL} sampler=ddim eta=-1", "sampler.eta must lie in [0, 1], got -1\n"),
        (f"ckpt={MODEL} grid=karras grid.rho=-1", "grid.rho must be positive and finite, got -1; 7 is usual\n"),
        (f"ckpt={MODEL} guide_weights=4711 guidance=2", "weights=4711 is a step at which lightning_logs/digits"),
        (f"ckpt={WORSE} guide_weights=3 guidance=2", "has no snapshot: a run with ema=power takes them"),
        (
            f"ckpt={MODEL} guide={POINTS} guidance=2",
            f"guide={POINTS} draws data of shape (2,), and the model (1, 8, 8)",
        ),
        (f"ckpt={SPREAD} guide={MODEL} guidance=2", "the guide cannot answer everywhere: its noise levels sigma"),
        (f"ckpt={MODEL} guide=none.ckpt guidance=2", "there is no checkpoint none.ckpt"),
        (f"ckpt={MODEL} guide={WORSE} classifier=1 guidance=2", f"guide={WORSE} and classifier=1: give one of them"),
        (f"ckpt=[{MODEL},{WORSE}] guide={WORSE} guidance=2", "guide= belongs to a single model"),
        (f"ckpt={MODEL} clip=dynamik", "clip must be true, false or dynamic, got 'dynamik'"),
        (f"ckpt={POINTS} clip=dynamic", "clip=dynamic brings pixels into [-1, 1]"),
    ],
)
def test_what_cannot_guide_gets_one_line_and_leaves_nothing(folder: Path, arguments: str, said: str) -> None:
    before = sorted(folder.rglob("*"))
    assert_refused(call(sample, folder, *arguments.split(), "out=never.png"), said)
    assert sorted(folder.rglob("*")) == before
