"""The spread of samples of one Gaussian. A deterministic sampler is a linear map there, so the numbers are exact."""

from itertools import pairwise, product

import pytest
import torch

from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.forward import eps_from
from diffusion.grids import Grid, KarrasGrid, LogSNRGrid, QuadraticGrid, TrailingGrid, UniformGrid
from diffusion.multistep import DPMSolverPP2MSampler, DPMSolverPP3MSampler, IPNDMSampler, UniPCSampler
from diffusion.samplers import DDIMSampler, HeunSampler, Sampler
from diffusion.schedules import CosineSchedule, FlowSchedule, Schedule, VPSchedule

STD = 0.3
GRIDS = (TrailingGrid(), UniformGrid(), QuadraticGrid(), LogSNRGrid(), KarrasGrid())
HIGHER = (DPMSolverPP2MSampler(), DPMSolverPP3MSampler(), UniPCSampler(), IPNDMSampler(), HeunSampler())


def spread(sampler: Sampler, grid: Grid, schedule: Schedule, steps: int, std: float = STD) -> float:
    """The standard deviation of samples of N(0, std^2), by the exact denoiser, from the exact state at t = 1."""
    variance = torch.full((1, 1, 1), std**2, dtype=torch.float64)
    denoiser = GaussianMixtureDenoiser(schedule, torch.zeros(1, 1, dtype=torch.float64), variance)
    times = grid(schedule, steps)
    alpha, sigma = schedule(times[0])
    x = ((alpha * std) ** 2 + sigma**2).sqrt().reshape(1, 1)
    return sampler.sample(denoiser, x, times).abs().item()


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: type(grid).__name__)
@pytest.mark.parametrize("sampler", HIGHER, ids=lambda sampler: type(sampler).__name__)
def test_a_higher_order_is_not_worse_than_ddim_on_any_grid(sampler: Sampler, grid: Grid, schedule: Schedule) -> None:
    for steps, std in product((10, 20, 50), (0.05, STD, 1.0)):
        error = abs(spread(sampler, grid, schedule, steps, std) - std)
        assert error <= 1.3 * abs(spread(DDIMSampler(), grid, schedule, steps, std) - std) + 1e-3, (steps, std)


def test_a_step_far_longer_than_the_last_one_is_taken_at_first_order() -> None:
    # The last step of a uniform grid on VP is 7.7 times as long in log-SNR as the one before it.
    schedule, grid = VPSchedule(), UniformGrid()
    assert spread(DDIMSampler(), grid, schedule, 20) == pytest.approx(0.2340, abs=1e-3)
    assert spread(DPMSolverPP2MSampler(), grid, schedule, 20) == pytest.approx(0.2553, abs=1e-3)


@pytest.mark.parametrize("sampler", HIGHER[:3], ids=lambda sampler: type(sampler).__name__)
def test_even_steps_keep_the_full_order(sampler: Sampler, schedule: Schedule) -> None:
    assert spread(sampler, LogSNRGrid(), schedule, 20) == pytest.approx(STD, abs=0.01)


def test_heun_takes_a_step_from_pure_noise_far_into_the_data_by_the_mean_of_both_answers() -> None:
    # sigma / alpha falls from 40,000 to 6.5: the mean of both slopes left a spread of 1.35.
    assert spread(HeunSampler(), QuadraticGrid(), CosineSchedule(), 20) == pytest.approx(STD, abs=0.01)


def test_heun_is_edms_where_steps_are_short_or_far_above_the_data() -> None:
    schedule = FlowSchedule()
    denoiser = GaussianMixtureDenoiser(schedule, torch.zeros(1, 1), torch.full((1, 1, 1), STD**2))
    times = TrailingGrid()(schedule, 50)[:-1]  # the first step is one of 3 in lambda, from 999 to 46 in sigma / alpha
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        x_t = sigma_t * torch.tensor([[0.7], [-1.9]])
        length = sigma_s / alpha_s - sigma_t / alpha_t
        first = eps_from(schedule, x_t, t, denoiser(x_t, t))
        euler = alpha_s * (x_t / alpha_t + length * first)
        second = eps_from(schedule, euler, s, denoiser(euler, s))
        expected = alpha_s * (x_t / alpha_t + length * (first + second) / 2)
        assert torch.equal(HeunSampler().step(denoiser, x_t, t, s, (), lambda: torch.zeros(2, 1))[0], expected)
