"""The method of a configuration: its sampler with the times at which that calls the denoiser, and where they begin:
at t = 1 with noise, or below it with noised data of the model's prior."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from diffusion.build import ConfigError, Unfit
from diffusion.denoisers import Denoiser, Wrapper
from diffusion.machine.memory import MOST_STEPS
from diffusion.models import PriorDenoiser
from diffusion.runs.parts import Parts
from diffusion.samplers import Grid, KarrasGrid, LogSNRGrid, QuadraticGrid, Sampler, TrailingGrid, UniformGrid, between
from diffusion.samplers.trial import can_be_tried, far_off
from diffusion.schedules import time_of
from diffusion.settings.sampling import Steering

# The grids to try where a sampler is far off, by the names of their choices.
GRIDS: dict[str, Grid] = {
    "trailing": TrailingGrid(),
    "uniform": UniformGrid(),
    "quadratic": QuadraticGrid(),
    "log_snr": LogSNRGrid(),
    "karras": KarrasGrid(),
}


def method_of(parts: Parts, denoiser: Denoiser, t_start: float = 1.0, t_end: float = 0.0) -> tuple[Sampler, Tensor]:
    """The sampler and the times of a configuration, from `t_start` to `t_end`; `steps: null` is all rows of a discrete
    schedule.

    Raises:
        ConfigError: they do not exist, or do not go with the denoiser.
    """
    sampler, grid, steps = parts.sampler, parts.grid, parts.config.get("steps")
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool)):
        raise ConfigError(f"steps must be a whole number, got {steps!r}")
    if steps is not None and steps > MOST_STEPS:
        raise ConfigError(f"steps must be at most {MOST_STEPS}, got {steps}")
    if sampler.flow_map and not parts.tunes:
        raise ConfigError(
            "sampler=consistency is for models that are tuned for few calls: the one call of another gives the mean of "
            "the data; python train.py experiment=few_step init_from=... (or few_step_matching) tunes one"
        )
    first = first_time(parts, denoiser, t_start)
    try:
        times = between(grid, denoiser.schedule, steps, first, t_end)
        sampler.check(denoiser, times)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return sampler, times


def sampler_and_times(parts: Parts, denoiser: Denoiser, steering: Steering | None = None) -> tuple[Sampler, Tensor]:
    """The same as `method_of` for what was asked for, with a warning if the sampler is far off at these times.

    Raises:
        Unfit: sampler, grid, steps and denoiser do not go together.
        ConfigError: a value of the sampler's or the grid's own is none that it can have.
    """
    steering = steering or Steering()
    sampler, _ = parts.sampler, parts.grid  # built here, since no other choice mends a value that is wrong by itself

    def attempt(config: dict[str, Any]) -> tuple[Sampler, Tensor]:
        found = method_of(Parts(config), denoiser, steering.t_start, steering.t_end)
        if steering.needs_path and found[0].stochastic:
            raise ConfigError("it draws noise on its way")
        if parts.tunes and not found[0].flow_map:
            raise ConfigError("it needs a posterior mean")
        return found

    try:
        sampler, times = method_of(parts, denoiser, steering.t_start, steering.t_end)
    except ConfigError as error:
        raise Unfit(str(error), ("sampler", "grid"), parts.config, attempt) from error
    if parts.tunes and not sampler.flow_map:
        warnings.warn(
            f"{type(sampler).__name__} takes answers of this model for the mean of the data given x_t, which they are "
            f"no longer since it was tuned for sampler=consistency: leave sampler= out, or draw from the model before",
            stacklevel=2,
        )
    else:
        _warn_if_far_off(sampler, denoiser, times)
    return sampler, times


def _warn_if_far_off(sampler: Sampler, denoiser: Denoiser, times: Tensor) -> None:
    """Warns if the sampler is far off at these times on Gaussian data, and names grids on which it is accurate."""
    if isinstance(denoiser, PriorDenoiser):  # whose samples are N(0, I), for which its experiment's sampler is exact
        return
    schedule, steps = denoiser.schedule, len(times) - 1
    found = far_off(sampler, schedule, times, denoiser.variance)
    if found is None:
        return
    ends, near = (times[0].item(), times[-1].item()), []
    for name, grid in GRIDS.items():
        for count in (steps, 2 * steps):
            try:
                others = grid(schedule, count, *ends)
                sampler.check(denoiser, others)
            except ValueError:
                break
            tried = can_be_tried(sampler, others, denoiser.variance, calls=300)  # ten of them, in a second
            if tried and far_off(sampler, schedule, others, denoiser.variance) is None:
                near.append(f"grid={name}" + ("" if count == steps else f" steps={count}"))
                break
    warnings.warn(
        f"{type(sampler).__name__} is less accurate than DDIM in these {steps} steps: its samples of Gaussian data "
        f"with the standard deviation {found.spread:g} are {found.distance:.2g} from the data (Wasserstein distance), "
        f"and DDIM's {found.ddim:.2g}; more accurate: {', or '.join(['sampler=ddim', *near])}",
        stacklevel=3,
    )


def first_time(parts: Parts, denoiser: Denoiser, t_start: float = 1.0) -> float:
    """The first time: `t_start` below 1, which begins with an image, or else that of `start_level`, or 1.

    Raises:
        ConfigError: the denoiser has no prior for `start_level`, or no such level, or was not trained at it.
    """
    level, schedule = parts.start_level, denoiser.schedule
    if t_start == 1 and level < math.inf:
        if not denoiser.has_prior:
            raise ConfigError(f"start_level={level:g} begins with {_no_prior(denoiser, parts)}")
        ends = schedule.log_snr(torch.tensor([schedule.t_min, 1.0], dtype=torch.float64, device="cpu"))
        lowest, highest = (-ends / 2).exp().tolist()
        if not lowest < level < highest:
            raise ConfigError(
                f"start_level={level:g} must lie between {lowest:.3g} and {highest:.3g}, the levels of the schedule"
            )
        first, what = time_of(schedule, level), f"start_level={level:g}"
    else:
        first, what = t_start, f"t_start={t_start:g}"
    most = parts.trained_up_to
    if most < math.inf and first > (limit := time_of(schedule, most)) * (1 + 1e-5):
        where = "with noise, at t = 1" if first == 1 else f"above that, at {what}"
        raise ConfigError(
            f"this model is trained at levels of sigma / alpha up to {most:g} alone, and sampling would begin {where}: "
            f"{_instead(denoiser, parts, limit, from_image=t_start < 1)}"
        )
    return first


def _instead(denoiser: Denoiser, parts: Parts, limit: float, from_image: bool) -> str:
    """What to do where a model is not trained at the first time, but up to `limit`."""
    image = f"t_start={math.floor(1000 * limit) / 1000:g} or less"
    if from_image:
        return f"give {image}"
    if denoiser.has_prior:
        return f"give start_level={parts.trained_up_to:g}"
    if parts.tunes and _inner(denoiser).has_prior:  # something that steers is around it
        return f"begin with an image, init=photo.png {image}, or use the model that it was tuned from"
    return f"leave {parts.highest_setting} out"


def _inner(denoiser: Denoiser) -> Denoiser:
    """The model itself, without what is around it."""
    while isinstance(denoiser, Wrapper):
        denoiser = denoiser.denoiser
    return denoiser


def _no_prior(denoiser: Denoiser, parts: Parts) -> str:
    """Why it has no prior, and what to do."""
    mixture, model = "a draw of the mixture of denoiser=residual", _inner(denoiser)
    if not model.has_prior:
        return f"{mixture}, and this model, a {type(model).__name__}, has none: leave it out, or give start_level=inf"
    while isinstance(denoiser, Wrapper) and not (denoiser.denoiser.has_prior and not denoiser.has_prior):
        denoiser = denoiser.denoiser
    instead = "give start_level=inf, which begins with noise"
    if parts.trained_up_to < math.inf:  # where it is not trained
        instead = _instead(denoiser, parts, time_of(denoiser.schedule, parts.trained_up_to), from_image=False)
    return f"{mixture}, which {type(denoiser).__name__} does not steer: {instead}"
