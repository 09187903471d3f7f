"""A sampler tried on data whose answer is known, before a network is asked.

On Gaussian data, with their exact denoiser, a sampler's step is affine in the state and in what it draws. So samples
are Gaussian, and their mean and variance follow exactly from a few runs side by side: one without noise, one from
another start, and one for each draw.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.samplers.base import Sampler
from diffusion.samplers.onestep import DDIMSampler
from diffusion.schedules import Schedule

# Standard deviations of data in [-1, 1]: of what hardly varies, of what varies as pixels do, of what fills the range.
SPREADS = (0.05, 0.3, 1.0)
MEAN = 0.5
# A sampler is far off where its distance is more than DDIM's by this factor and this much, in units of the data.
FACTOR, MARGIN = 1.3, 0.01
# By so many steps the error of every sampler that converges is small; others are tried up to so many calls, a second.
MOST_STEPS, MOST_CALLS = 100, 2500


class _Draws:
    """In the place of `Noise`: draw number k is one in row 2 + k, and zero in all others."""

    def __init__(self, rows: int) -> None:
        self.rows, self.count = rows, 0

    def normal(self, shape: tuple[int, ...], step: int = 0, draw: int = 0) -> Tensor:
        eps = torch.zeros(self.rows, *shape, dtype=torch.float64)
        eps[2 + self.count : 3 + self.count] = 1
        self.count += 1
        return eps


def _moved(
    walk: Callable[[Tensor, _Draws], Tensor], mean: Tensor, spread: Tensor, count: int = 0
) -> tuple[Tensor, Tensor, int]:
    """Mean and standard deviation, (d,) each, after an affine walk, from those before it, and how often it draws.

    Args:
        count: of draws, as the walk before this one made; another number costs a second try.
    """
    while True:
        draws = _Draws(2 + count)
        x = mean.repeat(draws.rows, 1)
        x[1] += spread
        x = walk(x, draws)
        if draws.count == count:
            return x[0], (x[1:] - x[0]).square().sum(0).sqrt(), count
        count = draws.count


def moments(sampler: Sampler, schedule: Schedule, times: Tensor, variance: str = "beta") -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of samples of `N(MEAN, s^2)`, s in `SPREADS`, from the exact state at times[0].

    A step that needs no earlier one follows from the two numbers alone; the steps of the others are taken together.

    Args:
        sampler: any whose step is affine.
        schedule: of the model.
        times: as for the sampler.
        variance: of the model's own step, see `Denoiser`.

    Returns:
        (len(SPREADS),) each.
    """
    spreads = torch.tensor(SPREADS, dtype=torch.float64)
    means = torch.full((1, len(SPREADS)), MEAN, dtype=torch.float64)
    denoiser = GaussianMixtureDenoiser(schedule, means, spreads.square().diag()[None], variance=variance)
    alpha, sigma = schedule(times[0])
    mean, spread = alpha * means[0], torch.hypot(alpha * spreads, sigma)
    if sampler.remembers:

        def walk(x: Tensor, draws: _Draws) -> Tensor:
            return sampler.sample(denoiser, x, times, draws)  # type: ignore[arg-type]

        return _moved(walk, mean, spread)[:2]
    sampler.check(denoiser, times)
    count = 0
    for t, s in pairwise(times):

        def step(x: Tensor, draws: _Draws, t: Tensor = t, s: Tensor = s) -> Tensor:
            return sampler.step(denoiser, x, t, s, (), lambda: draws.normal(x.shape[1:]))[0] if s else denoiser(x, t)

        mean, spread, count = _moved(step, mean, spread, count)
    return mean, spread


def distances(sampler: Sampler, schedule: Schedule, times: Tensor, variance: str = "beta") -> Tensor:
    """The Wasserstein-2 distance between such samples and the truth at times[-1], (len(SPREADS),)."""
    mean, spread = moments(sampler, schedule, times, variance)
    alpha, sigma = schedule(times[-1])
    true_spread = torch.hypot(alpha * torch.tensor(SPREADS, dtype=torch.float64), sigma)
    return torch.hypot(mean - alpha * MEAN, spread - true_spread)


class Finding(NamedTuple):
    """Where a sampler is far off: the data's standard deviation, its distance and DDIM's on the same times."""

    spread: float
    distance: float
    ddim: float


def can_be_tried(sampler: Sampler, times: Tensor, variance: str = "beta", calls: int = MOST_CALLS) -> bool:
    """Whether the trial is exact and quick: an affine step of a posterior mean, no learned variance in it, not too many
    steps or calls."""
    steps = len(times) - 1
    exact = sampler.affine and not sampler.flow_map and not (sampler.by_transition and variance == "learned")
    return exact and (steps <= MOST_STEPS if sampler.order else steps * sampler.calls <= calls)


def far_off(sampler: Sampler, schedule: Schedule, times: Tensor, variance: str = "beta") -> Finding | None:
    """Where a sampler is farthest beyond DDIM along falling times; None where it is near, or cannot be tried."""
    if isinstance(sampler, DDIMSampler) or not can_be_tried(sampler, times, variance):
        return None
    found = distances(sampler, schedule, times, variance if sampler.by_transition else "beta")
    ddim = distances(DDIMSampler(), schedule, times)
    beyond = found.nan_to_num(torch.inf) - FACTOR * ddim - MARGIN
    worst = int(beyond.argmax())
    return Finding(SPREADS[worst], found[worst].item(), ddim[worst].item()) if beyond[worst] > 0 else None
