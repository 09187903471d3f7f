"""What samplers make of Gaussian data: exact numbers, against the truth and against DDIM's."""

import warnings
from itertools import pairwise, product
from typing import Any

import pytest
import torch

from cli import choices_of
from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.forward import eps_from
from diffusion.models import PriorDenoiser
from diffusion.noise import Noise
from diffusion.runs.parts import Parts
from diffusion.samplers import (
    AdaptiveSampler,
    AnnealedLangevinSampler,
    ChurnSampler,
    DDIMSampler,
    DDPMSampler,
    DPMSolverPP2MSampler,
    DPMSolverPP2MSDESampler,
    DPMSolverPP3MSampler,
    EulerMaruyamaSampler,
    Grid,
    HeunSampler,
    IPNDMSampler,
    LangevinSampler,
    LogSNRGrid,
    PredictorCorrectorSampler,
    Sampler,
    TrailingGrid,
    UniformGrid,
    UniPCSampler,
    trial,
)
from diffusion.samplers.onestep import _bends
from diffusion.sampling.method import GRIDS, sampler_and_times
from diffusion.schedules import (
    CosineSchedule,
    FlowSchedule,
    GeometricSchedule,
    LinearSchedule,
    Schedule,
    VarianceExplodingSchedule,
    VPSchedule,
)
from diffusion.training.previews import quick_method

NEAR = (
    HeunSampler(),
    DPMSolverPP2MSampler(),
    DPMSolverPP3MSampler(),
    UniPCSampler(),
    IPNDMSampler(),
    ChurnSampler(),
)


def check_near(sampler: Sampler, grid: Grid, schedule: Schedule, steps: int) -> None:
    times = grid(schedule, steps)
    found, ddim = trial.distances(sampler, schedule, times), trial.distances(DDIMSampler(), schedule, times)
    assert (found <= 1.3 * ddim + 0.01).all(), (steps, found, ddim)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("sampler", NEAR, ids=lambda sampler: type(sampler).__name__)
def test_mean_and_spread_are_near_ddims_or_nearer_the_truth_on_any_grid(
    sampler: Sampler, grid: Grid, schedule: Schedule
) -> None:
    for steps in (10, 20):
        check_near(sampler, grid, schedule, steps)


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("sampler", NEAR, ids=lambda sampler: type(sampler).__name__)
def test_so_they_are_in_few_steps_in_many_and_on_a_part_of_the_way(
    sampler: Sampler, grid: Grid, schedule: Schedule
) -> None:
    for steps in (3, 5, 50, 100):
        check_near(sampler, grid, schedule, steps)
    for steps, t_start in product((5, 20), (0.3, 0.7)):
        times = grid(schedule, steps, t_start)
        assert trial.far_off(sampler, schedule, times) is None, (steps, t_start)


@pytest.mark.parametrize("steps", [3, 5])
def test_an_adaptive_sampler_is_near_wherever_its_grid_ends_at_the_lowest_time(steps: int, schedule: Schedule) -> None:
    found = trial.distances(AdaptiveSampler(), schedule, LogSNRGrid()(schedule, steps))
    assert found.max() < 1e-2


@pytest.mark.parametrize("sampler", [DDPMSampler(), DPMSolverPP2MSDESampler(), DPMSolverPP2MSampler()])
def test_the_exact_moments_are_those_of_many_samples(sampler: Sampler) -> None:
    schedule, n = LinearSchedule(), 20_000
    times = TrailingGrid()(schedule, 6)
    variances = torch.tensor(trial.SPREADS, dtype=torch.float64).square()
    means = torch.full((1, 3), trial.MEAN, dtype=torch.float64)
    denoiser = GaussianMixtureDenoiser(schedule, means, variances.diag()[None])
    noise = Noise(0, torch.arange(n))
    alpha, sigma = schedule(times[0])
    x = alpha * means + (alpha**2 * variances + sigma**2).sqrt() * noise.normal((3,)).double()
    samples = sampler.sample(denoiser, x, times, noise)
    mean, spread = trial.moments(sampler, schedule, times)
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(samples.std(0), spread, rtol=0.03, atol=0)


