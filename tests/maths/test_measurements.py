"""Restoration from linear measurements against the exact posterior of Gaussian data. Float64."""

import pytest
import torch
from torch import Tensor, nn

from diffusion.denoisers import Conditioned, Denoiser, GaussianMixtureDenoiser, Prediction
from diffusion.guidance import MeasurementGuidance, minimal_residual
from diffusion.likelihood import ode_log_density
from diffusion.noise import Noise
from diffusion.samplers import DDIMSampler, LogSNRGrid, prior
from diffusion.schedules import LinearSchedule, Schedule, VPSchedule

D, M = 6, 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Linear(nn.Module):
    """A matrix (M, D) as a measurement."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T  # type: ignore[operator]


FACTOR = drawn(D, D) / 2
COVARIANCE, MEAN, MATRIX = FACTOR @ FACTOR.T + 0.05 * torch.eye(D), drawn(D, seed=1), drawn(M, D, seed=2)
MEASURED = drawn(M, seed=3)


def gaussian(schedule: Schedule, mean: Tensor = MEAN, covariance: Tensor = COVARIANCE) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(schedule, mean[None], covariance[None])


def posterior(schedule: Schedule, noise: float, matrix: Tensor = MATRIX) -> GaussianMixtureDenoiser:
    """The exact denoiser of p(x0 | y), a Gaussian of mean m + K (y - A m) and covariance C - K A C."""
    inverse = torch.linalg.inv(matrix @ COVARIANCE @ matrix.T + noise**2 * torch.eye(len(matrix)))
    gain = COVARIANCE @ matrix.T @ inverse
    mean = MEAN + gain @ (MEASURED[: len(matrix)] - matrix @ MEAN)
    return gaussian(schedule, mean, COVARIANCE - gain @ matrix @ COVARIANCE)


def guided(denoiser: Denoiser, noise: float, iterations: int = M) -> MeasurementGuidance:
    return MeasurementGuidance(denoiser, Linear(MATRIX), MEASURED, noise, iterations)


@pytest.mark.parametrize("noise", [0.0, 0.05, 1.0])
def test_on_gaussian_data_the_answer_is_the_exact_denoiser_given_the_measurement(
    noise: float, schedule: Schedule, times: Tensor
) -> None:
    model, exact = guided(gaussian(schedule), noise, 2 * M), posterior(schedule, noise)
    for t in times:
        alpha, sigma = schedule(t)
        x_t = alpha * drawn(5, D, seed=4) + sigma * drawn(5, D, seed=5)
        found = model(x_t, t)
        torch.testing.assert_close(found, exact(x_t, t), rtol=1e-5, atol=1e-5)
        assert not found.requires_grad
        assert (found - model.denoiser(x_t, t)).abs().max() > 1e-4 or sigma / alpha < 0.1


def test_each_row_has_its_own_time_and_measurement() -> None:
    schedule = VPSchedule()
    t, x_t, y = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), drawn(3, D), drawn(3, M, seed=6)
    together = MeasurementGuidance(gaussian(schedule), Linear(MATRIX), y, 0.1, M)(x_t, t)
    for k in range(3):
        alone = MeasurementGuidance(gaussian(schedule), Linear(MATRIX), y[k], 0.1, M)
        torch.testing.assert_close(together[k : k + 1], alone(x_t[k : k + 1], t[k]))


def test_samples_have_the_posteriors_mean_and_covariance() -> None:
    # A deterministic solver draws an affine map of its noise: the same one as with the posterior's own denoiser.
    schedule = VPSchedule()
    times = LogSNRGrid()(schedule, 12)
    x = prior(schedule, Noise(0, torch.arange(20)), (D,)).double()
    with torch.no_grad():
        found = DDIMSampler().sample(guided(gaussian(schedule), 0.2), x, times)
    expected = DDIMSampler().sample(posterior(schedule, 0.2), x, times)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_density_given_the_measurement_is_exact() -> None:
    schedule, x = VPSchedule(), drawn(2, D, seed=7)

    def density(denoiser: Denoiser) -> Tensor:
        return ode_log_density(Conditioned(denoiser, {}), x, steps=3, probe="exact")[1]

    torch.testing.assert_close(
        density(guided(gaussian(schedule), 0.5)), density(posterior(schedule, 0.5)), rtol=1e-5, atol=1e-5
    )


def test_without_noise_the_answer_agrees_with_the_measurement() -> None:
    schedule = VPSchedule()
    for t in (0.05, 0.5, 1.0):
        found = guided(gaussian(schedule), 0.0)(drawn(3, D), torch.tensor(t, dtype=torch.float64))
        torch.testing.assert_close(Linear(MATRIX)(found), MEASURED.expand(3, M), rtol=1e-5, atol=1e-5)


def test_a_measurement_with_endless_noise_changes_nothing() -> None:
    schedule, t, x_t = VPSchedule(), torch.tensor(0.5, dtype=torch.float64), drawn(3, D)
    torch.testing.assert_close(guided(gaussian(schedule), 1e6)(x_t, t), gaussian(schedule)(x_t, t))


def test_the_moments_of_a_mixture_are_matched(mixture: GaussianMixtureDenoiser, times: Tensor) -> None:
    # Beyond one Gaussian: Kalman's update with the exact mean and covariance of p(x0 | x_t).
    matrix, y, noise = torch.tensor([[1.0, -0.5]], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64), 0.3
    for t in times[1:]:
        x_t = drawn(4, 2) * mixture.schedule(t)[1]
        weights, means, covariances = mixture.posterior(x_t, t)
        mean = (weights[..., None] * means).sum(1)
        around = means - mean[:, None]
        covariance = torch.einsum("bk,bkd,bke->bde", weights, around, around) + torch.einsum(
            "bk,bkde->bde", weights, covariances.expand(4, -1, -1, -1)
        )
        gain = covariance @ matrix.T / (matrix @ covariance @ matrix.T + noise**2)
        expected = mean + (gain @ (y - mean @ matrix.T)[..., None])[..., 0]
        found = MeasurementGuidance(mixture, Linear(matrix), y, noise)(x_t, t)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_system_is_solved_in_as_many_iterations_as_it_has_eigenvalues() -> None:
    matrix, b = COVARIANCE + torch.eye(D), drawn(3, D, seed=8)
    solved = b @ torch.linalg.inv(matrix)
    for iterations, near in ((1, False), (D - 2, False), (D, True), (3 * D, True)):
        found = minimal_residual(lambda v: v @ matrix, b, iterations)
        assert found.isfinite().all()
        assert torch.allclose(found, solved, rtol=1e-9, atol=1e-9) == near


def test_what_is_left_of_a_system_never_grows_whatever_its_matrix_is() -> None:
    # Neither symmetric nor positive, as the Jacobian of a trained denoiser may be in some directions.
    b = torch.cat((drawn(4, D, seed=9), torch.zeros(1, D, dtype=torch.float64)))
    for seed in range(5):
        matrix = drawn(D, D, seed=seed)
        left = [
            (b - minimal_residual(lambda v, matrix=matrix: v @ matrix, b, k) @ matrix).norm(dim=1) for k in range(1, D)
        ]
        for fewer, more in zip([b.norm(dim=1), *left], left, strict=False):
            assert (more <= fewer + 1e-9).all()
        assert (minimal_residual(lambda v, matrix=matrix: v @ matrix, b, 3)[-1] == 0).all()


def test_what_else_the_model_says_stays_its_own() -> None:
    class Learned(Denoiser):
        def predict(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Prediction:
            return Prediction(0.5 * x_t, extra=0.3 * x_t)

    schedule = LinearSchedule()
    model, x_t, t = Learned(schedule, "learned"), drawn(2, D), torch.tensor(0.5, dtype=torch.float64)
    prediction = guided(model, 0.1).predict(x_t, t, {})
    assert prediction.extra is not None
    assert torch.equal(prediction.extra, 0.3 * x_t)
    assert not prediction.extra.requires_grad


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((-0.1,), "noise must be a standard deviation"),
        ((float("nan"),), "noise must be a standard deviation"),
        ((0.1, 0), "iterations must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple[float, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MeasurementGuidance(gaussian(VPSchedule()), Linear(MATRIX), MEASURED, *arguments)


def test_a_schedule_without_data_at_its_end_is_refused() -> None:
    with pytest.raises(ValueError, match="zero terminal SNR"):
        guided(gaussian(LinearSchedule(zero_terminal_snr=True)), 0.1)
