"""From one sample to another through their noise, and from an image to its noise."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.scripts import TINY, assert_refused, call

import sample
import train
from diffusion.build import ConfigError
from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.samplers import DDIMSampler, DDPMSampler, HeunSampler, LogSNRGrid
from diffusion.sampling import Pipeline
from diffusion.sampling.interpolation import check_deterministic, inverted, morphed, slerp
from diffusion.schedules import VPSchedule

RUN = "lightning_logs/digits/version_0"


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_arc_leads_from_one_end_to_the_other_at_an_even_pace() -> None:
    begin, end = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    assert torch.equal(slerp(begin, end, 0.0), begin)
    torch.testing.assert_close(slerp(begin, end, 1.0), end)
    third = math.radians(30)
    expected = torch.tensor([[math.cos(third), math.sin(third)], [2 * math.sin(third), 2 * math.cos(third)]])
    torch.testing.assert_close(slerp(begin, end, 1 / 3), expected)


def test_between_points_of_one_length_all_have_it_and_the_line_would_not() -> None:
    a, b = draw(2, 5, 3, 4).unbind()
    a, b = (x / x.flatten(1).norm(dim=1)[:, None, None] for x in (a, b))
    for share in (0.2, 0.5, 0.9):
        torch.testing.assert_close(slerp(a, b, share).flatten(1).norm(dim=1), torch.ones(5))
    assert (torch.lerp(a, b, 0.5).flatten(1).norm(dim=1) < 0.95).any()


def test_along_one_direction_it_is_the_line() -> None:
    a = draw(3, 4)
    torch.testing.assert_close(slerp(a, 3 * a, 0.25), 1.5 * a)
    assert torch.equal(slerp(a, a, 0.7), a)


def exact(steps: int = 60) -> Pipeline:
    """A pipeline of a correlated Gaussian in the plane, float64."""
    factor = torch.tensor([[0.7, 0.0], [0.4, 0.3]], dtype=torch.float64)
    mean = torch.tensor([[0.6, -0.3]], dtype=torch.float64)
    denoiser = GaussianMixtureDenoiser(VPSchedule(), mean, (factor @ factor.mT)[None])
    return Pipeline(denoiser, HeunSampler(), LogSNRGrid()(denoiser.schedule, steps), (2,), 0)


def test_data_become_their_exact_noise() -> None:
    # The ODE carries x - alpha m along: in the covariance's basis by the ratio of the deviations at its two ends.
    pipeline = exact(300)
    denoiser: GaussianMixtureDenoiser = pipeline.denoiser  # type: ignore[assignment]
    basis, spread = denoiser.eigenvectors[0], denoiser.eigenvalues[0]
    x0 = denoiser.means + 0.5 * draw(6, 2).double()
    (a_low, s_low), (a_high, s_high) = (denoiser.schedule(pipeline.times[i]) for i in (-2, 0))
    ratio = ((a_high**2 * spread + s_high**2) / (a_low**2 * spread + s_low**2)).sqrt()
    expected = a_high * denoiser.means + (a_low * (x0 - denoiser.means) @ basis * ratio) @ basis.T
    torch.testing.assert_close(inverted(pipeline, x0), expected, rtol=2e-3, atol=2e-3)


def test_what_is_drawn_from_an_inverted_image_is_the_image() -> None:
    x0 = exact().denoiser.means + 0.5 * draw(6, 2).double()
    errors = []
    for steps in (10, 60):
        pipeline = exact(steps)
        *_, last = pipeline.states(torch.arange(6), x=inverted(pipeline, x0))
        errors.append((last.x_t - x0).abs().max().item())
    assert errors[1] < 0.01
    assert errors[1] < errors[0]


def test_the_first_and_the_last_frame_are_the_two_seeds_samples() -> None:
    pipeline = exact()
    index = torch.arange(3)
    frames = morphed(pipeline, pipeline.start(index, 1), pipeline.start(index, 2), frames=5, batch_size=4)
    assert frames.shape == (5, 3, 2)
    torch.testing.assert_close(frames[0], pipeline.sample(3, seed=1))
    torch.testing.assert_close(frames[-1], pipeline.sample(3, seed=2))
    halfway = pipeline.states(index, x=slerp(pipeline.start(index, 1), pipeline.start(index, 2), 0.5))
    torch.testing.assert_close(frames[2], list(halfway)[-1].x_t)


@pytest.mark.parametrize("sampler", [DDPMSampler(), DDIMSampler(0.5)])
def test_stochastic_samplers_are_refused(sampler: DDPMSampler | DDIMSampler) -> None:
    pipeline = exact()
    pipeline.sampler = sampler
    with pytest.raises(ConfigError, match="interpolate= needs a deterministic sampler, such as sampler=ddim"):
        check_deterministic(pipeline, "interpolate=")


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, and two images."""
    folder = tmp_path_factory.mktemp("run")
    assert call(train, folder, *TINY, "preview_every=0").code == 0
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    for name, image in zip("ab", pixels, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    Image.fromarray(pixels[0]).resize((16, 8)).save(folder / "wide.png")
    return folder


BASE = (f"ckpt={RUN}", "sampler=ddim", "steps=4")


@pytest.mark.parametrize(
    "more", [("interpolate=[1,2]", "n=2"), ("interpolate=[a.png,b.png]",), ("interpolate=[a.png,2]",)]
)
def test_an_interpolation_is_an_animation_of_samples(folder: Path, more: tuple[str, ...]) -> None:
    outcome = call(sample, folder, *BASE, *more, "frames=6", "out=morph.gif")
    assert outcome.code == 0, outcome.err
    with Image.open(folder / "morph.gif") as gif:
        assert 2 <= gif.n_frames <= 6  # equal neighbours are merged
    assert outcome.out.strip().endswith("morph.gif")


def test_an_inversion_writes_the_noise_and_says_how_near_it_leads_back(folder: Path) -> None:
    outcome = call(sample, folder, *BASE, "init=a.png", "invert=true")
    assert outcome.code == 0, outcome.err
    assert "the image drawn from this noise differs from a.png by" in outcome.err
    with np.load(folder / RUN / "samples" / "noise.npz") as file:
        assert file["arr_0"].shape == (1, 1, 8, 8)
        assert file["arr_0"].dtype == np.float32
        assert np.isfinite(file["arr_0"]).all()
        assert file["arr_0"].any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("interpolate=[1,2]", "interpolate= needs a deterministic sampler, such as sampler=ddim"),
        ("init=a.png invert=true", "invert=true needs a deterministic sampler"),
        ("sampler=ddim interpolate=[1]", "interpolate must be two seeds or images, like [1,2]"),
        ("sampler=ddim interpolate=[1,1]", "interpolate must be two seeds or images"),
        ("sampler=ddim interpolate=[1,-2]", "the seeds of interpolate must be from 0"),
        ("sampler=ddim interpolate=[1,2] frames=1", "frames=1: interpolate= draws at least 2"),
        ("sampler=ddim interpolate=[1,2] out=x.png", "out=x.png: interpolate= writes .gif or .webp"),
        ("sampler=ddim interpolate=[a.png,b.png] n=3", "n=3: interpolate=a.png is one image"),
        ("sampler=ddim interpolate=[a.png,none.png]", "interpolate=none.png cannot be read as an image"),
        ("sampler=ddim interpolate=[a.png,wide.png]", "interpolate=wide.png is 16x8 pixels"),
        ("sampler=ddim interpolate=[1,2] init=a.png t_start=0.5", "init=a.png does not go with interpolate="),
        ("sampler=ddim interpolate=[1,2] t_end=0.3", "t_end=0.3 does not go with interpolate="),
        ("sampler=ddim interpolate=[1,2] seed=3", "seed= does nothing for interpolate="),
        ("sampler=ddim interpolate=[1,2] show=x0", "show= does nothing for interpolate="),
        ("sampler=ddim invert=true", "invert=true turns one image into its noise: add init=photo.png"),
        ("sampler=ddim init=a.png invert=true out=x.png", "out=x.png: invert=true writes .npz"),
        ("sampler=ddim init=a.png invert=true t_start=0.5", "t_start=0.5 does not go with invert=true"),
        ("sampler=ddim init=a.png invert=true n=4", "n= does nothing for invert=true"),
        ("sampler=ddim init=a.png invert=true devices=2 accelerator=cpu", "invert=true runs on one device, not on 2"),
        ("sampler=ddim init=a.png invert=true batch_size=3", "batch_size= does nothing for invert=true"),
        ("sampler=ddim interpolate=[1,2] devices=2 accelerator=cpu", "interpolate= runs on one device, not on 2"),
        ("sampler=ddim interpolate=[1,2] frames=1000000000", "frames=1000000000 takes"),
        ("sampler=ddim init=a.png invert=true label=all", "label=all: here is one image, so give the one label"),
    ],
)
def test_what_cannot_be_interpolated_gets_one_line_and_leaves_nothing(folder: Path, arguments: str, said: str) -> None:
    before = sorted(folder.rglob("*"))
    assert_refused(call(sample, folder, f"ckpt={RUN}", "steps=4", *arguments.split()), said)
    assert sorted(folder.rglob("*")) == before
