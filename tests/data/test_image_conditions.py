"""What a model is given of an image: how it is made, that it is used, and that the exact conditional comes out."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.conditions import Edges, Grey, ImageCondition, LowRes, Masked, blurred
from data.images import Digits
from data.module import DataModule
from data.stream import Batches, Images, Request
from diffusion.denoisers import Condition, Denoiser, Prediction, dropped
from diffusion.networks.unet import UNet
from diffusion.samplers import DDIMSampler, HeunSampler, KarrasGrid
from diffusion.sampling import Pipeline
from diffusion.sampling.cascade import joined
from diffusion.sampling.conditions import Rows
from diffusion.schedules import Schedule, VarianceExplodingSchedule


def images(n: int = 6, channels: int = 3, side: int = 8) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def image(condition: ImageCondition, x: Tensor, serials: Tensor | None = None) -> Tensor:
    return condition(x, 0, torch.arange(len(x)) if serials is None else serials)["image"]


# --- how conditions are made ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [LowRes(2), LowRes(4, "bicubic"), Grey(), Masked(), Edges()])
def test_the_last_channel_says_where_something_is_known_and_the_rest_is_zero_where_not(
    condition: ImageCondition,
) -> None:
    conditioned = image(condition, images())
    assert conditioned.shape == (6, condition.channels((3, 8, 8)), 8, 8)
    known = conditioned[:, -1:]
    assert ((known == 0) | (known == 1)).all()
    assert (conditioned[:, :-1] * (1 - known) == 0).all()
    assert (known == 1).all() or isinstance(condition, Masked)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_small_picture_or_one_of_a_multiple_of_its_size_is_the_condition_of_the_image_that_it_was_made_from(
    mode: str,
) -> None:
    condition, x = LowRes(4, mode), images(1)
    small = x.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((3, 5))
    for picture in (small, x, small.repeat_interleave(6, 2).repeat_interleave(6, 3)):
        torch.testing.assert_close(condition.of_picture(picture[0], (3, 8, 8))["image"], image(condition, x))
    torch.testing.assert_close(image(condition, 0 * x + 0.3)[:, :3], 0 * x + 0.3)


def test_luminance_and_a_grey_picture() -> None:
    pure = torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2)
    torch.testing.assert_close(image(Grey(), pure)[:, 0, 0, 0], torch.tensor([0.299, 0.587, 0.114]))
    x = images(1)
    grey = image(Grey(), x)[0, :1]
    torch.testing.assert_close(Grey().of_picture(grey.expand(3, -1, -1), (3, 8, 8))["image"][:, :1], grey[None])


def test_edges_are_dark_lines_where_black_meets_white() -> None:
    x = -torch.ones(1, 1, 4, 6)
    x[..., 3:] = 1
    line = image(Edges(), x)[0, 0]
    assert line[0].tolist() == [1, 1, -1, -1, 1, 1]
    torch.testing.assert_close(line, line[:1].expand(4, 6))
    torch.testing.assert_close(image(Edges(), x.transpose(2, 3))[0, 0], line.T)
    assert torch.equal(Edges().of_picture(line[None], (1, 4, 6))["image"], image(Edges(), x))


def test_a_hole_is_a_rectangle_of_its_serial_alone_and_a_mask_makes_the_same() -> None:
    condition, x = Masked(0.25, 0.5), images(200, side=16)
    conditioned = image(condition, x)
    hole = 1 - conditioned[:, 3]
    for rows in (hole.amax(2), hole.amax(1)):
        sides = rows.sum(1)
        assert set(sides.tolist()) == {4, 5, 6, 7, 8}
        inside = rows.cumsum(1) * rows  # in one piece: it counts up without a gap
        assert (inside.amax(1) == sides).all()
        assert (rows.mean(0) > 0.02).all()  # anywhere
    assert torch.equal(hole, hole.amax(2)[:, :, None] * hole.amax(1)[:, None])
    assert torch.equal(conditioned[:, :3], x * (1 - hole)[:, None])
    part = torch.tensor([150, 3])
    assert torch.equal(image(condition, x[part], part), conditioned[part])
    assert torch.equal(condition.of_picture(x[7], (3, 16, 16), hole[7][None])["image"][0], conditioned[7])
    assert not torch.equal(condition(x, 1, torch.arange(200))["image"], conditioned)


def test_a_blur_keeps_what_is_even_and_has_its_width() -> None:
    point = torch.zeros(3, 1, 41, 41)
    point[:, 0, 20, 20] = 1
    width = torch.tensor([0.0, 1.5, 3.0])
    spread = blurred(point, width)[:, 0]
    distance = (torch.arange(41.0) - 20) ** 2
    torch.testing.assert_close(torch.einsum("bij,i->b", spread, distance), width**2, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.einsum("bij,j->b", spread, distance), width**2, rtol=1e-3, atol=1e-3)
    assert torch.equal(spread[0], point[0, 0])
    torch.testing.assert_close(blurred(torch.ones(3, 2, 5, 7), width), torch.ones(3, 2, 5, 7))


def test_augmentation_adds_noise_of_the_level_that_it_tells_and_is_each_samples_own() -> None:
    condition, serials = LowRes(2, noise=0.4), torch.arange(4000)
    conditioned = condition.augmented(torch.zeros(4000, 1, 4, 4), 0, serials)
    level = conditioned["level"]
    assert level.min() >= 0
    assert level.max() <= 0.4
    assert abs(level.mean() - 0.2) < 4 * 0.4 / 12**0.5 / 4000**0.5
    corners = conditioned["image"][:, 0, [0, 0, 3, 3], [0, 3, 0, 3]]  # which the small image's pixels are
    unit = corners / level[:, None]
    assert abs(unit.square().mean() - 1) < 4 * (2 / unit.numel()) ** 0.5
    assert abs((unit[:, 0] * unit[:, 1]).mean()) < 4 / 4000**0.5
    part = torch.tensor([3999, 12])
    assert torch.equal(condition.augmented(torch.zeros(2, 1, 4, 4), 0, part)["image"], conditioned["image"][part])
    # What a trained model is shown has none of it.
    clean = condition(images(), 0, serials[:6])
    assert (clean["level"] == 0).all()
    assert torch.equal(clean["image"], image(LowRes(2), images()))
    x = images(400)
    blurry = LowRes(2, blur=5.0).augmented(x, 0, serials[:400])["image"]
    untouched = (blurry - image(LowRes(2), x)).flatten(1).abs().amax(1) < 1e-6
    assert abs(untouched.double().mean() - 0.5) < 4 * 0.5 / 20


def test_a_condition_is_made_from_the_image_as_it_is_served_so_after_it_was_mirrored() -> None:
    pixels = (images(4) * 100 + 128).byte()
    request = Request(torch.arange(4), torch.tensor([9, 8, 7, 6]), torch.tensor([True, False, True, False]))
    batch = Batches(Images(pixels), Masked(), seed=3)[request]
    assert torch.equal(batch["image"], Masked()(batch["x"], 3, request.serials)["image"])
    assert "level" not in batch
    level = Batches(Images(pixels), LowRes(2, noise=0.1), seed=3)[request]["level"]
    assert level.shape == (4,) and (level > 0).all()
    with pytest.raises(ValueError, match="dataset.condition=grey takes the colours away"):
        DataModule(Digits(), 4, 0, condition=Grey())


@pytest.mark.parametrize("factor", [2, 4])
def test_downsampled_data_are_means_of_squares(factor: int) -> None:
    source = Digits(downsample=factor)
    assert source.shape == (1, 8 // factor, 8 // factor)
    index = torch.arange(50)
    whole, small = (made.load().train.get(index) for made in (Digits(), source))
    means = nn.functional.avg_pool2d(whole, factor)
    assert (small - means).abs().max() <= 0.5001 / 127.5
    with pytest.raises(ValueError, match="downsample=3: must divide the images' 8 rows"):
        Digits(downsample=3)


# --- that networks hear them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [1, 2])
def test_an_image_and_its_level_change_the_answer_and_nothing_said_is_the_network_without(patch: int) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"widths": (8, 16), "blocks": 1, "attention": (), "patch": patch}
    conditioned = UNet((3, 8, 8), **options, condition_channels=2, condition_level=True)
    bare = UNet((3, 8, 8), **options)
    for parameter in conditioned.parameters():
        nn.init.normal_(parameter, std=0.2)
    rest = {
        name: value for name, value in conditioned.state_dict().items() if not name.startswith("embed_condition_level")
    }
    rest["conv_in.weight"] = rest["conv_in.weight"][:, : 3 * patch**2]
    bare.load_state_dict(rest)
    x, c_noise = images(2), torch.full((2,), 7.0)
    cond = {"image": image(Grey(), images(2)), "level": torch.tensor([0.0, 0.3])}

    def ask(cond: Condition) -> Tensor:
        return conditioned(x, c_noise, cond)

    changed = cond | {"image": cond["image"].flip(2)}
    assert ((ask(cond) - ask(changed)).flatten(1).norm(dim=1) > 1e-2).all()
    moved = (ask(cond) - ask(cond | {"level": torch.tensor([0.0, 0.4])})).flatten(1).norm(dim=1)
    assert moved[0] == 0 and moved[1] > 1e-2
    nothing = dropped(cond, torch.tensor([True, True]))
    assert (nothing["image"] == 0).all()
    grey = cond | {"image": torch.stack((0 * x[:, 0], 0 * x[:, 0] + 1), dim=1)}  # middle grey is something
    assert ((ask(grey) - ask(nothing)).flatten(1).norm(dim=1) > 1e-2).all()
    conditioned.embed_condition_level = None
    torch.testing.assert_close(ask(nothing), bare(x, c_noise, {}))


# --- exact answers ----------------------------------------------------------------------------------------------------

MEAN = torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=torch.float64)
FACTOR = torch.tensor(
    [[0.5, 0, 0, 0], [0.3, 0.4, 0, 0], [0.2, -0.2, 0.3, 0], [0.1, 0.2, 0.1, 0.2]], dtype=torch.float64
)
COVARIANCE = FACTOR @ FACTOR.T
AREA = torch.full((4,), 0.25, dtype=torch.float64)
SMALL_VARIANCE = AREA @ COVARIANCE @ AREA


def gain(level: float) -> Tensor:
    """Of the 2x2 image on its mean pixel, seen with noise of this level."""
    return COVARIANCE @ AREA / (SMALL_VARIANCE + level**2)


class Gaussian(Denoiser):
    """The exact denoiser of images whose mean pixel is Gaussian: of 1x1 alone, of 2x2 given the smaller with noise."""

    condition_channels = 2

    def __init__(self, schedule: Schedule, small: bool) -> None:
        super().__init__(schedule)
        self.small = small

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        x = x_t.flatten(1).double()
        alpha, sigma = self.schedule(t)
        if self.small:
            mean, covariance = (AREA @ MEAN).expand(len(x), 1), SMALL_VARIANCE.reshape(1, 1)
        else:
            level, seen = cond["level"][0].item(), cond["image"][:, 0, 0, 0].double()
            mean = MEAN + (seen - AREA @ MEAN)[:, None] * gain(level)
            covariance = COVARIANCE - torch.outer(gain(level), COVARIANCE @ AREA)
        pull = alpha * covariance @ (alpha**2 * covariance + sigma**2 * torch.eye(len(covariance))).inverse()
        return Prediction((mean + (x - alpha * mean) @ pull.T).reshape(x_t.shape).to(x_t))


def stage(small: bool, **options: Any) -> Pipeline:
    schedule = VarianceExplodingSchedule()
    shape = (1, 1, 1) if small else (1, 2, 2)
    times = KarrasGrid()(schedule, 48)
    return Pipeline(Gaussian(schedule, small), HeunSampler(), times, shape, num_classes=0, **options)


N = 20_000


def assert_gaussian(x: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Mean and covariance of samples (N, d) within five standard errors."""
    spread = covariance.diagonal()
    assert ((x.mean(0) - mean).abs() < 5 * (spread / N).sqrt()).all()
    error = ((torch.outer(spread, spread) + covariance**2) / N).sqrt()
    assert ((x.T.cov() - covariance).abs() < 5 * error).all()