def test_a_step_far_longer_than_the_last_one_is_taken_at_first_order() -> None:
    # The last step of a uniform grid on VP is 7.7 times as long in log-SNR as the one before it.
    schedule = VPSchedule()
    times = UniformGrid()(schedule, 20)
    assert trial.moments(DDIMSampler(), schedule, times)[1][1].item() == pytest.approx(0.2340, abs=1e-3)
    assert trial.moments(DPMSolverPP2MSampler(), schedule, times)[1][1].item() == pytest.approx(0.2553, abs=1e-3)


def test_heun_takes_a_step_from_pure_noise_far_into_the_data_by_the_mean_of_both_answers() -> None:
    # sigma / alpha falls from 40,000 to 6.5: the mean of both slopes left a spread of 1.35.
    schedule = CosineSchedule()
    spread = trial.moments(HeunSampler(), schedule, GRIDS["quadratic"](schedule, 20))[1]
    assert spread[1].item() == pytest.approx(0.3, abs=0.01)


def test_heun_is_edms_where_steps_are_short_or_far_above_the_data() -> None:
    schedule = FlowSchedule()
    denoiser = GaussianMixtureDenoiser(schedule, torch.zeros(1, 1), torch.full((1, 1, 1), 0.3**2))
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


@pytest.mark.parametrize("sampler", NEAR[1:4], ids=lambda sampler: type(sampler).__name__)
def test_even_steps_keep_the_full_order(sampler: Sampler, schedule: Schedule) -> None:
    spread = trial.moments(sampler, schedule, LogSNRGrid()(schedule, 20))[1]
    assert spread[1].item() == pytest.approx(0.3, abs=0.01)


def method(sampler: str, grid: str, steps: int) -> dict[str, Any]:
    names = {"euler_maruyama": "stochastic.EulerMaruyamaSampler", "dpmpp_2m": "multistep.DPMSolverPP2MSampler"}
    return {
        "sampler": {"_target_": f"diffusion.{names[sampler]}"},
        "grid": {"_target_": f"diffusion.samplers.grids.{type(GRIDS[grid]).__name__}"},
        "steps": steps,
    }


def test_a_sampler_that_is_far_off_is_warned_of_with_what_is_near() -> None:
    denoiser = GaussianMixtureDenoiser(VPSchedule(), torch.zeros(1, 2), torch.eye(2)[None])
    with pytest.warns(UserWarning, match="EulerMaruyamaSampler is less accurate than DDIM in these 20 steps") as caught:
        sampler_and_times(Parts(method("euler_maruyama", "uniform", 20)), denoiser)
    text = str(caught[0].message)
    found, ddim = (
        trial.distances(sampler, VPSchedule(), UniformGrid()(VPSchedule(), 20))[0].item()
        for sampler in (EulerMaruyamaSampler(), DDIMSampler())
    )
    assert f"0.05 are {found:.2g} from the data (Wasserstein distance), and DDIM's {ddim:.2g}; more accurate" in text
    _, *offered = text.partition("; more accurate: ")[2].split(", or ")
    assert offered
    for way in offered:
        grid, _, steps = way.removeprefix("grid=").partition(" steps=")
        times = GRIDS[grid](VPSchedule(), int(steps or 20))
        assert trial.far_off(EulerMaruyamaSampler(), VPSchedule(), times) is None


@pytest.mark.parametrize(("sampler", "steps"), [("dpmpp_2m", 20), ("euler_maruyama", 500)])
def test_a_sampler_that_is_near_is_not_warned_of(sampler: str, steps: int) -> None:
    denoiser = GaussianMixtureDenoiser(VPSchedule(), torch.zeros(1, 2), torch.eye(2)[None])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampler_and_times(Parts(method(sampler, "uniform", steps)), denoiser)
        sampler_and_times(Parts(method("euler_maruyama", "uniform", 20)), PriorDenoiser(VPSchedule()))
    assert [str(warning.message) for warning in caught] == []


def test_the_grids_that_are_tried_are_all_that_are_offered() -> None:
    assert set(GRIDS) == set(choices_of("grid")) - {"levels", "near"}  # which are for models of few calls


FAR_OFF: tuple[tuple[Sampler, Schedule, Grid, int], ...] = (
    (EulerMaruyamaSampler(), CosineSchedule(), GRIDS["log_snr"], 10),
    (PredictorCorrectorSampler(), CosineSchedule(), GRIDS["quadratic"], 20),
    (AnnealedLangevinSampler(), CosineSchedule(), GRIDS["trailing"], 20),
    (LangevinSampler(), VPSchedule(), GRIDS["uniform"], 5),
    (DDPMSampler(), VarianceExplodingSchedule(), GRIDS["log_snr"], 20),
)


