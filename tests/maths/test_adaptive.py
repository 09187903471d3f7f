"""The adaptive ODE solver and its sampler: exact ends, errors within the tolerance, whatever the batch. Float64."""

import pytest
import torch
from support.solutions import interior, solution
from torch import Tensor, nn

from diffusion.denoisers import ClippedDenoiser, GaussianMixtureDenoiser, StepDenoiser
from diffusion.noise import Noise
from diffusion.ode import Parts, solve
from diffusion.samplers import AdaptiveSampler, ChurnSampler, DDIMSampler, HeunSampler, LogSNRGrid, TrailingGrid, prior
from diffusion.schedules import CosineSchedule, LinearSchedule, Schedule


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _decay(rates: Tensor, start: Tensor, tolerance: float) -> tuple[Tensor, int]:
    """y(3) of y' = -rate sin(k) y, and how often the slope was asked for."""
    calls = 0

    def slope(k: Tensor, state: Parts) -> Parts:
        nonlocal calls
        calls += 1
        return (-rates * k.sin() * state[0],)

    (end,) = solve(slope, (start,), *_tensor(0, 3), rtol=tolerance, atol=tolerance)
    return end, calls


def test_the_error_falls_with_the_tolerance_and_the_end_is_met() -> None:
    exact = _tensor(3 * (torch.tensor(3.0).double().cos().item() - 1)).exp()
    results = [_decay(_tensor(3), _tensor(1), tolerance) for tolerance in (1e-4, 1e-6, 1e-8)]
    errors = [(end - exact).abs().item() for end, _ in results]
    assert all(error < 10 * tolerance for error, tolerance in zip(errors, (1e-4, 1e-6, 1e-8), strict=True))
    assert [calls for _, calls in results] == sorted({calls for _, calls in results})


def test_the_slopes_convolutions_are_not_rounded_to_tf32_on_a_gpu_also_after_one_fails() -> None:
    before, allowed = torch.backends.cudnn.allow_tf32, set()

    def slope(k: Tensor, state: Parts) -> Parts:
        allowed.add(torch.backends.cudnn.allow_tf32)
        return (state[0] / 0 if k > 0.5 else state[0],)

    with pytest.raises(ValueError, match="found no step"):
        solve(slope, (_tensor(1),), *_tensor(0, 1), rtol=1e-3, atol=1e-3)
    assert (allowed, torch.backends.cudnn.allow_tf32) == ({False}, before)


def test_good_samples_in_a_batch_do_not_hide_the_error_of_a_bad_one() -> None:
    alone, calls = _decay(_tensor(3), _tensor(1), 1e-5)
    rates = torch.cat((_tensor(3), torch.zeros(999, dtype=torch.float64)))
    together, calls_together = _decay(rates, torch.ones(1000, dtype=torch.float64), 1e-5)
    assert calls == calls_together
    torch.testing.assert_close(together[:1], alone, rtol=1e-12, atol=0)


