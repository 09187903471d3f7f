"""Sampling grids: where they start, where they end, and what is even about them. Float64."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from diffusion.samplers import (
    Grid,
    KarrasGrid,
    LevelsGrid,
    LogSNRGrid,
    QuadraticGrid,
    TrailingGrid,
    UniformGrid,
    between,
)
from diffusion.sampling.method import GRIDS
from diffusion.schedules import CosineSchedule, LinearSchedule, Schedule, VarianceExplodingSchedule, VPSchedule


def _tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("timesteps", [1, 2, 7, 50, 1000])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_grids_fall_from_one_to_zero_without_repeats(grid: Grid, timesteps: int) -> None:
    schedule = CosineSchedule(timesteps)
    for steps in range(1, timesteps + 1) if timesteps <= 50 else [1, 2, 3, 7, 10, 333, 499, 500, 501, 750, 999, 1000]:
        times = grid(schedule, steps)
        assert times.shape == (steps + 1,)
        assert times.dtype == torch.float64
        assert (times[0], times[-1]) == (1, 0)
        assert (times.diff() < 0).all()
        assert times[-2] >= schedule.t_min - 1e-12


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_grids_of_continuous_schedules_fall_from_one_to_zero(grid: Grid, schedule: Schedule) -> None:
    for steps in (1, 2, 3, 18, 200):
        times = grid(schedule, steps)
        assert times.shape == (steps + 1,)
        assert (times[0], times[-1]) == (1, 0)
        assert (times.diff() < 0).all()


# What is even about each grid: t, or a function of it.
EVEN_IN: dict[str, Callable[[Schedule, torch.Tensor], torch.Tensor]] = {
    "trailing": lambda schedule, t: t,
    "uniform": lambda schedule, t: t,
    "quadratic": lambda schedule, t: t.sqrt(),
    "log_snr": lambda schedule, t: schedule.log_snr(t),
    "karras": lambda schedule, t: (-schedule.log_snr(t) / 14).exp(),
}


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_between_two_times_is_even_in_its_own_variable(name: str, schedule: Schedule) -> None:
    rounded = schedule.timesteps is not None and name in ("trailing", "uniform")
    for t_start, t_end in itertools.product((1.0, 0.7, 0.5, 0.3), (0.0, 0.05, 0.2)):
        for steps in (1, 2, 3, 8, 20, 60):
            times = between(GRIDS[name], schedule, steps, t_start, t_end)
            assert times.shape == (steps + 1,)
            assert (times[0], times[-1]) == (t_start, t_end)
            assert (times.diff() < 0).all()
            inside = times if t_end > 0 or name == "trailing" else times[:-1]
            if name != "trailing" and t_end == 0 and steps > 1:
                torch.testing.assert_close(inside[-1], _tensor(schedule.t_min)[0], rtol=1e-5, atol=0)
            if len(inside) > 2 and not rounded:
                gaps = EVEN_IN[name](schedule, inside).diff()
                torch.testing.assert_close(gaps, gaps.mean().expand(len(gaps)), rtol=1e-5, atol=0)
            elif rounded:
                even = torch.linspace(inside[0], inside[-1], len(inside), dtype=torch.float64)
                assert (inside - even).abs().max() <= 0.5 / (schedule.timesteps or 1) + 1e-12


def test_a_grid_begins_below_the_end_of_a_zero_terminal_schedule() -> None:
    schedule = CosineSchedule(50, zero_terminal_snr=True)
    assert between(LogSNRGrid(), schedule, 10, 0.6, 0.0)[0] == 0.6


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_start_below_the_schedules_lowest_time_is_refused(grid: Grid) -> None:
    with pytest.raises(ValueError, match="t_start=1e-06 must lie above"):
        between(grid, VPSchedule(), 3, 1e-6, 0.0)


@pytest.mark.parametrize("grid", [TrailingGrid(), UniformGrid()], ids=["trailing", "uniform"])
def test_a_grid_of_the_tables_own_times_has_no_more_than_the_table(grid: Grid) -> None:
    with pytest.raises(ValueError, match="steps=4 is more than the 3 timesteps of the model between"):
        between(grid, CosineSchedule(50), 4, 0.06, 0.0)
    with pytest.raises(ValueError, match=r"steps=51 is more than .*50"):
        grid(CosineSchedule(50), 51)


@pytest.mark.parametrize("grid", [QuadraticGrid(), LogSNRGrid(), KarrasGrid()], ids=["quadratic", "log_snr", "karras"])
def test_a_grid_between_the_tables_times_may_have_more_than_the_table(grid: Grid) -> None:
    for t_start, steps in ((1.0, 80), (0.06, 20)):
        times = between(grid, CosineSchedule(50), steps, t_start, 0.0)
        assert times.shape == (steps + 1,)
        assert (times[0], times[-1]) == (t_start, 0)
        assert (times.diff() < 0).all()
        assert times[-2] >= CosineSchedule(50).t_min - 1e-12


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_no_time_but_the_end_lies_below_the_schedules_lowest(grid: Grid, schedule: Schedule) -> None:
    if schedule.timesteps is not None:
        return  # the table's times are counted
    for t_start, steps in ((1.0, 1500), (0.05, 100), (5 * schedule.t_min, 20)):
        times = between(grid, schedule, steps, t_start, 0.0)
        assert (times.diff() < 0).all()
        assert times[-2] >= schedule.t_min * (1 - 1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": math.inf}, "rho must be positive and finite"),
        ({"rho": math.nan}, "rho must be positive and finite"),
        ({"rho": 0.001}, "rho=0.001 gives noise levels outside"),
        ({"rho": 1e18}, "too near each other"),
        ({"log_snr_max": math.nan}, "log_snr_max must be a number"),
        ({"log_snr_max": -20.0}, "log_snr_max=-20 must be above"),
    ],
)
def test_karras_settings_that_leave_no_grid_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KarrasGrid(**options)(VPSchedule(), 10)


def test_a_karras_grid_that_ends_where_it_begins_is_refused() -> None:
    begin = VPSchedule().log_snr(torch.ones((), dtype=torch.float64)).item()
    with pytest.raises(ValueError, match="must be above"):
        KarrasGrid(log_snr_max=begin)(VPSchedule(), 10)


def test_karras_levels_that_vanish_in_float64_are_refused_too() -> None:
    with pytest.raises(ValueError, match="rho=0.001 gives noise levels outside"):
        KarrasGrid(0.001)(VarianceExplodingSchedule(0.01, 0.5), 10)


@pytest.mark.parametrize("timesteps", [1, 2, 7, 50, 1000])
def test_trailing_times_lie_on_the_table(timesteps: int) -> None:
    schedule = CosineSchedule(timesteps)
    for steps in {1, 2, timesteps // 3, timesteps - 1, timesteps} & set(range(1, timesteps + 1)):
        rows = TrailingGrid()(schedule, steps)[:-1] * timesteps
        torch.testing.assert_close(rows, rows.round(), rtol=0, atol=1e-9)
        even = torch.arange(steps, 0, -1, dtype=torch.float64) * timesteps / steps
        assert (rows - even).abs().max() <= 0.5 + 1e-9
    everything = TrailingGrid()(schedule, timesteps) * timesteps
    torch.testing.assert_close(everything, torch.arange(timesteps, -1, -1, dtype=torch.float64))


def test_trailing_times_are_those_of_the_papers_table() -> None:
    # Lin et al. 2023, table 2: T = 1000 and 10 steps give 999, 899, ..., 99, counted from zero.
    assert (TrailingGrid()(LinearSchedule(), 10)[:-1] * 1000 - 1).round().tolist() == list(range(999, 0, -100))


def test_uniform_times_are_even_from_one_to_t_min_and_lie_on_the_table() -> None:
    assert UniformGrid()(VarianceExplodingSchedule(), 5).tolist() == pytest.approx(
        [1, 0.7500025, 0.500005, 0.2500075, 1e-5, 0]
    )
    rows = UniformGrid()(CosineSchedule(50), 4) * 50
    torch.testing.assert_close(rows, _tensor(50, 34, 17, 1, 0))  # 50, 33.7, 17.3, 1
    everything = UniformGrid()(CosineSchedule(50), 50) * 50
    torch.testing.assert_close(everything, torch.arange(50, -1, -1, dtype=torch.float64))


def test_quadratic_times_are_even_in_the_root(schedule: Schedule) -> None:
    times = QuadraticGrid()(schedule, 11)[:-1]
    assert times[-1].item() == pytest.approx(schedule.t_min)
    torch.testing.assert_close(times.sqrt().diff(), times.sqrt().diff().mean().expand(10))


def test_log_snr_times_are_even_in_log_snr(schedule: Schedule) -> None:
    levels = schedule.log_snr(LogSNRGrid()(schedule, 12)[:-1])
    torch.testing.assert_close(levels.diff(), levels.diff().mean().expand(11), rtol=1e-6, atol=0)
    assert levels[-1].item() == pytest.approx(schedule.log_snr(_tensor(schedule.t_min)).item())


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_times_are_equation_5(rho: float, schedule: Schedule) -> None:
    alpha, sigma = schedule(_tensor(1.0, schedule.t_min))
    high, low = (sigma / alpha).tolist()
    for steps in (2, 3, 18):
        alpha, sigma = schedule(KarrasGrid(rho)(schedule, steps)[:-1])
        expected = [
            (high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(steps)
        ]
        torch.testing.assert_close(sigma / alpha, _tensor(*expected), rtol=1e-6, atol=0)


def test_karras_of_one_and_two_steps_are_the_ends() -> None:
    schedule = VarianceExplodingSchedule()
    assert KarrasGrid()(schedule, 1).tolist() == [1, 0]
    assert KarrasGrid()(schedule, 2).tolist() == pytest.approx([1, schedule.t_min, 0], abs=1e-9)


def test_karras_can_end_at_a_lower_log_snr() -> None:
    schedule = VarianceExplodingSchedule(0.002, 80.0)
    sigma = schedule(KarrasGrid(log_snr_max=4.0)(schedule, 5)[:-1])[1]
    assert [sigma[0].item(), sigma[-1].item()] == pytest.approx([80, math.exp(-2)])


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_no_steps_are_refused(grid: Grid) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        grid(CosineSchedule(50), 0)


@pytest.mark.parametrize("grid", [LogSNRGrid(), KarrasGrid()])
def test_even_steps_from_an_infinite_log_snr_are_refused(grid: Grid) -> None:
    with pytest.raises(ValueError, match="no first step on a schedule with zero terminal SNR"):
        grid(CosineSchedule(50, zero_terminal_snr=True), 10)


@pytest.mark.parametrize("rho", [0.0, -1.0])
def test_karras_refuses_a_rho_that_is_not_positive(rho: float) -> None:
    with pytest.raises(ValueError, match="rho must be positive"):
        KarrasGrid(rho)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_ends_that_are_no_numbers_are_refused_by_name(grid: Grid, value: float) -> None:
    with pytest.raises(ValueError, match="t_start and t_end need 0 <= t_end < t_start <= 1"):
        grid(VPSchedule(), 5, value, 0.0)
    with pytest.raises(ValueError, match="t_start and t_end need 0 <= t_end < t_start <= 1"):
        grid(VPSchedule(), 5, 1.0, value)


def share_of_five(schedule: Schedule, t: torch.Tensor) -> torch.Tensor:
    alpha, sigma = schedule(t)
    return sigma / (sigma + 5 * alpha)


def test_few_levels_are_even_in_the_share_of_five_and_stop_short_of_the_lowest_time(schedule: Schedule) -> None:
    for steps in (1, 2, 5):
        times = LevelsGrid()(schedule, steps)
        assert (times[0], times[-1]) == (1, 0)
        first, last = share_of_five(schedule, _tensor(1.0, schedule.t_min))
        expected = torch.lerp(first, last, torch.arange(steps, dtype=torch.float64) / steps)
        torch.testing.assert_close(share_of_five(schedule, times[:-1]), expected, rtol=1e-6, atol=1e-6)
    part = between(LevelsGrid(), schedule, 3, 0.8, 0.2)
    gaps = share_of_five(schedule, part).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(3), rtol=1e-3, atol=1e-3)
    assert (part[0], part[-1]) == (0.8, 0.2)


def test_chosen_levels_are_those_of_the_grid(schedule: Schedule) -> None:
    near = LevelsGrid(near=True)(schedule, 3)
    first = (-schedule.log_snr(near[0]) / 2).exp()
    low = (-schedule.log_snr(torch.tensor(schedule.t_min, dtype=torch.float64)) / 2).exp()
    expected = [first, (3 * first + low) / 4, (first + low) / 2]
    torch.testing.assert_close((-schedule.log_snr(near[:-1]) / 2).exp(), torch.stack(expected))
    assert (near[0], near[-1]) == (1, 0)
    assert between(LevelsGrid(near=True), schedule, 3, 0.8, 0.2)[-1] == 0.2
    times = LevelsGrid([5.0, 0.8])(schedule, 3)
    assert (times[0], times[-1]) == (1, 0)
    torch.testing.assert_close((-schedule.log_snr(times[1:3]) / 2).exp(), _tensor(5.0, 0.8), rtol=1e-6, atol=0)
    ended = LevelsGrid([0.8])(schedule, 2, t_end=0.05)
    assert ended.shape == (3,)
    assert ended[-1] == 0.05


def test_a_start_that_rounds_to_the_lowest_timestep_is_named_as_it_was_typed() -> None:
    message = "t_start=0.021 is nearest to the timestep 0.02 of 50, and must be at least 0.04: the lowest time of this"
    with pytest.raises(ValueError, match=message):
        LogSNRGrid()(LinearSchedule(timesteps=50), 4, t_start=0.021)
    LogSNRGrid()(LinearSchedule(timesteps=50), 4, t_start=0.04)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LevelsGrid([0.8, 5.0]), "levels must fall from one to the next"),
        (lambda: LevelsGrid([0.8, 0.8]), "levels must fall from one to the next"),
        (lambda: LevelsGrid([0.0]), "levels must be positive and finite"),
        (lambda: LevelsGrid([0.8], near=True), "near=true chooses the levels itself: give near=false"),
        (lambda: LevelsGrid([math.nan]), "levels must be positive and finite"),
        (
            lambda: LevelsGrid([0.8])(VPSchedule(), 3),
            "steps=3 takes one level fewer, 2, got levels=.0.8.: set steps=2, or other levels",
        ),
        (lambda: LevelsGrid([0.8])(VarianceExplodingSchedule(), 2, t_start=0.3), "levels must lie between"),
        (lambda: LevelsGrid([1000.0])(VarianceExplodingSchedule(), 2), "levels must lie between 0.00.* and "),
    ],
)
def test_levels_that_cannot_be_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("t", [1.0, VPSchedule().t_min])
def test_a_chosen_level_is_neither_the_first_nor_the_lowest(t: float) -> None:
    level = (-VPSchedule().log_snr(torch.tensor(t, dtype=torch.float64)) / 2).exp().item()
    with pytest.raises(ValueError, match="levels must lie between"):
        LevelsGrid([level])(VPSchedule(), 2)