@pytest.mark.parametrize(("sampler", "schedule", "grid", "steps"), FAR_OFF, ids=lambda value: type(value).__name__)
def test_these_are_found_far_off(sampler: Sampler, schedule: Schedule, grid: Grid, steps: int) -> None:
    assert trial.far_off(sampler, schedule, grid(schedule, steps))


def test_a_late_start_is_tried_along_its_own_times() -> None:
    sampler, schedule = AnnealedLangevinSampler(), CosineSchedule()
    assert trial.far_off(sampler, schedule, TrailingGrid()(schedule, 10, 0.5))
    assert trial.far_off(sampler, schedule, TrailingGrid()(schedule, 20, 0.05)) is None


def test_the_noise_levels_of_2019_are_near() -> None:
    schedule = GeometricSchedule()
    assert trial.far_off(AnnealedLangevinSampler(corrections=100), schedule, UniformGrid()(schedule, 10)) is None


@pytest.mark.parametrize("steps", [5, 20])
def test_previews_are_drawn_by_a_method_that_is_near(schedule: Schedule, steps: int) -> None:
    denoiser = GaussianMixtureDenoiser(schedule, torch.zeros(1, 2), torch.eye(2)[None])
    sampler, times = quick_method(denoiser, steps)
    assert trial.far_off(sampler, schedule, times) is None


def test_what_no_exact_trial_can_tell_is_not_warned_of() -> None:
    schedule = VarianceExplodingSchedule()
    times = LogSNRGrid()(schedule, 20)
    assert trial.far_off(DDPMSampler(), schedule, times)
    assert trial.far_off(DDPMSampler(), schedule, times, "learned") is None
    uniform = UniformGrid()(schedule, 5)
    assert trial.far_off(PredictorCorrectorSampler(), schedule, uniform)
    assert trial.far_off(PredictorCorrectorSampler(rule="norm"), schedule, uniform) is None


def test_a_way_that_was_not_tried_is_not_offered() -> None:
    denoiser = GaussianMixtureDenoiser(CosineSchedule(), torch.zeros(1, 2), torch.eye(2)[None])
    config = {
        "sampler": {"_target_": "diffusion.samplers.AnnealedLangevinSampler", "corrections": 9},
        "grid": {"_target_": "diffusion.samplers.QuadraticGrid"},
        "steps": 25,
    }
    with pytest.warns(UserWarning, match="AnnealedLangevinSampler is less accurate .* in these 25 steps") as caught:
        sampler_and_times(Parts(config), denoiser)
    assert "steps=50" not in str(caught[0].message)


def test_langevin_dynamics_are_tried_in_many_steps_too() -> None:
    schedule = VPSchedule()
    assert trial.far_off(LangevinSampler(), schedule, UniformGrid()(schedule, 20))
    assert trial.far_off(AnnealedLangevinSampler(), schedule, UniformGrid()(schedule, 150))


def test_a_trial_asks_at_most_2500_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "distances", lambda *_: pytest.fail("tried"))
    assert trial.far_off(LangevinSampler(), VPSchedule(), UniformGrid()(VPSchedule(), 26)) is None


@pytest.mark.parametrize("sampler", [DDPMSampler(), EulerMaruyamaSampler(), PredictorCorrectorSampler()])
def test_step_by_step_the_moments_are_those_of_all_steps_together(
    sampler: Sampler, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = LogSNRGrid()(schedule, 8)
    apart = trial.moments(sampler, schedule, times)
    monkeypatch.setattr(type(sampler), "remembers", True)
    for found, expected in zip(apart, trial.moments(sampler, schedule, times), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("h", "ratio", "bends"),
    [
        (0.99, 0.1, False),
        (1.01, 0.1, True),
        (2.0, 19.18, True),
        (2.0, 19.21, False),
        (1.5, 14.8, True),
        (1.5, 15.1, False),
    ],
)
def test_heuns_step_is_kept_where_it_is_short_or_ends_a_hundredth_off_unit_variance(
    h: float, ratio: float, bends: bool
) -> None:
    # e^h / (2 (1 + ratio^2)) is 0.01 at ratio 19.195 for h = 2, and at 14.94 for h = 1.5.
    assert _bends(torch.tensor(h), torch.tensor(ratio)) is bends
