"""Time grids: the times at which a sampler calls the denoiser."""

import math
from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.schedules import Schedule


class Grid(ABC):
    """The times of a sampler: `grid(schedule, steps)` is (steps + 1,) float64 times falling from 1 to 0.

    With `t_start` and `t_end` the grid has even steps in its own variable between the two. `on_table`: whether its
    times are rounded to the rows of a discrete schedule, so that there are at most T steps.
    """

    on_table: bool = False

    def __call__(self, schedule: Schedule, steps: int, t_start: float = 1.0, t_end: float = 0.0) -> Tensor:
        """(steps + 1,) times from `t_start` to `t_end`.

        Args:
            schedule: on a discrete one both ends are rounded to its own times, and so are the others if the grid's are.
            steps: how many.
            t_start: the first time, in (t_min, 1].
            t_end: the last one; 0 is data, and any other is at least t_min.

        Raises:
            ValueError: `steps` is more than the rows of a discrete schedule between the two, for a grid with
                `on_table`, or so large that neighbouring times are equal in float64.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if not 0 <= t_end < t_start <= 1:
            raise ValueError(f"t_start and t_end need 0 <= t_end < t_start <= 1, got {t_start=:g} and {t_end=:g}")
        count = schedule.timesteps
        if count is not None:
            asked, t_start, t_end = t_start, round(t_start * count) / count, round(t_end * count) / count
            if self.on_table and steps > round((t_start - t_end) * count):
                part = f" between t_start={t_start:g} and t_end={t_end:g}" if (t_start, t_end) != (1, 0) else ""
                raise ValueError(
                    f"steps={steps} is more than the {round((t_start - t_end) * count)} timesteps of the model{part}; "
                    f"use at most those, or a grid with times between them"
                )
        low = max(t_end, schedule.t_min)
        if t_start < low or (t_start == low and (steps > 1 or t_end > 0)):
            if count is not None and asked != t_start:
                raise ValueError(
                    f"t_start={asked:g} is nearest to the timestep {t_start:g} of {count}, and must be at least "
                    f"{low + 1 / count:g}: the lowest time of this schedule is {schedule.t_min:g}"
                )
            raise ValueError(f"t_start={t_start:g} must lie above {low:g}, the lowest time of this schedule")
        if t_end == 0:
            end = torch.zeros(1, dtype=torch.float64)
            times = self._times(schedule, steps, t_start, low, whole=False)
        else:
            end = torch.full((1,), low, dtype=torch.float64)
            times = self._times(schedule, steps + 1, t_start, low, whole=True)[:-1]
        # The first time is exact: an inverse rounds.
        times = torch.cat((torch.full((1,), t_start, dtype=torch.float64), times[1:], end))
        if not (times.diff() < 0).all():
            raise ValueError(
                f"the {steps} steps of {type(self).__name__} from t={t_start:g} to {t_end:g} are too near each other "
                f"for numbers to tell apart: use fewer steps or another grid"
            )
        return times

    @abstractmethod
    def _times(self, schedule: Schedule, count: int, high: float, low: float, whole: bool) -> Tensor:
        """(count,) times falling from `high`, for 0 < low <= high.

        If `whole`, the last time is `low`; else a step to t = 0 follows, and `low` is t_min.
        """


def between(grid: Grid, schedule: Schedule, steps: int | None, t_start: float, t_end: float) -> Tensor:
    """The grid's times from `t_start` to `t_end`; `steps=None` is every time of a discrete schedule between them.

    Raises:
        ValueError: see `Grid.__call__`; also `steps=None` on a continuous schedule.
    """
    count = schedule.timesteps
    if steps is None:
        if count is None:
            raise ValueError(
                "no number of steps means every timestep, and this schedule is continuous: set steps=20, say"
            )
        steps = round(t_start * count) - round(t_end * count)
    return grid(schedule, steps, t_start, t_end)


def _on_table(schedule: Schedule, times: Tensor) -> Tensor:
    """The times, rounded to the rows of a discrete schedule."""
    return times if schedule.timesteps is None else (times * schedule.timesteps).round() / schedule.timesteps


class TrailingGrid(Grid):
    """Even steps in t, the last one to the end itself (Lin et al. 2023, arXiv 2305.08891, table 2), on a discrete
    schedule rounded to its own times. Where the last time would lie below t_min it is t_min."""

    on_table = True

    def _times(self, schedule: Schedule, count: int, high: float, low: float, whole: bool) -> Tensor:
        if whole or high / count < low:
            return _on_table(schedule, torch.linspace(high, low, count, dtype=torch.float64))
        return _on_table(schedule, high * (torch.arange(count, 0, -1, dtype=torch.float64) / count))


class UniformGrid(Grid):
    """Even steps in t from t_start to t_min, both included, on a discrete schedule rounded to its own times."""

    on_table = True

    def _times(self, schedule: Schedule, count: int, high: float, low: float, whole: bool) -> Tensor:
        return _on_table(schedule, torch.linspace(high, low, count, dtype=torch.float64))


class QuadraticGrid(Grid):
    """Even steps in sqrt(t) from t_start to t_min: more of them at low noise (Song et al. 2021, arXiv 2010.02502,
    appendix D.2).

    Not rounded to a discrete schedule's own times, of which there are too few at low noise.
    """

    def _times(self, schedule: Schedule, count: int, high: float, low: float, whole: bool) -> Tensor:
        return torch.linspace(high**0.5, low**0.5, count, dtype=torch.float64) ** 2


class LogSNRGrid(Grid):
    """Even steps in log-SNR from t_start to t_min."""

    def _times(self, schedule: Schedule, count: int, high: float, low: float, whole: bool) -> Tensor:
        ends = _ends(schedule, high, low)
        return schedule.inverse(torch.lerp(ends[0], ends[1], torch.linspace(0, 1, count, dtype=torch.float64)))


class LevelsGrid(Grid):
    """Few noise levels, for a model that needs few calls: from t_start on the chosen ones, or even steps of
    `sigma / (sigma + 5 alpha)` that stop short of t_min.

    Two steps so meet at the level 1 from 2.5, and at 4.4 from 80, near the best that were measured (docs/few_steps.md).

    Args:
        levels: sigma / alpha at the times after the first, falling; there is one more step than levels. None is even
            steps, of which the last goes to the end itself.
        near: even steps of sigma / alpha instead, where sampling goes to data of a size for one step more: from 2.4 two
            steps meet at 1.6, and three at 1.8 and 1.2.
    """

    HALF = 5.0  # the level at which that variable is 1 / 2

    def __init__(self, levels: list[float] | None = None, near: bool = False) -> None:
        if any(not 0 < level < math.inf for level in levels or []):
            raise ValueError(f"levels must be positive and finite, got {levels}")
        if any(after >= before for before, after in pairwise(levels or [])):
            raise ValueError(f"levels must fall from one to the next, got {levels}")
        if levels is not None and near:
            raise ValueError(f"near=true chooses the levels itself: give near=false with levels={levels}, or no levels")
        self.levels, self.near = levels, near

    def _times(self, schedule: Schedule, count: int, high: float, low: float, whole: bool) -> Tensor:
        ends = _ends(schedule, high, low)
        steps = count - whole
        if self.levels is None:
            ratios, index = (-ends / 2).exp(), torch.arange(count, dtype=torch.float64)
            if self.near:
                ratios = torch.lerp(ratios[0], ratios[1], index / (steps + (not whole)))
            else:
                first, last = ratios / (ratios + self.HALF)
                shares = torch.lerp(first, last, index / steps)
                ratios = self.HALF * shares / (1 - shares)
            return schedule.inverse(-2 * ratios.log())
        if len(self.levels) != steps - 1:
            raise ValueError(
                f"steps={steps} takes one level fewer, {steps - 1}, got levels={self.levels}: set "
                f"steps={len(self.levels) + 1}, or other levels"
            )
        highest, lowest = (-ends / 2).exp().tolist()
        if not all(lowest < level < highest for level in self.levels):
            raise ValueError(f"levels must lie between {lowest:.3g} and {highest:.3g} here, got {self.levels}")
        ratios = torch.tensor([highest, *self.levels, *[lowest] * whole], dtype=torch.float64)
        return schedule.inverse(-2 * ratios.log())


class KarrasGrid(Grid):
    """Even steps in `(sigma / alpha)^(1 / rho)` (Karras et al. 2022, arXiv 2206.00364, eq. 5).

    Args:
        rho: large values put more steps at low noise.
        log_snr_max: ends the grid at this log-SNR instead of the schedule's own highest; inf is the latter.
    """

    def __init__(self, rho: float = 7.0, log_snr_max: float = math.inf) -> None:
        if not 0 < rho < math.inf:
            raise ValueError(f"rho must be positive and finite, got {rho}; 7 is usual")
        if math.isnan(log_snr_max):
            raise ValueError("log_snr_max must be a number, got nan")
        self.rho, self.log_snr_max = rho, log_snr_max

    def _times(self, schedule: Schedule, count: int, high: float, low: float, whole: bool) -> Tensor:
        ends = _ends(schedule, high, low)
        if self.log_snr_max <= ends[0]:
            raise ValueError(
                f"log_snr_max={self.log_snr_max:g} must be above {ends[0]:g}, the schedule's log-SNR at t={high:g}"
            )
        first, last = (-(ends if whole else ends.clamp(max=self.log_snr_max)) / 2).exp() ** (1 / self.rho)
        ratio = torch.lerp(first, last, torch.linspace(0, 1, count, dtype=torch.float64)) ** self.rho
        if not (ratio.isfinite() & (ratio > 0)).all():
            raise ValueError(f"rho={self.rho:g} gives noise levels outside of float64; 7 is usual")
        return schedule.inverse(-2 * ratio.log())


def _ends(schedule: Schedule, high: float, low: float) -> Tensor:
    """The log-SNR at the two times."""
    ends = schedule.log_snr(torch.tensor([high, low], dtype=torch.float64))
    if not ends.isfinite().all():
        raise ValueError(
            "a grid laid by the log-SNR or by noise levels has no first step on a schedule with zero terminal SNR"
        )
    return ends
