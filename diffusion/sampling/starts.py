"""Where sampling begins: at t = 1 with noise, or below it with noised data of the model's prior."""

import math

import torch

from diffusion.build import ConfigError
from diffusion.denoisers import Denoiser, Wrapper
from diffusion.runs.parts import Parts
from diffusion.schedules import Schedule


def time_of(schedule: Schedule, level: float) -> float:
    """The time at which sigma / alpha is this, of a discrete schedule the nearest row; at most 1."""
    log_snr = torch.tensor(-2 * math.log(level), dtype=torch.float64, device="cpu")
    if log_snr <= schedule.log_snr(torch.ones((), dtype=torch.float64, device="cpu")):
        return 1.0
    t, count = schedule.inverse(log_snr).item(), schedule.timesteps
    return t if count is None else min(max(round(t * count), 1), count) / count


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
    return "leave objective.times.highest out"


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
