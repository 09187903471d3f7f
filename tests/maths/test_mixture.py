"""The exact denoiser of a Gaussian mixture, by quadrature and by its gradient."""

import numpy as np
import pytest
import torch
from support.solutions import states_at
from torch import Tensor

from diffusion.denoisers import (
    GaussianMixtureDenoiser,
)
from diffusion.schedules import (
    Schedule,
)


def test_the_mixtures_denoiser_is_the_mean_of_x0_by_quadrature_in_1d(schedule: Schedule, times: Tensor) -> None:
    means, stds, weights = [-1.0, 0.5, 1.5], [0.3, 0.6, 0.2], [2.0, 1.0, 1.0]
    denoiser = GaussianMixtureDenoiser(
        schedule,
        torch.tensor(means, dtype=torch.float64)[:, None],
        torch.tensor(stds, dtype=torch.float64)[:, None, None] ** 2,
        torch.tensor(weights, dtype=torch.float64),
    )
    x0 = np.linspace(-8, 8, 40001)
    prior = sum(w / s * np.exp(-((x0 - m) ** 2) / (2 * s**2)) for m, s, w in zip(means, stds, weights, strict=True))
    for t in times[1:]:
        alpha, sigma = (c.item() for c in schedule(t))
        for x_t in (-1.1 * alpha - sigma, 0.3 * alpha + 0.2 * sigma, 2 * alpha + sigma):
            joint = prior * np.exp(-((x_t - alpha * x0) ** 2) / (2 * sigma**2))
            result = denoiser(torch.tensor([[x_t]], dtype=torch.float64), t)
            assert result.item() == pytest.approx((joint * x0).sum() / joint.sum(), abs=1e-8)


def test_the_mixtures_denoiser_and_density_by_quadrature_in_2d(
    schedule: Schedule, times: Tensor, mixture: GaussianMixtureDenoiser
) -> None:
    axis = torch.linspace(-5, 5, 401, dtype=torch.float64)
    x0 = torch.cartesian_prod(axis, axis)
    factors = mixture.eigenvectors * mixture.eigenvalues.sqrt()[:, None]
    components = [
        torch.distributions.MultivariateNormal(m, f @ f.T) for m, f in zip(mixture.means, factors, strict=True)
    ]
    log_prior = torch.stack([d.log_prob(x0) for d in components], -1) + mixture.log_weights
    cell = (axis[1] - axis[0]) ** 2
    for t in times[2:]:
        alpha, sigma = schedule(t)
        if sigma / alpha < 0.1:  # narrower than the quadrature's cells resolve
            continue
        x_t = torch.stack((0.4 * alpha + 0.5 * sigma, -0.2 * alpha - 0.3 * sigma))
        log_likelihood = -((x_t - alpha * x0) ** 2).sum(-1) / (2 * sigma**2) - (2 * torch.pi * sigma**2).log()
        joint = (log_prior.logsumexp(-1) + log_likelihood).exp() * cell
        expected = (joint[:, None] * x0).sum(0) / joint.sum()
        torch.testing.assert_close(mixture(x_t[None], t)[0], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(mixture.log_prob(x_t[None], t)[0], joint.sum().log(), rtol=0, atol=1e-5)


def test_the_score_is_the_gradient_of_the_log_density(
    schedule: Schedule, times: Tensor, mixture: GaussianMixtureDenoiser
) -> None:
    x_t = states_at(schedule, times).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_prob(x_t, times).sum(), x_t)
    alpha, sigma = (c[:, None] for c in schedule(times))
    score = (alpha * mixture(x_t, times) - x_t) / sigma**2
    torch.testing.assert_close(score * sigma, gradient * sigma, rtol=1e-6, atol=1e-8)


def test_the_mixture_takes_one_time_for_each_row(
    schedule: Schedule, times: Tensor, mixture: GaussianMixtureDenoiser
) -> None:
    x_t = states_at(schedule, times)
    alone = torch.cat([mixture(x_t[b : b + 1], times[b]) for b in range(9)])
    torch.testing.assert_close(mixture(x_t, times), alone, rtol=1e-12, atol=1e-12)


def test_weights_are_normalised_and_equal_by_default(schedule: Schedule, times: Tensor) -> None:
    means, covariances = torch.tensor([[-1.0], [1.0]]).double(), torch.ones(2, 1, 1).double()
    plain = GaussianMixtureDenoiser(schedule, means, covariances)
    weighted = GaussianMixtureDenoiser(schedule, means, covariances, torch.tensor([7.0, 7.0]).double())
    x = torch.tensor([[0.3]]).double()
    torch.testing.assert_close(plain(x, times[4]), weighted(x, times[4]))
    torch.testing.assert_close(plain.log_prob(x, times[4]), weighted.log_prob(x, times[4]))


def test_a_degenerate_mixture_of_points_works(schedule: Schedule, times: Tensor) -> None:
    points = torch.tensor([[-1.0, 1.0], [1.0, 1.0]]).double()
    denoiser = GaussianMixtureDenoiser(schedule, points, torch.zeros(2, 2, 2).double())
    alpha, _ = schedule(times[0])
    torch.testing.assert_close(denoiser(alpha * points, times[0]), points, rtol=0, atol=1e-12)