def test_the_exact_denoiser_given_a_small_image_gives_the_conditional_mean_and_covariance() -> None:
    seen = 0.9
    rows = LowRes(2, noise=1.0).enlarged(torch.tensor([seen]).reshape(1, 1, 1, 1), torch.zeros(1))
    x = stage(False, given=Rows(rows)).sample(N, batch_size=N).flatten(1).double()
    mean = MEAN + (seen - AREA @ MEAN) * gain(0)
    covariance = COVARIANCE - torch.outer(gain(0), COVARIANCE @ AREA)
    assert_gaussian(x, mean, covariance)
    torch.testing.assert_close(x @ AREA, torch.full((N,), seen).double(), rtol=0, atol=0.01)


@pytest.mark.parametrize("level", [0.0, 0.4])
def test_an_exact_cascade_draws_the_datas_own_distribution_with_and_without_conditioning_noise(level: float) -> None:
    """The second stage knows its noise, so noise costs it what the small image says, and nothing else."""
    first = stage(True)
    cascade = joined([first, stage(False, condition=LowRes(2, noise=1.0))], ["base", "sr"], level)
    x = cascade.sample(N, batch_size=N).flatten(1).double()
    small = first.sample(N, batch_size=N).flatten(1).double()
    cross = gain(level) * SMALL_VARIANCE
    joint = torch.cat((torch.cat((COVARIANCE, cross[:, None]), 1), torch.cat((cross, SMALL_VARIANCE[None]))[None]))
    assert_gaussian(torch.cat((x, small), dim=1), torch.cat((MEAN, (AREA @ MEAN)[None])), joint)
    torch.testing.assert_close(cascade.sample([17, 4]).flatten(1).double(), x[[17, 4]], rtol=0, atol=1e-4)


