"""Consistency models against the flow map of a Gaussian, which is known: `f(x_t) = m + C^(1/2) (C + v^2 I)^(-1/2)
(x_t / alpha - m)` at the level v = sigma / alpha. Float64."""

import math
from typing import Any

import pytest
import torch
from support.solutions import marginal, propagate, solution
from torch import Tensor, nn

from diffusion.denoisers import (
    Condition,
    EDMPreconditioner,
    EpsPreconditioner,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    Prediction,
    RegressionDenoiser,
    ScorePreconditioner,
    VPreconditioner,
    X0Preconditioner,
)
from diffusion.forward import noised
from diffusion.noise import Noise
from diffusion.objectives import ConsistencyObjective, LognormalTimes, Times
from diffusion.samplers import ConsistencySampler, LevelsGrid
from diffusion.schedules import CosineSchedule, FlowSchedule, Schedule, VarianceExplodingSchedule, VPSchedule

PAPER = LognormalTimes(-1.1, 2.0)


class FlowMap(RegressionDenoiser):
    """Where the ODE of one Gaussian ends, off by a factor in each level's offset: exact at `factor` 1."""

    def __init__(self, gaussian: GaussianMixtureDenoiser, factor: float = 1.0) -> None:
        super().__init__(nn.Linear(1, 1).double(), gaussian.schedule, "beta")
        self.gaussian, self.factor = gaussian, nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        alpha, sigma = (c.reshape(-1, 1) for c in self.schedule(t))
        spread, basis, mean = self.gaussian.eigenvalues[0], self.gaussian.eigenvectors[0], self.gaussian.means[0]
        shrink = (spread / (alpha**2 * spread + sigma**2)).sqrt()
        offset = ((x_t - alpha * mean) @ basis * shrink) @ basis.T
        return Prediction(mean + self.factor ** (sigma / alpha) * offset)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def test_the_oracle_is_the_flow_map(gaussian: GaussianMixtureDenoiser, times: Tensor) -> None:
    oracle, x = FlowMap(gaussian), torch.tensor([[0.4, -1.1], [2.0, 0.3]], dtype=torch.float64)
    for t in times:
        ends = solution(gaussian, x, t, torch.zeros_like(t))
        torch.testing.assert_close(oracle(x, t), ends, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_the_flow_map_draws_the_exact_distribution_in_any_number_of_calls(
    calls: int, gaussian: GaussianMixtureDenoiser
) -> None:
    times = LevelsGrid()(gaussian.schedule, calls)
    moments = propagate(ConsistencySampler(), FlowMap(gaussian), *marginal(gaussian, times[0]), times)
    for t, (mean, cov) in zip(times[1:], moments, strict=True):
        expected = marginal(gaussian, t)
        torch.testing.assert_close(mean, expected[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(cov, expected[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", ["variance_exploding"], indirect=True)
def test_one_call_of_a_posterior_mean_draws_the_mean_of_the_data_alone(gaussian: GaussianMixtureDenoiser) -> None:
    times = LevelsGrid()(gaussian.schedule, 1)
    ((mean, cov),) = propagate(ConsistencySampler(), gaussian, *marginal(gaussian, times[0]), times)
    torch.testing.assert_close(mean, gaussian.means[0])
    assert cov.abs().max() < 1e-3 * marginal(gaussian, times[-1])[1].abs().max()


class Given(Noise):
    """Noise and times that a test has chosen."""

    def __init__(self, eps: Tensor, u: Tensor) -> None:
        super().__init__(0, torch.arange(len(eps)))
        self.eps, self.u = eps, u

    def normal(self, shape: Any, step: int = 0, draw: int = 0) -> Tensor:
        return self.eps

    def uniform(self, shape: Any = (), step: int = 0, draw: int = 0) -> Tensor:
        return self.u


def batch(x0: Tensor, serial: int = 0) -> dict[str, Tensor]:
    return {"x": x0, "serial": torch.full((len(x0),), serial)}


def pull(model: FlowMap, q: float, level: float) -> float:
    """The mean gradient of the loss at one level over all data and noise that lead to the same states: those that lie
    on either side of the posterior mean count alike, since the posterior is symmetric."""
    schedule, gaussian = model.schedule, model.gaussian
    generator = torch.Generator().manual_seed(0)
    times = LognormalTimes(math.log(level), 1.0)
    t = times(schedule, torch.tensor([0.5], dtype=torch.float64))  # the median
    alpha, sigma = schedule(t)
    start = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    mean, cov = marginal(gaussian, t)
    x_t = mean + start @ torch.linalg.cholesky(cov).T
    _, means, covariances = gaussian.posterior(x_t, t)
    aside = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    aside = aside @ torch.linalg.cholesky(covariances[0, 0] + 1e-15 * torch.eye(2)).T
    x0 = torch.cat((means[:, 0] + aside, means[:, 0] - aside))
    eps = (x_t.repeat(2, 1) - alpha * x0) / sigma
    objective = ConsistencyObjective(times, "edm", q=q, n_max=0.0, stages=1)  # its weight has no gap in it
    loss = objective(model, batch(x0), Given(eps, torch.full((400,), 0.5, dtype=torch.float64)))["loss"].mean()
    (slope,) = torch.autograd.grad(loss, [model.factor])
    return abs(slope.item())


@pytest.mark.parametrize("level", [0.3, 1.0, 4.0])
def test_the_gradient_vanishes_at_the_flow_map_as_the_gap_closes(
    level: float, gaussian: GaussianMixtureDenoiser
) -> None:
    pulls = [pull(FlowMap(gaussian), q, level) for q in (16, 256, 4096)]
    assert pulls[1] < pulls[0] / 8
    assert pulls[2] < pulls[1] / 8
    assert pull(FlowMap(gaussian, 0.8), 4096, level) > 30 * pulls[2]  # away from it the gradient stays


class Shrinking(nn.Module):
    """`F = g x` with a number g for each of the levels first, first ratio, first ratio^2, ...: with EDM's coefficients
    every linear isotropic denoiser."""

    def __init__(self, first: float = 1.0, ratio: float = 2.0, count: int = 1) -> None:
        super().__init__()
        self.first, self.ratio = math.log(first), math.log(ratio)
        self.values = nn.Parameter(torch.zeros(count, dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        number = ((c_noise / 250 - self.first) / self.ratio).round().long()
        return self.values[number.clamp(0, len(self.values) - 1)][:, None] * x


class At(Times):
    """Given levels."""

    def __init__(self, levels: Tensor) -> None:
        self.levels = levels

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        return schedule.inverse(-2 * self.levels.log())


def test_a_linear_model_tuned_from_the_posterior_mean_arrives_at_the_flow_map() -> None:
    spread, q, first, count = 0.7, 8.0, 0.0505, 30
    ratio = q / (q - 1)  # so that each level learns from the one before, and the first from the data
    levels = first * ratio ** torch.arange(count, dtype=torch.float64)
    schedule = VarianceExplodingSchedule(0.05, 10.0)
    model = NetworkDenoiser(Shrinking(first, ratio, count), schedule, EDMPreconditioner(spread))
    t, ones = schedule.inverse(-2 * levels.log()), torch.ones(count, 1, dtype=torch.float64)
    exact, mean = spread * (spread**2 + levels**2).rsqrt(), spread**2 / (spread**2 + levels**2)
    torch.testing.assert_close(model(ones, t)[:, 0], mean)  # F = 0 is the posterior mean
    # Of many dimensions data and noise are orthogonal and of equal size: two of them show it without chance.
    x0 = torch.tensor([[spread, 0.0]], dtype=torch.float64).expand(count, 2)
    noise = Given(torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(count, 2), torch.full((count,), 0.5))
    objective = ConsistencyObjective(At(levels), q=q, n_max=0.0, stages=1)
    # Momentum would swing along the chain of levels.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, betas=(0.0, 0.9))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.001, 200)
    for _ in range(200):
        optimizer.zero_grad()
        objective(model, batch(x0), noise)["loss"].mean().backward()
        optimizer.step()
        decay.step()
    found = model(ones, t)[:, 0].detach()
    # Where the gradient is zero, f(x_v) is the projection of f(x_u): off by the gap, which is q's.
    before = torch.cat((levels.new_zeros(1), levels[:-1]))
    fixed = ((spread**2 + before * levels) / (spread**2 + levels**2)).cumprod(0)
    torch.testing.assert_close(found, fixed, rtol=0.01, atol=0)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0)
    assert mean[-1] < 0.3 * exact[-1]  # where it began


def test_the_earlier_level_is_the_papers_and_its_stage_follows_from_the_images_seen() -> None:
    schedule = VarianceExplodingSchedule(0.002, 80.0)
    objective = ConsistencyObjective(PAPER, q=2.0, n_max=8.0, stages=3, images_per_stage=100)
    level = torch.tensor(5.0, dtype=torch.float64)
    t = schedule.inverse(-2 * level.log()).expand(5)
    serial = torch.tensor([0, 99, 100, 200, 10**9])
    n = 1 + 8 / (1 + math.exp(5.0))
    expected = [5 * (1 - n / 2**k) for k in (1, 1, 2, 3, 3)]
    torch.testing.assert_close(objective.lower(schedule, t, serial), torch.tensor(expected, dtype=torch.float64))
    validated = objective.eval().lower(schedule, t, serial)
    torch.testing.assert_close(validated, torch.full((5,), 5 * (1 - n / 8), dtype=torch.float64))


def test_below_the_lowest_level_of_the_schedule_the_target_is_the_data() -> None:
    schedule = VarianceExplodingSchedule(0.1, 80.0)
    t = schedule.inverse(-2 * torch.tensor([0.1, 0.11, 0.5], dtype=torch.float64).log())
    objective = ConsistencyObjective(PAPER, q=16.0, n_max=0.0, stages=1)
    lower = objective.lower(schedule, t, torch.zeros(3, dtype=torch.int64))
    assert lower[:2].tolist() == [0, pytest.approx(0.11 * 15 / 16)]
    wide = ConsistencyObjective(PAPER, n_max=8.0, stages=1)
    assert wide.lower(schedule, t, torch.zeros(3, dtype=torch.int64)).tolist() == [0] * 3


@pytest.mark.parametrize(
    ("weighting", "weight"), [("gap", 1 / 0.5), ("edm", 1 / 0.5**2 + 1 / 0.25**2)], ids=["gap", "edm"]
)
def test_the_loss_is_the_weighted_root_mean_square_of_what_two_states_give(weighting: str, weight: float) -> None:
    schedule = VarianceExplodingSchedule(0.002, 80.0)
    model = NetworkDenoiser(Shrinking(), schedule, EDMPreconditioner(0.25))
    x0, eps = torch.tensor([[0.2, -0.6]], dtype=torch.float64), torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    # At this level and stage the earlier state is the data.
    objective = ConsistencyObjective(LognormalTimes(math.log(0.5), 1.0), weighting, 0.25)
    loss = objective(model, batch(x0), Given(eps, torch.tensor([0.5], dtype=torch.float64)))["loss"]
    error = 0.25**2 / (0.25**2 + 0.5**2) * (x0 + 0.5 * eps) - x0
    torch.testing.assert_close(loss, weight * error.square().mean().sqrt()[None])


class Dropping(nn.Module):
    """A network that drops half of its output."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.drop, self.seen = nn.Parameter(torch.ones(())), nn.Dropout(0.5), []  # type: ignore[var-annotated]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        out: Tensor = self.drop(self.gain.expand(x.shape))
        self.seen.append(out.detach())
        return out


def test_both_states_have_the_same_noise_and_drop_the_same_units() -> None:
    model = NetworkDenoiser(Dropping(), VPSchedule(), VPreconditioner())
    noise, x0 = Noise(0, torch.arange(8)), torch.zeros(8, 32)
    torch.manual_seed(5)
    states: list[tuple[Tensor, Tensor]] = []
    model.register_forward_pre_hook(lambda _, given: states.append(given[:2]))
    objective = ConsistencyObjective(PAPER, stages=1, q=8.0)
    objective(model, batch(x0), noise)["loss"].mean().backward()
    first, second = model.network.seen  # type: ignore[misc]
    assert torch.equal(first, second)
    assert 0 < (first == 0).float().mean() < 1
    schedule = model.schedule
    torch.testing.assert_close(*(x / schedule(t)[1].float()[:, None] for x, t in states))
    assert not torch.equal(states[0][1], states[1][1])
    assert {x.dtype for x, _ in states} == {x0.dtype}  # times and levels are float64
    torch.manual_seed(5)
    torch.nn.functional.dropout(torch.ones(8, 32))
    expected = torch.rand(3)
    torch.manual_seed(5)
    objective(model, batch(x0), noise)
    assert torch.equal(torch.rand(3), expected)  # the first of both states takes no numbers


def test_equal_answers_have_a_loss_of_zero_with_a_gradient() -> None:
    model = NetworkDenoiser(Shrinking(), FlowSchedule(), VPreconditioner())
    loss = ConsistencyObjective(PAPER)(model, batch(torch.zeros(4, 2)), Given(torch.zeros(4, 2), torch.rand(4)))["loss"]
    loss.sum().backward()
    assert loss.tolist() == [0] * 4
    assert model.network.values.grad.isfinite().all()  # type: ignore[union-attr]


def network(schedule: Schedule, precond: Any, **options: Any) -> NetworkDenoiser:
    return NetworkDenoiser(Shrinking(), schedule, precond, **options)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: network(VPSchedule(), EpsPreconditioner()), "multiplies the network's error by"),
        (lambda: network(VPSchedule(), ScorePreconditioner()), "multiplies the network's error by"),
        (lambda: network(VPSchedule(), X0Preconditioner()), "does not by itself"),
        (lambda: network(VPSchedule(), VPreconditioner(), variance="learned"), "does not train the variance"),
        (lambda: network(CosineSchedule(zero_terminal_snr=True), VPreconditioner()), "zero terminal SNR"),
    ],
)
def test_a_model_that_cannot_become_one_is_refused(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConsistencyObjective(PAPER).check(model())


@pytest.mark.parametrize("schedule", ["variance_exploding", "vp", "flow", "linear", "sub_vp"], indirect=True)
def test_parameterizations_that_give_the_state_without_noise_are_tuned(schedule: Schedule) -> None:
    for precond in (EDMPreconditioner(0.5), VPreconditioner()):
        ConsistencyObjective(PAPER).check(network(schedule, precond))


@pytest.mark.parametrize(("q", "stages"), [(2.0, 8), (4.0, 4), (256.0, 1), (10.0, 6), (100.0, 3), (1000.0, 2)])
def test_gaps_down_to_a_millionth_are_taken(q: float, stages: int) -> None:
    assert ConsistencyObjective(PAPER, q=q, stages=stages).q == q


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weighting": "snr"}, "weighting must be gap or edm"),
        ({"q": 1.0}, "q must be above 1"),
        ({"q": math.nan}, "q must be a finite number"),
        ({"n_max": -1.0}, "n_max must be at least 0"),
        ({"q": 256.0}, "stages=8 and q=256: in the last stage the two levels would differ by less than a millionth"),
        ({"stages": 20}, "stages=20 and q=2"),
        ({"stages": 0}, "stages and images_per_stage must be at least 1"),
        ({"images_per_stage": 0}, "stages and images_per_stage must be at least 1"),
        ({"sigma_data": 0.0}, "sigma_data must be positive"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConsistencyObjective(PAPER, **settings)


def test_states_on_a_schedule_without_noise_scaling_are_the_papers() -> None:
    schedule, x0, eps = VarianceExplodingSchedule(0.002, 80.0), torch.ones(1, 2), torch.ones(1, 2)
    t = schedule.inverse(torch.tensor([-2 * math.log(3.0)], dtype=torch.float64))
    torch.testing.assert_close(noised(schedule, x0, t, eps), torch.full((1, 2), 4.0))