def test_no_part_of_the_state_hides_the_error_of_another() -> None:
    quiet = torch.zeros(1, 500, dtype=torch.float64)

    def slope(k: Tensor, state: Parts) -> Parts:
        return torch.zeros_like(state[0]), -3 * k.sin() * state[1]

    _, end = solve(slope, (quiet, _tensor(1)), *_tensor(0, 3), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(end, _decay(_tensor(3), _tensor(1), 1e-5)[0], rtol=1e-12, atol=0)


def test_it_never_looks_beyond_the_ends() -> None:
    asked = []

    def slope(k: Tensor, state: Parts) -> Parts:
        asked.append(k.item())
        return (torch.ones_like(state[0]),)

    (end,) = solve(slope, (_tensor(0),), *_tensor(2, -1), rtol=1e-3, atol=1e-3)
    assert end.item() == pytest.approx(-3, abs=1e-12)
    assert min(asked) >= -1
    assert max(asked) <= 2


@pytest.mark.parametrize("rising", [False, True])
def test_it_solves_the_ode_either_way(rising: bool, gaussian: GaussianMixtureDenoiser) -> None:
    times = interior(gaussian.schedule, "lambda", 3, before=0)
    times = times.flip(0) if rising else times
    x = _tensor(0.9, -1.4)[None]
    states = list(AdaptiveSampler(1e-8, 1e-8)(gaussian, x, times))
    assert [state.t.item() for state in states] == times.tolist()
    for state in states:
        torch.testing.assert_close(state.x_t, solution(gaussian, x, times[0], state.t), rtol=0, atol=1e-6)
    for state in states[:-1]:
        torch.testing.assert_close(state.x0, gaussian(state.x_t, state.t))


@pytest.mark.parametrize("schedule", ["linear", "variance_exploding"], indirect=True)
def test_the_states_do_not_depend_on_the_grid_and_a_turn_leads_back(
    schedule: Schedule, mixture: GaussianMixtureDenoiser
) -> None:
    x = prior(schedule, Noise(0, torch.arange(6)), (2,)).double()
    sampler, times = AdaptiveSampler(1e-6, 1e-6), LogSNRGrid()(schedule, 4)[:-1]
    there = sampler.sample(mixture, x, times)
    torch.testing.assert_close(sampler.sample(mixture, x, times[[0, -1]]), there, rtol=0, atol=1e-4)
    back = sampler.sample(mixture, x, torch.cat((times, times.flip(0)[1:])))
    scale = schedule(times[0])[1]
    torch.testing.assert_close(back / scale, x / scale, rtol=0, atol=1e-4)


def test_an_image_is_the_same_in_any_batch() -> None:
    # Sixty grey 8x8 images, each with some noise of its own: states part between them where the ODE is least stable.
    images = torch.rand(60, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    spread = (0.05 * torch.eye(64, dtype=torch.float64)).expand(60, 64, 64)
    schedule = CosineSchedule()
    denoiser = ClippedDenoiser(GaussianMixtureDenoiser(schedule, images.float(), spread.float()))
    sampler, times = AdaptiveSampler(), LogSNRGrid()(schedule, 2)
    index = torch.arange(48)
    together = sampler.sample(denoiser, prior(schedule, Noise(0, index), (64,)), times)
    assert together.dtype == torch.float32
    for few in index.split(19):
        alone = sampler.sample(denoiser, prior(schedule, Noise(0, few), (64,)), times)
        assert (alone - together[few]).abs().max() < 1 / 255


def test_a_model_is_asked_whether_it_knows_the_times_between_the_grids_too() -> None:
    asked: list[torch.Tensor] = []

    class Listening(GaussianMixtureDenoiser):
        def check_times(self, times: torch.Tensor) -> None:
            asked.append(times)

    model = Listening(CosineSchedule(), torch.zeros(1, 2), torch.eye(2)[None])
    AdaptiveSampler().check(model, torch.tensor([1.0, 0.5, 0.1, 0.0]))
    between = torch.cat((torch.linspace(1, 0.5, 17)[:-1], torch.linspace(0.5, 0.1, 17)))
    torch.testing.assert_close(asked[0], between)


def test_models_that_know_no_times_between_or_no_ratio_at_the_end_are_refused() -> None:
    x = torch.zeros(1, 2)
    steps = StepDenoiser(nn.Linear(2, 4), CosineSchedule(9))
    for sampler in (AdaptiveSampler(), ChurnSampler()):
        with pytest.raises(
            ValueError, match=r"Sampler asks at times between the grid's.*nothing between or across them"
        ):
            sampler.check(steps, TrailingGrid()(steps.schedule, 9))
    for allowed in (HeunSampler(), DDIMSampler()):
        allowed.check(steps, TrailingGrid()(steps.schedule, 9))
    empty = GaussianMixtureDenoiser(LinearSchedule(9000, zero_terminal_snr=True), x, torch.eye(2)[None])
    with pytest.raises(ValueError, match="AdaptiveSampler can neither begin at alpha = 0"):
        AdaptiveSampler().sample(empty, x, TrailingGrid()(empty.schedule, 3))


def test_a_grid_of_many_steps_is_refused() -> None:
    denoiser = GaussianMixtureDenoiser(LinearSchedule(), torch.zeros(1, 2), torch.eye(2)[None])
    AdaptiveSampler().check(denoiser, LogSNRGrid()(denoiser.schedule, 50))
    with pytest.raises(ValueError, match=r"grid's 51 times, and 50 are the most; steps=5 is usual"):
        AdaptiveSampler().check(denoiser, LogSNRGrid()(denoiser.schedule, 51))


def test_answers_that_are_not_numbers_end_in_one_line() -> None:
    denoiser = GaussianMixtureDenoiser(LinearSchedule(), torch.zeros(1, 2), torch.eye(2)[None])
    denoiser.means.fill_(torch.nan)
    with pytest.raises(ValueError, match="no step within rtol=1e-05 and atol=1e-05: the model's answers are not"):
        AdaptiveSampler().sample(denoiser, torch.zeros(1, 2), LogSNRGrid()(denoiser.schedule, 2))


@pytest.mark.parametrize(("rtol", "atol", "name"), [(0.0, 1e-4, "rtol"), (1e-4, 0.2, "atol"), (1e-13, 1e-3, "rtol")])
def test_tolerances_out_of_range_are_refused(rtol: float, atol: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be from 1e-12 to 0.1, got"):
        AdaptiveSampler(rtol, atol)


def test_another_assertion_in_the_model_is_not_taken_for_the_solvers() -> None:
    def slope(k: Tensor, state: Parts) -> Parts:
        raise AssertionError("a fault of the model's own")

    with pytest.raises(AssertionError, match="a fault of the model's own"):
        solve(slope, (_tensor(0),), *_tensor(0, 1), rtol=1e-3, atol=1e-3)
