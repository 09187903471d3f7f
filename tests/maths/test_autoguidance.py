"""A model guided by a worse version of itself, and dynamic thresholding, against exact answers. Float64."""

import math

import pytest
import torch
from conftest import SCHEDULES
from torch import Tensor

from diffusion.denoisers import (
    ClippedDenoiser,
    Condition,
    Denoiser,
    DynamicThreshold,
    GaussianMixtureDenoiser,
    Prediction,
    Rescheduled,
)
from diffusion.guidance import Autoguidance, ClassifierFreeGuidance
from diffusion.noise import Noise
from diffusion.samplers import DDIMSampler, HeunSampler, LogSNRGrid, between, prior
from diffusion.schedules import LinearSchedule, Schedule, VarianceExplodingSchedule, VPSchedule

MEAN, WIDE = 0.3, 1.5
SD = 0.7


def normal(schedule: Schedule, deviation: float, mean: float = MEAN) -> GaussianMixtureDenoiser:
    """The exact denoiser of `N(mean, deviation^2)` in one dimension."""
    covariance = torch.full((1, 1, 1), deviation**2, dtype=torch.float64)
    return GaussianMixtureDenoiser(schedule, torch.full((1, 1), mean, dtype=torch.float64), covariance)


def states(schedule: Schedule, t: Tensor, n: int = 7) -> Tensor:
    alpha, sigma = schedule(t)
    return alpha * MEAN + (alpha + sigma) * torch.linspace(-2, 2, n, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("scale", [0.0, 0.4, 2.5])
def test_its_score_is_that_of_the_tilted_density(scale: float, schedule: Schedule, times: Tensor) -> None:
    model, guide = normal(schedule, SD), normal(schedule, WIDE)
    guided = Autoguidance(model, guide, scale)
    for t in times:
        alpha, sigma = schedule(t)
        x_t = states(schedule, t).requires_grad_()
        tilted = scale * model.log_prob(x_t, t) + (1 - scale) * guide.log_prob(x_t, t)
        (score,) = torch.autograd.grad(tilted.sum(), x_t)
        torch.testing.assert_close((alpha * guided(x_t, t) - x_t) / sigma**2, score, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", ["variance_exploding", "vp", "flow"], indirect=True)
def test_samples_of_a_gaussian_guided_by_a_wider_one_have_the_exact_width(schedule: Schedule) -> None:
    # The ODE is linear in x - alpha m: d log(x - alpha m) / d sigma is sigma (w / (s^2 + sigma^2) + (1 - w) / (wide^2 +
    # sigma^2)) for x / alpha and sigma / alpha. So a width r goes from r_1 to r_0 = r_1 times this ratio:
    scale = 1.8
    times = LogSNRGrid()(schedule, 400)[:-1]
    alpha, sigma = schedule(times)
    level = sigma / alpha

    def growth(deviation: float, power: float) -> Tensor:
        return ((deviation**2 + level[0] ** 2) / (deviation**2 + level[-1] ** 2)) ** (power / 2)

    x = states(schedule, times[0])
    guided = Autoguidance(normal(schedule, SD), normal(schedule, WIDE), scale)
    result = HeunSampler().sample(guided, x, times)
    expected = (x / alpha[0] - MEAN) / (growth(SD, scale) * growth(WIDE, 1 - scale))
    torch.testing.assert_close(result / alpha[-1] - MEAN, expected, rtol=2e-3, atol=1e-6)
    plain = HeunSampler().sample(normal(schedule, SD), x, times)
    assert result.std() < 0.8 * plain.std()  # it is narrower than the model's


@pytest.mark.parametrize("schedule", ["linear"], indirect=True)
def test_scale_one_is_the_model_to_the_bit_and_never_asks_the_guide(schedule: Schedule) -> None:
    class Asked(GaussianMixtureDenoiser):
        def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
            raise AssertionError

    model, t = normal(schedule, SD), torch.tensor(0.3, dtype=torch.float64)
    guide = Asked(schedule, model.means, torch.ones(1, 1, 1, dtype=torch.float64))
    x_t = states(schedule, t)
    assert torch.equal(Autoguidance(model, guide, 1.0)(x_t, t), model(x_t, t))
    assert torch.equal(Autoguidance(model, guide, 3.0, interval=[50, 60])(x_t, t), model(x_t, t))
    with pytest.raises(AssertionError):
        Autoguidance(model, guide, 3.0)(x_t, t)


def test_it_acts_inside_its_interval_alone() -> None:
    schedule = VPSchedule()
    level = torch.tensor([0.1, 0.5, 3.0, 20.0], dtype=torch.float64)
    t = schedule.inverse(-2 * level.log())
    x_t = states(schedule, torch.tensor(0.5, dtype=torch.float64), 4)
    model, guide = normal(schedule, SD), normal(schedule, WIDE)
    limited, always = Autoguidance(model, guide, 2.0, [0.3, 4.0]), Autoguidance(model, guide, 2.0)
    inside = torch.tensor([False, True, True, False])[:, None]
    torch.testing.assert_close(limited(x_t, t), torch.where(inside, always(x_t, t), model(x_t, t)))
    assert (always(x_t, t) - model(x_t, t)).abs().min() > 1e-6


@pytest.mark.parametrize("other", sorted(SCHEDULES))
def test_a_guide_of_another_schedule_is_met_at_equal_log_snr(other: str, schedule: Schedule) -> None:
    met = Rescheduled(normal(SCHEDULES[other](), WIDE), schedule)
    exact = normal(schedule, WIDE)
    for log_snr in (-5.0, 0.0, 4.0):
        t = schedule.inverse(torch.tensor(log_snr, dtype=torch.float64))
        met.check_times(t[None])
        torch.testing.assert_close(met(states(schedule, t), t), exact(states(schedule, t), t), rtol=1e-6, atol=1e-6)


def test_noise_levels_that_the_guide_does_not_have_are_refused_unless_the_interval_leaves_them_out() -> None:
    schedule, narrow = VarianceExplodingSchedule(), LinearSchedule()
    model, guide = normal(schedule, SD), Rescheduled(normal(narrow, WIDE), schedule)
    times = between(LogSNRGrid(), schedule, 10, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"levels sigma / alpha go from 0.01 to 15\S+, and it would be asked at \d+"):
        DDIMSampler().check(Autoguidance(model, guide, 2.0), times)
    limited = Autoguidance(model, guide, 2.0, [0.1, 50])
    x = prior(schedule, Noise(0, torch.arange(3)), (1,)).double()
    assert DDIMSampler().sample(limited, x, times).isfinite().all()


def test_a_guide_on_another_schedule_is_refused_bare() -> None:
    with pytest.raises(ValueError, match="put Rescheduled around it"):
        Autoguidance(normal(VPSchedule(), SD), normal(VPSchedule(), WIDE), 2.0)


def test_what_else_the_model_says_is_its_own() -> None:
    class Learned(Denoiser):
        def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
            return Prediction(0 * x_t, extra=0.3 + 0 * x_t)

    schedule = LinearSchedule()
    t, s = (torch.tensor(value, dtype=torch.float64) for value in (0.5, 0.4))
    model = Learned(schedule, "learned")
    x_t = states(schedule, t)
    guided = Autoguidance(model, normal(schedule, WIDE), 2.0)
    torch.testing.assert_close(guided.transition(x_t, t, s)[1], model.transition(x_t, t, s)[1])
    with pytest.raises(ValueError, match="needs a condition"):
        ClassifierFreeGuidance(model, 2.0)(x_t, t)


# --- dynamic thresholding ---------------------------------------------------------------------------------------------


class Answer(Denoiser):
    """Always says the same."""

    def __init__(self, x0: Tensor) -> None:
        super().__init__(LinearSchedule())
        self.x0 = x0

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        return Prediction(self.x0)


def threshold(x0: Tensor, share: float) -> Tensor:
    return DynamicThreshold(Answer(x0), share)(x0, torch.tensor(0.5))


def test_each_sample_is_divided_by_what_the_share_of_its_values_lie_within() -> None:
    x0 = torch.stack((torch.arange(1.0, 11), -torch.arange(11.0, 1, -1) / 2)).reshape(2, 1, 2, 5)
    for share, bounds in ((1.0, (10, 5.5)), (0.9, (9, 5)), (0.55, (6, 3.5)), (0.01, (1, 1))):
        bound = torch.tensor(bounds)[:, None, None, None]
        torch.testing.assert_close(threshold(x0, share), x0.clamp(-bound, bound) / bound)


def test_answers_within_the_range_pass_to_the_bit_and_others_end_in_it() -> None:
    x0 = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    inside = x0 / x0.abs().max()
    assert torch.equal(threshold(inside, 0.995), inside)
    assert threshold(30 * x0, 0.9).abs().max() == 1


def test_a_share_that_leaves_the_bound_at_one_is_clipping() -> None:
    x0 = 0.4 * torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x0[:, 0, 0, 0] = 3.0
    t = torch.tensor(0.5)
    torch.testing.assert_close(threshold(x0, 0.9), ClippedDenoiser(Answer(x0))(x0, t))
    assert not torch.allclose(threshold(x0, 1.0), ClippedDenoiser(Answer(x0))(x0, t))


@pytest.mark.parametrize("share", [0.0, 1.1, math.nan])
def test_other_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
        DynamicThreshold(Answer(torch.zeros(1, 1)), share)