class Copies(Denoiser):
    """Answers that the data are the image that it is given."""

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        return Prediction(cond["image"][:, :1] + 0 * x_t)


def test_three_stages_enlarge_one_after_the_other() -> None:
    schedule = VarianceExplodingSchedule()
    times = KarrasGrid()(schedule, 3)
    stages = [stage(True)] + [
        Pipeline(Copies(schedule), DDIMSampler(), times, (1, side, side), 0, condition=LowRes(2)) for side in (2, 4)
    ]
    out = joined(stages, ["a", "b", "c"]).sample(3)
    torch.testing.assert_close(out, stages[0].sample(3).expand(3, 1, 4, 4))


def test_stages_that_do_not_fit_are_refused() -> None:
    base, sr = stage(True), stage(False, condition=LowRes(2, noise=0.3))
    masked = stage(False, condition=Masked())
    for stages, noise, said in (
        ([sr, base], None, "a is conditioned on images, which nothing before it draws: put the base model first"),
        ([base, stage(False)], None, "b enlarges nothing: each stage but the first"),
        ([base, masked], None, "b enlarges nothing: each stage but the first"),
        (
            [stage(False), sr],
            None,
            r"b enlarges images of shape \(1, 1, 1\), and the stage before it draws \(1, 2, 2\)",
        ),
        ([base, sr], 0.4, "conditioning_noise=0.4: b was trained with noise from 0 to 0.3"),
        ([base, sr], -0.1, "conditioning_noise=-0.1: b was trained with noise from 0 to 0.3"),
        ([base], 0.1, "a cascade has at least two stages"),
    ):
        with pytest.raises(ValueError, match=said):
            joined(stages, ["a", "b"], noise)
    with pytest.raises(ValueError, match="this model is conditioned on images"):
        sr.sample(1)
