"""Draws of the mixture that a residual denoiser corrects, from which sampling may begin below t = 1. Float64."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from diffusion.denoisers import (
    ClippedDenoiser,
    Condition,
    Conditioned,
    EDMPreconditioner,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    Prediction,
    ResidualDenoiser,
    Wrapper,
)
from diffusion.denoisers.fitted import MixturePrior
from diffusion.guidance import ClassifierFreeGuidance, EnergyGuidance, Inpainting
from diffusion.noise import SAMPLING, Noise
from diffusion.objectives import LognormalTimes
from diffusion.samplers import DPMSolverPP2MSampler, LogSNRGrid, prior
from diffusion.sampling import Pipeline
from diffusion.schedules import LinearSchedule, Schedule, VarianceExplodingSchedule, VPSchedule, time_of

D, MANY = 5, 40_000


class Zero(nn.Module):
    """F = 0, so that the denoiser is that of the mixture."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        return self.weight * x.chunk(2, dim=1)[0]


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(3000) % 3 % 2  # two thirds are 0


@pytest.fixture(scope="module")
def data(labels: Tensor) -> Tensor:
    """Two correlated clouds, one for each label, in three of the five dimensions but for a little noise."""
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    centres = torch.tensor([[2.0, 0.0, -1.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)
    inside = centres[labels] + normal(len(labels), 3) @ normal(3, 3) * torch.tensor([[0.3], [0.8]])[labels]
    return inside @ normal(3, D) + 0.5 * normal(len(labels), D)


def fitted(schedule: Schedule, data: Tensor, labels: Tensor) -> ResidualDenoiser:
    denoiser = ResidualDenoiser(Zero(), schedule, [D], clusters=4, components=3).double()
    denoiser.prepare(data, {"label": labels})
    return denoiser


@pytest.fixture(scope="module")
def denoiser(data: Tensor, labels: Tensor) -> ResidualDenoiser:
    return fitted(VarianceExplodingSchedule(), data, labels)


def moments(mixture: MixturePrior, row: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the mixture of one label, -1 for all, in closed form."""
    weights, basis = mixture.log_weights[row].exp(), mixture.basis
    inside = torch.einsum("ikl,il,iml->ikm", mixture.axes, mixture.variances, mixture.axes)
    mean = weights @ mixture.means
    second = torch.einsum("i,ikm->km", weights, inside + mixture.means[:, :, None] * mixture.means[:, None])
    outside = torch.eye(D, dtype=torch.float64) - basis @ basis.T
    return mixture.mean + basis @ mean, basis @ (second - mean.outer(mean)) @ basis.T + mixture.rest * outside


@pytest.mark.parametrize("label", [-1, 0, 1])
def test_draws_have_the_mean_and_covariance_of_the_labels_mixture(label: int, denoiser: ResidualDenoiser) -> None:
    cond = {"label": torch.full((MANY,), label)}
    found = denoiser.draw_prior(Noise(0, torch.arange(MANY)), (D,), cond)
    mean, cov = moments(denoiser.prior, label)
    scale = cov.diagonal().sqrt()
    assert ((found.mean(0) - mean) / scale).abs().max() < 5 / MANY**0.5
    assert ((found.T.cov() - cov) / scale.outer(scale)).abs().max() < 10 / MANY**0.5


def test_without_labels_draws_are_of_all_data(denoiser: ResidualDenoiser) -> None:
    noise = Noise(0, torch.arange(50))
    everything = denoiser.draw_prior(noise, (D,), {"label": torch.full((50,), -1)})
    assert torch.equal(denoiser.draw_prior(noise, (D,)), everything)


def test_draws_are_not_rounded_to_bfloat16_where_networks_are(denoiser: ResidualDenoiser) -> None:
    noise, single = Noise(0, torch.arange(50)), copy.deepcopy(denoiser).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = single.draw_prior(noise, (D,))
    assert torch.equal(found, single.draw_prior(noise, (D,)))


def test_draws_agree_with_the_denoiser_of_the_mixture(denoiser: ResidualDenoiser) -> None:
    """D is the best guess of what was drawn: its error is orthogonal to every function of x_t."""
    x0 = denoiser.draw_prior(Noise(1, torch.arange(MANY)), (D,))
    eps = Noise(1, torch.arange(MANY)).normal((D,)).double()
    for level in (0.1, 0.7, 3.0):
        t = denoiser.schedule.inverse(torch.tensor(-2 * math.log(level), dtype=torch.float64))
        alpha, sigma = denoiser.schedule(t)
        x_t = alpha * x0 + sigma * eps
        error = denoiser(x_t, t, {"label": torch.full((MANY,), -1)}) - x0
        functions = torch.stack((torch.ones_like(x_t), x_t, torch.tanh(x_t), x_t.square()))
        spread = error.std(0) * functions.square().mean(1).sqrt() / MANY**0.5
        assert ((error * functions).mean(1).abs() / spread).max() < 5


class Twice(Wrapper):
    """A guidance of one's own, which draws something else at all noise levels."""

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        return self.denoiser.predict(x_t, t, cond).map(lambda value: 2 * value)


class Told(Zero):
    num_classes, condition_channels = 0, 1


def test_draws_for_an_image_lie_around_the_guess_from_it(data: Tensor) -> None:
    generator = torch.Generator().manual_seed(5)
    images = 9 * torch.randn(len(data), 1, D, 1, generator=generator, dtype=torch.float64)
    x = data.view(-1, 1, D, 1) + 0.3 * images.flip(2)  # as far as the image says
    denoiser = ResidualDenoiser(Told(), VarianceExplodingSchedule(), [1, D, 1], clusters=1, components=D).double()
    denoiser.prepare(x, {"label": torch.zeros(len(x), dtype=torch.int64), "image": images})
    given, n = torch.arange(D, dtype=torch.float64).view(1, 1, D, 1), 10_000
    cond = {"image": given.expand(n, 1, D, 1)}
    found = denoiser.draw_prior(Noise(0, torch.arange(n)), (1, D, 1), cond).flatten(1)
    expected = data.mean(0) + 0.3 * given.flatten().flip(0)
    scale = data.std(0)
    assert ((found.mean(0) - expected) / scale).abs().max() < 5 / n**0.5 + 5 / len(data) ** 0.5
    assert ((found.T.cov() - data.T.cov()) / scale.outer(scale)).abs().max() < 10 / len(data) ** 0.5


def sampled(denoiser: ResidualDenoiser, start_level: float, steps: int, label: int = 0) -> Pipeline:
    """Draws by DPM-Solver++(2M) on a log-SNR grid that begins there."""
    times = LogSNRGrid()(denoiser.schedule, steps, time_of(denoiser.schedule, start_level))
    return Pipeline(denoiser, DPMSolverPP2MSampler(), times, (D,), num_classes=2, label=label)


@pytest.mark.parametrize("start_level", [0.5, 5.0])
@pytest.mark.parametrize("schedule", [VarianceExplodingSchedule(), VPSchedule(), LinearSchedule(1000)])
def test_sampling_that_begins_with_the_prior_arrives_at_its_distribution(
    start_level: float, schedule: Schedule, data: Tensor, labels: Tensor
) -> None:
    denoiser, n = fitted(schedule, data, labels), 4000
    pipeline = sampled(denoiser, start_level, steps=60)
    found = pipeline.sample(n, batch_size=n).double()
    mean, cov = moments(denoiser.prior, 0)
    scale = cov.diagonal().sqrt()
    assert ((found.mean(0) - mean) / scale).abs().max() < 5 / n**0.5
    assert ((found.T.cov() - cov) / scale.outer(scale)).abs().max() < 10 / n**0.5
    pure = prior(schedule, Noise(0, torch.arange(n)), (D,), pipeline.times[0].item()).double()
    *_, last = pipeline.states(torch.arange(n), x=pure)  # noise alone does not
    assert ((last.x_t.mean(0) - mean) / scale).abs().max() > 15 / n**0.5


def test_the_state_that_it_begins_with_is_the_noised_draw_and_depends_on_seed_and_number_alone(
    denoiser: ResidualDenoiser,
) -> None:
    pipeline, index = sampled(denoiser, 2.5, steps=3), torch.arange(6)
    cond = pipeline.conditions(index)
    noise = Noise(7, index, SAMPLING)
    expected = denoiser.draw_prior(noise, (D,), cond) + 2.5 * noise.normal((D,))
    together = pipeline.start(index, 7, cond)
    torch.testing.assert_close(together, expected.float(), rtol=1e-6, atol=1e-6)
    alone = pipeline.start(index[4:5], 7, pipeline.conditions(index[4:5]))
    torch.testing.assert_close(alone, together[4:5], rtol=1e-6, atol=1e-6)
    few = pipeline.sample(6, seed=7, batch_size=4)
    torch.testing.assert_close(few, pipeline.sample(6, seed=7), rtol=1e-6, atol=1e-6)


def test_at_t_one_sampling_begins_with_noise_alone(denoiser: ResidualDenoiser) -> None:
    pipeline = sampled(denoiser, math.inf, steps=3)
    index = torch.arange(4)
    assert torch.equal(pipeline.start(index), prior(denoiser.schedule, Noise(0, index, SAMPLING), (D,)))


def test_training_times_below_a_level_are_those_of_the_whole_distribution_below_it() -> None:
    schedule = VarianceExplodingSchedule()
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    whole, cut = LognormalTimes(0.5, 1.0)(schedule, u), LognormalTimes(0.5, 1.0, highest=2.5)(schedule, u)
    top = schedule.inverse(torch.tensor(-2 * math.log(2.5), dtype=torch.float64))
    assert cut.max() <= top
    below = whole[whole <= top]
    shares = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    torch.testing.assert_close(cut.quantile(shares), below.quantile(shares), rtol=1e-3, atol=1e-4)
    for highest, said in ((0.0, "above 0"), (math.nan, "above 0"), (1e-3, "below nearly all levels")):
        with pytest.raises(ValueError, match=said):
            LognormalTimes(0.5, 1.0, highest=highest)


def test_what_steers_at_high_noise_too_does_not_keep_the_prior(denoiser: ResidualDenoiser) -> None:
    cond = {"label": torch.ones(3, dtype=torch.int64)}
    kept = [ClippedDenoiser(denoiser), ClassifierFreeGuidance(denoiser, 2.0), Conditioned(denoiser, cond)]
    noise = Noise(0, torch.arange(3))
    for wrapper in kept:
        assert wrapper.has_prior
        assert torch.equal(wrapper.draw_prior(noise, (D,), cond), denoiser.draw_prior(noise, (D,), cond))
    x = torch.zeros(D, dtype=torch.float64)
    for steered in (Inpainting(denoiser, x, x), EnergyGuidance(denoiser, lambda x, t, cond: x.sum(1))):
        assert not steered.has_prior
        assert not ClippedDenoiser(steered).has_prior
        with pytest.raises(ValueError, match="has no distribution that resembles"):
            steered.draw_prior(noise, (D,), cond)
    assert not Twice(denoiser).has_prior  # what is not known to keep it does not
    assert not NetworkDenoiser(Zero(), VarianceExplodingSchedule(), EDMPreconditioner()).has_prior
    with pytest.raises(ValueError, match="has no distribution that resembles"):
        GaussianMixtureDenoiser(VPSchedule(), x[None], torch.eye(D)[None].double()).draw_prior(noise, (D,))
