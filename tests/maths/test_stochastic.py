"""The reverse SDE, Langevin dynamics and churn: exact propagation of Gaussians, weak order, step sizes. Float64."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from support.solutions import interior, marginal, propagate, weak_order
from torch import Tensor

from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.noise import Noise
from diffusion.samplers import (
    AnnealedLangevinSampler,
    ChurnSampler,
    EulerMaruyamaSampler,
    HeunSampler,
    LangevinSampler,
    PredictorCorrectorSampler,
    Sampler,
    TrailingGrid,
    UniformGrid,
    prior,
)
from diffusion.schedules import (
    CosineSchedule,
    FlowSchedule,
    GeometricSchedule,
    Schedule,
    SubVPSchedule,
    VarianceExplodingSchedule,
    VPSchedule,
)

# (mean, variance) along an eigenvector with data mean m and variance spread, from t to s.
Scalar = Callable[[Schedule, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _rates(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """f and g^2 as the papers give them, or by differentiating the marginals by hand."""
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 19.9 / 2 * t**2
    match schedule:
        case VPSchedule():
            return -beta / 2, beta
        case SubVPSchedule():
            return -beta / 2, beta * (1 - (-2 * integral).exp())
        case VarianceExplodingSchedule():
            step = math.log(80 / 0.002)
            return 0 * t, 2 * step * (0.002 * (step * t).exp()) ** 2
        case FlowSchedule():
            return -0.999 / (1 - 0.999 * t), 2 * 0.999**2 * t / (1 - 0.999 * t)
    first, last = math.pi / 2 * 0.008 / 1.008, math.atan(math.exp(7.5))  # angles of the cosine, at log-SNR -15 the last
    tangent = (first + (last - first) * t).tan()
    return -(last - first) * tangent, 2 * (last - first) * tangent


def _euler_maruyama(
    schedule: Schedule, t: Tensor, s: Tensor, m: Tensor, spread: Tensor, mean: Tensor, var: Tensor
) -> tuple[Tensor, Tensor]:
    # The score of N(alpha m, v) without the denoiser.
    (alpha, sigma), (f, g2) = schedule(t), _rates(schedule, t)
    v = alpha**2 * spread + sigma**2
    moved = mean + (s - t) * (f * mean + g2 * (mean - alpha * m) / v)
    return moved, (1 + (s - t) * (f + g2 / v)) ** 2 * var + g2 * (t - s)


def _predictor_corrector(
    schedule: Schedule, t: Tensor, s: Tensor, m: Tensor, spread: Tensor, mean: Tensor, var: Tensor
) -> tuple[Tensor, Tensor]:
    mean, var = _euler_maruyama(schedule, t, s, m, spread, mean, var)
    (alpha_t, _), (alpha, sigma) = schedule(t), schedule(s)
    a, v = 2 * (alpha_t / alpha) ** 2 * 0.3**2 * sigma**2, alpha**2 * spread + sigma**2
    for _ in range(2):
        mean, var = mean - a * (mean - alpha * m) / v, (1 - a / v) ** 2 * var + 2 * a
    return mean, var


def _annealed_langevin(
    schedule: Schedule, t: Tensor, s: Tensor, m: Tensor, spread: Tensor, mean: Tensor, var: Tensor
) -> tuple[Tensor, Tensor]:
    # Three steps in closed form: a geometric approach to the variance that Langevin steps of size a are stationary at.
    (alpha_t, _), (alpha, sigma) = schedule(t), schedule(s)
    a, v = 0.3 * sigma**2, alpha**2 * spread + sigma**2
    factor, stationary = 1 - a / (2 * v), v / (1 - a / (4 * v))
    scaled_mean, scaled_var = alpha / alpha_t * mean, (alpha / alpha_t) ** 2 * var
    moved = alpha * m + factor**3 * (scaled_mean - alpha * m)
    return moved, stationary + factor**6 * (scaled_var - stationary)


def _churn(
    schedule: Schedule, t: Tensor, s: Tensor, m: Tensor, spread: Tensor, mean: Tensor, var: Tensor
) -> tuple[Tensor, Tensor]:
    # In y = x / alpha over the level: dy / dlevel = level (y - m) / (spread + level^2).
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    level, end = sigma_t / alpha_t, sigma_s / alpha_s
    begin = 1.2 * level
    first = begin / (spread + begin**2)
    second = end / (spread + end**2) * (1 + (end - begin) * first)
    growth = 1 + (end - begin) * (first + second) / 2
    var_y = var / alpha_t**2 + 1.01**2 * (begin**2 - level**2)
    return alpha_s * (m + growth * (mean / alpha_t - m)), alpha_s**2 * growth**2 * var_y


EXACT: dict[str, tuple[Sampler, Scalar]] = {
    "euler_maruyama": (EulerMaruyamaSampler(), _euler_maruyama),
    "predictor_corrector": (PredictorCorrectorSampler(0.3, 2, rule="level"), _predictor_corrector),
    "annealed_langevin": (AnnealedLangevinSampler(0.3, 3), _annealed_langevin),
    "churn": (ChurnSampler(0.2, 0, 100, 1.01), _churn),
}


@pytest.mark.parametrize("schedule", ["continuous_cosine", "variance_exploding", "vp", "sub_vp", "flow"], indirect=True)
@pytest.mark.parametrize("name", EXACT)
def test_gaussian_data_is_propagated_as_derived(name: str, gaussian: GaussianMixtureDenoiser) -> None:
    sampler, scalar = EXACT[name]
    schedule, basis, spread = gaussian.schedule, gaussian.eigenvectors[0], gaussian.eigenvalues[0]
    times = interior(schedule, "lambda", 8, before=0)
    mean, cov = marginal(gaussian, times[0])
    m, expected_mean, expected_var = basis.T @ gaussian.means[0], basis.T @ mean, (basis.T @ cov @ basis).diag()
    for (t, s), (mean_s, cov_s) in zip(pairwise(times), propagate(sampler, gaussian, mean, cov, times), strict=True):
        expected_mean, expected_var = scalar(schedule, t, s, m, spread, expected_mean, expected_var)
        torch.testing.assert_close(basis.T @ mean_s, expected_mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(basis.T @ cov_s @ basis, torch.diag(expected_var), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", ["vp", "sub_vp"], indirect=True)
def test_euler_maruyama_is_of_order_one(gaussian: GaussianMixtureDenoiser) -> None:
    sampler = EulerMaruyamaSampler()
    assert sampler.order == 1
    assert weak_order(lambda _: sampler, gaussian, "t") == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("schedule", ["sub_vp", "variance_exploding"], indirect=True)
def test_churn_in_proportion_to_the_steps_keeps_heuns_order(gaussian: GaussianMixtureDenoiser) -> None:
    assert ChurnSampler().order == 2
    assert weak_order(lambda n: ChurnSampler(2 / n, 0, 100), gaussian, "lambda") == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("arguments", [(0.0, 0.05, 50.0), (0.2, 5.0, 50.0), (0.2, 0.01, 0.02)])
def test_without_churn_or_outside_its_levels_it_is_heun(
    arguments: tuple[float, float, float], schedule: Schedule, mixture: GaussianMixtureDenoiser
) -> None:
    t, s = schedule.inverse(_tensor(0.0, 0.7))  # a level of 1
    x_t = torch.randn(5, 2, dtype=torch.float64)
    churned = ChurnSampler(*arguments).step(mixture, x_t, t, s, (), lambda: torch.ones_like(x_t))[0]
    heun = HeunSampler().step(mixture, x_t, t, s, (), lambda: x_t)[0]
    assert torch.equal(churned, heun) or arguments[0] == 0
    torch.testing.assert_close(churned, heun, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["vp", "variance_exploding"], indirect=True)
def test_corrections_keep_the_distribution(schedule: Schedule, gaussian: GaussianMixtureDenoiser) -> None:
    noise = Noise(0, torch.arange(2000))
    x = prior(schedule, noise, (2,)).double()
    x = PredictorCorrectorSampler().sample(gaussian, x, UniformGrid()(schedule, 200), noise=noise)
    basis, spread = gaussian.eigenvectors[0], gaussian.eigenvalues[0]
    torch.testing.assert_close(x.mean(0), gaussian.means[0], rtol=0, atol=0.06)
    torch.testing.assert_close((x @ basis).T.cov(), torch.diag(spread), rtol=0.12, atol=0.03)


def _corrected(rule: str, x: Tensor, z: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """x after a prediction and one correction on VE, for N(0, variance I), and after the prediction alone."""
    d = x.shape[1]
    normal = GaussianMixtureDenoiser(
        VarianceExplodingSchedule(), torch.zeros(1, d).double(), variance * torch.eye(d).double()[None]
    )
    t, s = _tensor(0.6, 0.59)
    draws = iter((torch.zeros_like(z), z))
    predicted = EulerMaruyamaSampler().step(normal, x, t, s, (), lambda: torch.zeros_like(z))[0]
    sampler = PredictorCorrectorSampler(0.16, rule=rule)
    return sampler.step(normal, x, t, s, (), lambda: next(draws))[0], predicted


def test_the_correctors_step_is_the_papers_for_each_sample_alone() -> None:
    x, z = torch.randn(2, 4, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    after, before = _corrected("norm", x, z, 0.3)
    slope = -before / (0.3 + VarianceExplodingSchedule()(_tensor(0.59))[1] ** 2)
    size = 2 * (0.16 * (z**2).sum(1) ** 0.5 / (slope**2).sum(1) ** 0.5)[:, None] ** 2
    torch.testing.assert_close(after, before + size * slope + (2 * size) ** 0.5 * z, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(_corrected("norm", x[1:2], z[1:2], 0.3)[0], after[1:2])
    assert torch.equal(_corrected("auto", x, z, 0.3)[0], after)
    few = _corrected("auto", x[:, :31], z[:, :31], 0.3)[0]
    assert torch.equal(few, _corrected("level", x[:, :31], z[:, :31], 0.3)[0])


def test_in_many_dimensions_the_norms_say_what_the_level_does() -> None:
    sigma = VarianceExplodingSchedule()(_tensor(0.59))[1]
    x, z = torch.randn(2, 1, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, predicted = _corrected("level", x, z, 1e-9)
    x = x * sigma * 1000**0.5 / predicted.norm()  # so that the prediction, which is linear, has the level's norm
    by_norm, _ = _corrected("norm", x, z, 1e-9)
    by_level, before = _corrected("level", x, z, 1e-9)
    assert ((by_norm - before).norm() / (by_level - before).norm()).item() == pytest.approx(1, abs=0.05)


def _two_modes() -> GaussianMixtureDenoiser:
    """A fifth of the data at -5, the rest at 5 (Song & Ermon 2019, section 3.2.2), levels from 10 down to 0.1."""
    means, eye = _tensor(-5.0, 5.0)[:, None].expand(2, 2).clone(), torch.eye(2).double().expand(2, 2, 2)
    return GaussianMixtureDenoiser(GeometricSchedule(10, 0.1, 10.0), means, eye, _tensor(0.2, 0.8))


def test_annealing_finds_the_weights_of_modes_far_apart_and_plain_langevin_does_not() -> None:
    denoiser, noise = _two_modes(), Noise(0, torch.arange(500))
    times, x = UniformGrid()(denoiser.schedule, 10), prior(denoiser.schedule, noise, (2,)).double()
    annealed = AnnealedLangevinSampler(epsilon=0.5, corrections=30).sample(denoiser, x, times, noise=noise)
    plain = LangevinSampler(epsilon=10.0, corrections=30).sample(denoiser, x, times, noise=noise)
    assert (annealed[:, 0] < 0).double().mean().item() == pytest.approx(0.2, abs=0.05)
    assert (plain[:, 0] < 0).double().mean().item() > 0.35
    for end in (annealed, plain):  # both find the modes
        assert ((end.abs().mean(1) - 5).abs() < 2.5).double().mean() > 0.98


def test_plain_langevin_steps_are_the_papers_at_the_lowest_level_whatever_the_time() -> None:
    denoiser, x, z = _two_modes(), *torch.randn(2, 3, 2, dtype=torch.float64)
    low = _tensor(0.1)[0]
    expected = x
    for _ in range(2):
        gradient = torch.func.grad(lambda y: denoiser.log_prob(y, low).sum())(expected)
        expected = expected + 0.005 * 0.5 * gradient + 0.005**0.5 * z  # sigma^2 = 0.01
    after, known = LangevinSampler(0.5, 2).step(denoiser, x, _tensor(0.9)[0], low, (), lambda: z)
    torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-9)
    assert known[0].t == low
    with pytest.raises(ValueError, match=r"must be t_min, as on a uniform grid"):
        LangevinSampler().check(denoiser, TrailingGrid()(denoiser.schedule, 5))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PredictorCorrectorSampler(snr=0.0), "snr must be positive and finite, got 0"),
        (lambda: PredictorCorrectorSampler(corrections=0), "corrections must be at least 1.*euler_maruyama"),
        (lambda: PredictorCorrectorSampler(rule="size"), "rule must be norm, level or auto, got 'size'"),
        (lambda: LangevinSampler(epsilon=0.0), "epsilon must be positive"),
        (lambda: LangevinSampler(corrections=0), "corrections must be at least 1"),
        (lambda: AnnealedLangevinSampler(epsilon=4.0), "epsilon must lie between 0 and 4"),
        (lambda: AnnealedLangevinSampler(corrections=0), "corrections must be at least 1"),
        (lambda: ChurnSampler(gamma=0.5), "gamma must lie in"),
        (lambda: ChurnSampler(s_min=3.0, s_max=2.0), "s_min < s_max"),
        (lambda: ChurnSampler(s_noise=0.0), "s_noise must be positive"),
    ],
)
def test_settings_that_cannot_be_are_refused(build: Callable[[], Sampler], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_plain_langevin_begins_in_pure_noise_and_needs_a_time_above_zero() -> None:
    denoiser = GaussianMixtureDenoiser(
        CosineSchedule(20, zero_terminal_snr=True), torch.zeros(1, 2), torch.eye(2)[None]
    )
    LangevinSampler(corrections=1).check(denoiser, UniformGrid()(denoiser.schedule, 3))
    with pytest.raises(ValueError, match="uniform grid of at least 2 steps"):
        LangevinSampler().check(denoiser, UniformGrid()(denoiser.schedule, 1))
    with pytest.raises(ValueError, match="must be t_min"):
        LangevinSampler().check(denoiser, torch.zeros(1, dtype=torch.float64))


def test_churn_raises_no_level_above_the_first_and_not_the_last_jumps() -> None:
    schedule = VarianceExplodingSchedule()
    mixture = GaussianMixtureDenoiser(schedule, torch.zeros(1, 2), torch.eye(2)[None])
    times = torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=torch.float64)
    noise = Noise(0, torch.arange(2))
    first, second, jump, _ = ChurnSampler(gamma=0.4)(mixture, prior(schedule, noise, (2,)), times, noise)
    assert first.t == 1
    assert second.t > 0.6
    assert jump.t == 0.3


def test_a_sampler_that_draws_noise_has_to_state_it(gaussian: GaussianMixtureDenoiser) -> None:
    class Silent(EulerMaruyamaSampler):
        stochastic = False

    x = torch.zeros(2, 2, dtype=torch.float64)
    times = TrailingGrid()(gaussian.schedule, 2)
    with pytest.raises(ValueError, match="Silent draws noise, so its class has to state stochastic = True"):
        list(Silent()(gaussian, x, times, Noise(0, torch.arange(2))))
