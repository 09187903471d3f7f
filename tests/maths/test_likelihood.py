"""Likelihoods against exact ones: the variational bound on Gaussians, the ODE's density on mixtures. Float64."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from diffusion.denoisers import ClippedDenoiser, GaussianMixtureDenoiser
from diffusion.forward import posterior
from diffusion.likelihood import (
    bits,
    bound_term,
    dequantised,
    discretised_nll,
    gaussian_kl,
    gaussian_nll,
    ode_log_density,
    ode_nll,
    prior_log_density,
    prior_term,
    variational_bound,
)
from diffusion.noise import EVALUATION, Noise
from diffusion.samplers import TrailingGrid
from diffusion.schedules import CosineSchedule, DiscreteSchedule, LinearSchedule, Schedule

EULER_GAMMA = 0.5772156649015329
PIXELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _noise(rows: int) -> Noise:
    return Noise(0, torch.arange(rows), EVALUATION)


def _normal(schedule: Schedule, mean: float, std: float, variance: str = "beta") -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(schedule, _tensor(mean)[None], _tensor(std**2)[None, None], variance=variance)


# --- terms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [1e-4, 1e-2, 1.0, 30.0])
@pytest.mark.parametrize("mean", [-1.3, -1.0, 0.0, 0.1234, 0.999, 2.0])
def test_the_256_bins_share_out_one(mean: float, std: float) -> None:
    total = torch.exp(-discretised_nll(PIXELS, _tensor(mean), _tensor(2 * math.log(std)))).sum()
    assert total.item() == pytest.approx(1, abs=1e-12)


def test_a_bin_has_the_gaussians_mass() -> None:
    mean, std = _tensor(0.3), _tensor(0.2)
    middle, half = PIXELS[1:-1], 1 / 255
    expected = Normal(mean, std).cdf(middle + half) - Normal(mean, std).cdf(middle - half)
    torch.testing.assert_close(torch.exp(-discretised_nll(middle, mean, 2 * std.log())), expected)
    ends = discretised_nll(PIXELS[[0, -1]], mean, 2 * std.log())
    open_ends = torch.stack((Normal(mean, std).cdf(PIXELS[0] + half), 1 - Normal(mean, std).cdf(PIXELS[-1] - half)))
    torch.testing.assert_close(torch.exp(-ends), open_ends[:, 0])


@pytest.mark.parametrize("mean", [-0.9, 0.9])
def test_a_bin_far_out_keeps_its_digits_and_its_slope(mean: float) -> None:
    # In the tail, log(Phi(b) - Phi(a)) is within a few nats of the near edge's -z^2 / 2; a clamp at 1e-12 gives 27.6.
    mean_, log_var = _tensor(mean).requires_grad_(), _tensor(2 * math.log(1e-3))
    nll = discretised_nll(PIXELS[[127]], mean_, log_var)
    z = (abs(mean - PIXELS[127].item()) - 1 / 255) / 1e-3
    assert nll.item() == pytest.approx(z**2 / 2, abs=10)
    (slope,) = torch.autograd.grad(nll.sum(), mean_)
    assert slope.item() == pytest.approx(math.copysign(z / 1e-3, mean), rel=1e-3)


def test_gaussian_divergence_and_density_are_those_of_torch() -> None:
    mean, other = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_var, other_log_var = torch.linspace(-4, 3, 50).double(), torch.linspace(2, -5, 50).double()
    p, q = Normal(mean, (log_var / 2).exp()), Normal(other, (other_log_var / 2).exp())
    torch.testing.assert_close(gaussian_kl(mean, log_var, other, other_log_var), kl_divergence(p, q))
    torch.testing.assert_close(gaussian_nll(other, mean, log_var), -p.log_prob(other))


def test_the_priors_term_is_the_divergence_from_where_sampling_begins(schedule: Schedule) -> None:
    x0 = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    alpha, sigma = schedule(torch.ones((), dtype=torch.float64))
    expected = kl_divergence(Normal(alpha * x0, sigma), Normal(torch.zeros_like(x0), sigma)).mean(1)
    torch.testing.assert_close(prior_term(schedule, x0), expected)
    torch.testing.assert_close(prior_log_density(schedule, x0), Normal(0.0, sigma).log_prob(x0).sum(1))


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_a_term_is_the_snr_difference_for_beta_tilde_only(
    variance: str, schedule: Schedule, times: Tensor, mixture: GaussianMixtureDenoiser
) -> None:
    mixture.variance = variance
    x0 = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, s = times[1:], times[:-1]
    alpha, sigma = (c[:, None] for c in schedule(t))
    x_t = alpha * x0 + 0.7 * sigma
    mean, log_var, denoised = mixture.transition(x_t, t, s)
    term = bound_term(mixture, x0, x_t, t, s, mean, log_var, eight_bit=False)
    difference = schedule.log_snr(s).exp() - schedule.log_snr(t).exp()
    simple = difference / 2 * ((x0 - denoised) ** 2).mean(1)
    if variance == "beta_tilde":
        torch.testing.assert_close(term, simple, rtol=1e-6, atol=1e-9)
    else:
        true_mean, true_var = posterior(schedule, x_t, x0, t, s)
        true, model = Normal(true_mean, true_var.sqrt()[:, None]), Normal(mean, (log_var / 2).exp())
        torch.testing.assert_close(term, kl_divergence(true, model).mean(1), rtol=1e-6, atol=1e-9)
        assert ((term - simple).abs() > 1e-3 * term).all()


# --- the bound --------------------------------------------------------------------------------------------------------


def _gap(schedule: DiscreteSchedule, variance: str, mean: float, std: float, rows: int = 4000) -> tuple[float, float]:
    """Mean and standard error of the bound less the exact `-log p(x0)`, over draws of x0, in nats."""
    denoiser = _normal(schedule, mean, std, variance)
    x0 = mean + std * Noise(1, torch.arange(rows)).normal((1,)).double()
    times = TrailingGrid()(schedule, len(schedule.betas))
    bound = variational_bound(denoiser, x0, times, _noise(rows), eight_bit=False).sum(1)
    gap = bound + Normal(mean, std).log_prob(x0[:, 0])
    return gap.mean().item(), (gap.std() / math.sqrt(rows)).item()


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_the_bound_is_above_the_exact_likelihood(variance: str) -> None:
    for mean, std in ((0.0, 1.0), (0.5, 0.4)):
        gap, error = _gap(CosineSchedule(30), variance, mean, std)
        assert gap > -4 * error


def test_with_beta_the_bound_becomes_tight_as_steps_are_added() -> None:
    gaps = [_gap(CosineSchedule(timesteps), "beta", 0.5, 0.4, rows=16_000) for timesteps in (10, 40, 160)]
    assert all(fine < coarse / 2 for (coarse, _), (fine, _) in pairwise(gaps))
    assert gaps[-1][0] < 0.2 * gaps[0][0]
    assert max(error for _, error in gaps) < 0.1 * gaps[0][0]


def test_with_beta_tilde_the_bound_of_a_standard_normal_keeps_half_of_eulers_constant() -> None:
    schedule = LinearSchedule(250)
    # The reverse step has the exact mean and the variance beta: a KL with nothing but two variances in it.
    alpha_bar = (1 - schedule.betas).cumprod(0)
    ratio = (1 - alpha_bar[1:]) / (1 - alpha_bar[:-1])
    expected = 0.5 * (ratio - 1 - ratio.log()).sum().item()
    gap, error = _gap(schedule, "beta_tilde", 0.0, 1.0, rows=2000)
    assert gap == pytest.approx(expected, abs=4 * error)
    assert error < 0.04
    exact, error = _gap(schedule, "beta", 0.0, 1.0, rows=1000)
    assert exact == pytest.approx(0, abs=4 * error)
    assert error < 0.06
    fine = LinearSchedule(1_000_000).betas
    alpha_bar = (1 - fine).cumprod(0)
    ratio = (1 - alpha_bar[1:]) / (1 - alpha_bar[:-1])
    assert 0.5 * (ratio - 1 - ratio.log()).sum().item() == pytest.approx(EULER_GAMMA / 2, abs=1e-3)


@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_samples_terms_do_not_depend_on_its_batch(eight_bit: bool) -> None:
    schedule = CosineSchedule(8)
    denoiser, x0 = _normal(schedule, 0.0, 0.5), PIXELS[::16].reshape(-1, 1)
    times = TrailingGrid()(schedule, 8)
    together = variational_bound(denoiser, x0, times, _noise(16), eight_bit)
    assert together.shape == (16, 9)
    alone = variational_bound(denoiser, x0[5:6], times, Noise(0, torch.tensor([5]), EVALUATION), eight_bit)
    torch.testing.assert_close(together[5:6], alone)
    assert (together[:, 1:].diff(dim=0).abs() > 0).all()  # noise of its own in every row


def test_the_bound_of_pixels_is_above_the_entropy_of_their_distribution() -> None:
    # Data uniform on four grey levels, log 4 nats. The steps before the last tell them apart; the decoder's Gaussian is
    # wider than a bin, and costs a further nat.
    levels = PIXELS[[0, 85, 170, 255]]
    schedule = CosineSchedule(200)
    points = torch.zeros(4, 1, 1, dtype=torch.float64)
    denoiser = GaussianMixtureDenoiser(schedule, levels[:, None], points, variance="beta_tilde")
    x0 = levels.repeat(200)[:, None]
    terms = variational_bound(denoiser, x0, TrailingGrid()(schedule, 200), _noise(800), eight_bit=True)
    before, error = terms[:, :-1].sum(1).mean().item(), terms[:, :-1].sum(1).std().item() / math.sqrt(800)
    assert before == pytest.approx(math.log(4), abs=4 * error + 0.02)
    assert (terms[:, -1] > 0).all()
    assert terms[:, -1].mean() < 1.3


# --- the probability-flow ODE -----------------------------------------------------------------------------------------


def _points(mixture: GaussianMixtureDenoiser) -> Tensor:
    """Likely ones, and some that are not."""
    factors = mixture.eigenvectors[0] * mixture.eigenvalues[0].sqrt()
    z = torch.randn(24, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat((mixture.means[0] + z[:16] @ factors.T, 1.5 * z[16:]))


def _check_density(mixture: GaussianMixtureDenoiser, **settings: Any) -> None:
    x = _points(mixture)
    start, end = (torch.tensor(t, dtype=torch.float64) for t in (mixture.schedule.t_min, 1.0))
    x_1, change = ode_log_density(mixture, x, probe="exact", **settings)
    exact = mixture.log_prob(x, start)
    torch.testing.assert_close(mixture.log_prob(x_1, end) + change, exact, rtol=0, atol=2e-4)  # 1e-4 a dimension


def test_the_odes_density_is_the_mixtures(mixture: GaussianMixtureDenoiser) -> None:
    _check_density(mixture, tolerance=1e-6)


@pytest.mark.parametrize("schedule", ["vp", "sub_vp", "variance_exploding"], indirect=True)
def test_the_odes_density_in_fixed_steps_is_the_mixtures(mixture: GaussianMixtureDenoiser) -> None:
    _check_density(mixture, steps=150)


def test_the_density_takes_steps_or_a_tolerance() -> None:
    denoiser, x = _normal(LinearSchedule(), 0, 1), _tensor(0.5)[:, None]
    with pytest.raises(ValueError, match="tolerance=0.001 chooses the solver's steps: leave out steps=9"):
        ode_log_density(denoiser, x, steps=9, probe="exact", tolerance=1e-3)


def test_with_the_prior_at_the_end_only_the_mismatch_is_lost() -> None:
    schedule = LinearSchedule()
    denoiser, x = _normal(schedule, 0.2, 0.5), _tensor(-0.3, 0.1, 0.9)[:, None]
    x_1, change = ode_log_density(denoiser, x, steps=100, probe="exact")
    mismatch = prior_log_density(schedule, x_1) - denoiser.log_prob(x_1, torch.ones((), dtype=torch.float64))
    exact = denoiser.log_prob(x, torch.tensor(schedule.t_min, dtype=torch.float64))
    torch.testing.assert_close(prior_log_density(schedule, x_1) + change, exact + mismatch, rtol=0, atol=1e-4)
    assert mismatch.abs().max() < 0.01


@pytest.mark.parametrize("schedule", ["linear", "sub_vp"], indirect=True)
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinsons_estimate_is_unbiased_and_better_with_more_probes(
    probe: str, mixture: GaussianMixtureDenoiser
) -> None:
    x = _tensor(0.7, -0.2).expand(400, 2)
    _, exact = ode_log_density(mixture, x[:1], steps=20, probe="exact")
    spread = []
    for probes in (1, 4):
        _, estimates = ode_log_density(mixture, x, _noise(400), steps=20, probes=probes, probe=probe)
        spread.append(estimates.std().item())
        assert estimates.mean().item() == pytest.approx(exact.item(), abs=4 * spread[-1] / 20)
    assert spread[1] == pytest.approx(spread[0] / 2, rel=0.25)


def test_a_sign_is_an_exact_probe_in_one_dimension() -> None:
    denoiser, x = _normal(LinearSchedule(), 0.0, 0.5), _tensor(-0.3, 0.1, 0.9)[:, None]
    exact = ode_log_density(denoiser, x, steps=10, probe="exact")
    for ours, expected in zip(ode_log_density(denoiser, x, _noise(3), steps=10), exact, strict=True):
        torch.testing.assert_close(ours, expected)


def test_dequantised_pixels_fill_their_bins_and_lose_nothing() -> None:
    x0 = PIXELS.reshape(4, 1, 8, 8)
    spread = dequantised(x0, _noise(4))
    assert torch.equal(((spread + 1) * 127.5).round(), ((x0 + 1) * 127.5).round())
    offsets = (spread - x0) * 127.5
    assert offsets.abs().max() <= 0.5
    assert offsets.min() < -0.45
    assert offsets.max() > 0.45


def test_a_uniform_density_over_256_levels_is_eight_bits() -> None:
    # Levels from -1 to 1 with half a bin to either side: a length of 256 / 127.5.
    log_density = _tensor(64 * -math.log(256 / 127.5))
    assert bits(ode_nll(log_density, 64, eight_bit=True)).item() == pytest.approx(8, abs=1e-12)
    difference = bits(ode_nll(log_density, 64, True) - ode_nll(log_density, 64, False)).item()
    assert difference == pytest.approx(6.99435, abs=1e-5)


class _Recording(Noise):
    """Remembers which draws were asked for."""

    draws: list[int]

    def uniform(self, shape: Any = (), step: int = 0, draw: int = 0) -> Tensor:
        self.draws.append(draw)
        return super().uniform(shape, step, draw)

    def normal(self, shape: Any, step: int = 0, draw: int = 0) -> Tensor:
        self.draws.append(draw)
        return super().normal(shape, step, draw)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_each_probe_has_a_draw_of_its_own_and_none_is_the_dequantisers(
    probe: str, schedule: Schedule, mixture: GaussianMixtureDenoiser
) -> None:
    noise = _Recording(0, torch.arange(2))
    noise.draws = []
    x = dequantised(torch.zeros(2, 2, dtype=torch.float64), noise)
    ode_log_density(mixture, x, noise, steps=1, probes=3, probe=probe)
    assert len(set(noise.draws)) == len(noise.draws) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probe": "sphere"}, "probe must be rademacher, gaussian or exact"),
        ({"probes": 0}, "probes must be at least 1"),
        ({"probe": "exact", "probes": 2}, "1 with probe=exact"),
        ({}, "probe=rademacher needs noise="),
    ],
)
def test_bad_probes_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ode_log_density(_normal(LinearSchedule(), 0, 1), torch.zeros(1, 1), **arguments)  # type: ignore[arg-type]


def test_a_clipped_model_has_no_likelihood() -> None:
    schedule = LinearSchedule()
    clipped, x = ClippedDenoiser(_normal(schedule, 0, 1)), torch.zeros(1, 1)
    with pytest.raises(ValueError, match="without clipping"):
        ode_log_density(clipped, x, _noise(1))
    with pytest.raises(ValueError, match="without clipping"):
        variational_bound(clipped, x, TrailingGrid()(schedule, 2), _noise(1), eight_bit=True)


def test_with_zero_terminal_snr_the_bound_has_no_prior_term_and_the_ode_is_refused() -> None:
    schedule = CosineSchedule(100, zero_terminal_snr=True)
    denoiser, x = _normal(schedule, 0.3, 1.0), _tensor(-0.3, 0.1, 0.9)[:, None]
    terms = variational_bound(denoiser, x, TrailingGrid()(schedule, 100), Noise(0, torch.arange(3)), False)
    assert (terms[:, 0] == 0).all()
    assert terms.isfinite().all()
    with pytest.raises(ValueError, match=r"the ODE cannot go to t = 1"):
        ode_log_density(denoiser, x, probe="exact")
