"""Time grids: where a sampler evaluates."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from diffusion.schedules import Schedule


class Grid(ABC):
    """Where a sampler evaluates: `grid(schedule, steps)` is (steps + 1,) float64 times falling from 1 to 0."""

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if schedule.timesteps is not None and steps > schedule.timesteps:
            raise ValueError(
                f"steps={steps} is more than the {schedule.timesteps} timesteps of the model; use at most those"
            )
        return torch.cat((self._times(schedule, steps), torch.zeros(1, dtype=torch.float64)))

    @abstractmethod
    def _times(self, schedule: Schedule, steps: int) -> Tensor:
        """(steps,) times falling from 1."""


def between(grid: Grid, schedule: Schedule, steps: int | None, t_start: float, t_end: float) -> Tensor:
    """The grid's times squeezed into [t_end, t_start], (steps + 1,); from 1 to 0 they are its own.

    On a discrete schedule both ends are rounded to its own times, and so are the rest if the grid's are;
    `steps=None` is then every time between.

    Raises:
        ValueError: there are not so many times, or none at all.
    """
    count = schedule.timesteps
    if count is not None:
        t_start, t_end = round(t_start * count) / count, round(t_end * count) / count
    if not 0 <= t_end < t_start <= 1:
        raise ValueError(f"t_start and t_end need 0 <= t_end < t_start <= 1, got {t_start=:g} and {t_end=:g}")
    if steps is None:
        if count is None:
            raise ValueError("steps=null is every timestep, and this schedule is continuous: set steps=20, say")
        steps = round((t_start - t_end) * count)
    if (t_start, t_end) == (1, 0):
        return grid(schedule, steps)
    if t_end == 0:
        times = t_start * grid(schedule, steps)
    else:  # without the grid's last step, which is to data
        inside = grid(schedule, steps + 1)[:-1]
        times = t_end + (t_start - t_end) * (inside - inside[-1]) / (1 - inside[-1])
    if count is not None and torch.equal((grid(schedule, steps) * count).round() / count, grid(schedule, steps)):
        times = (times * count).round() / count
    times = torch.where(times > 0, times.clamp(min=schedule.t_min), 0)
    if (times.diff() >= 0).any():
        raise ValueError(f"steps={steps} is more than there are times between t_start={t_start:g} and t_end={t_end:g}")
    return times


class TrailingGrid(Grid):
    """Even steps in t, starting at 1 (Lin et al. 2023, arXiv 2305.08891, table 2), on a discrete schedule rounded to
    its own."""

    def _times(self, schedule: Schedule, steps: int) -> Tensor:
        times = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
        return times if schedule.timesteps is None else (times * schedule.timesteps).round() / schedule.timesteps


class UniformGrid(Grid):
    """Even steps in t from 1 to t_min, both included, on a discrete schedule rounded to its own."""

    def _times(self, schedule: Schedule, steps: int) -> Tensor:
        times = torch.linspace(1, schedule.t_min, steps, dtype=torch.float64)
        return times if schedule.timesteps is None else (times * schedule.timesteps).round() / schedule.timesteps


class QuadraticGrid(Grid):
    """Even steps in sqrt(t) from 1 to t_min: more of them at low noise (Song et al. 2021, arXiv 2010.02502, appendix
    D.2).

    Not rounded to a discrete schedule's own times, of which there are too few at low noise.
    """

    def _times(self, schedule: Schedule, steps: int) -> Tensor:
        return torch.linspace(1, schedule.t_min**0.5, steps, dtype=torch.float64) ** 2


class LogSNRGrid(Grid):
    """Even steps in log-SNR from t = 1 to t_min."""

    def _times(self, schedule: Schedule, steps: int) -> Tensor:
        ends = _ends(schedule)
        times = schedule.inverse(torch.lerp(ends[0], ends[1], torch.linspace(0, 1, steps, dtype=torch.float64)))
        return _starting_at_one(times)


class KarrasGrid(Grid):
    """Even steps in `(sigma / alpha)^(1 / rho)` (Karras et al. 2022, arXiv 2206.00364, eq. 5).

    Args:
        rho: large values put more steps at low noise.
        log_snr_max: ends the grid at this log-SNR instead of the schedule's own highest.
    """

    def __init__(self, rho: float = 7.0, log_snr_max: float = math.inf) -> None:
        if rho <= 0:
            raise ValueError(f"rho must be positive, got {rho}")
        self.rho, self.log_snr_max = rho, log_snr_max

    def _times(self, schedule: Schedule, steps: int) -> Tensor:
        ends = _ends(schedule).clamp(max=self.log_snr_max)
        first, last = (-ends / 2).exp() ** (1 / self.rho)
        ratio = torch.lerp(first, last, torch.linspace(0, 1, steps, dtype=torch.float64)) ** self.rho
        return _starting_at_one(schedule.inverse(-2 * ratio.log()))


def _ends(schedule: Schedule) -> Tensor:
    """The log-SNR at t = 1 and at t_min."""
    ends = schedule.log_snr(torch.tensor([1.0, schedule.t_min], dtype=torch.float64))
    if not ends.isfinite().all():
        raise ValueError(
            "grid=log_snr and grid=karras have no first step on a schedule with zero terminal SNR: use grid=trailing, "
            "uniform or quadratic"
        )
    return ends


def _starting_at_one(times: Tensor) -> Tensor:
    """Undoes the rounding of the inverse at the first time."""
    return torch.cat((torch.ones(1, dtype=torch.float64), times[1:]))
