"""Samplers: from noise to data with any denoiser, along any falling sequence of times.

A sampler is one `step` from t to s < t; the loop is written once, in `Sampler.__call__`. With `lambda = log_snr / 2`,
`x / alpha` and `sigma / alpha` the deterministic ones solve the probability-flow ODE `d(x/alpha) / d(sigma/alpha) =
eps` (Song et al. 2021, arXiv 2010.02502, eq. 14).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.denoisers import Condition, Denoiser
from diffusion.noise import Noise
from diffusion.schedules import Schedule


class Evaluation(NamedTuple):
    """A denoiser's answer x0 at (x_t, t)."""

    t: Tensor
    x_t: Tensor
    x0: Tensor


# The evaluations that a multistep method still needs, newest first; element 0 is always the step's own.
History = tuple[Evaluation, ...]
Draw = Callable[[], Tensor]


class Sampler(ABC):
    """Turns noise into data.

    `order`: the global order of convergence in the step size, for deterministic samplers. `calls`: of the denoiser, a
    step.
    """

    order: int
    calls: int = 1
    stochastic: bool = False

    @abstractmethod
    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        """x_s and the history, from x_t; 0 < s < t are float64 scalars and draw() gives fresh noise shaped like x_t."""

    def __call__(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, cond: Condition | None = None, noise: Noise | None = None
    ) -> Iterator[Evaluation]:
        """Walks along the times and yields every state.

        Args:
            denoiser: any.
            x: (B, *S), the state at times[0]; `prior(...)` draws it.
            times: falling, from at most 1; a last 0 ends on D itself, a first-order step for every sampler.
            cond: what to generate.
            noise: the batch's random numbers, for stochastic samplers.

        Yields:
            For each time but the last (t, x_t, x0), x0 being what the denoiser saw there; at the end (t, x, x).
        """
        cond = cond or {}
        times = times.double().cpu()
        history: History = ()
        for i, (t, s) in enumerate(pairwise(times)):
            if s == 0:
                history = (Evaluation(t, x, denoiser(x, t, cond)),)
                x_s = history[0].x0
            else:
                x_s, history = self.step(denoiser, x, t, s, cond, history, _draws(noise, x, step=i + 1))
            yield history[0]
            x = x_s
        yield Evaluation(times[-1], x, x)

    def sample(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, cond: Condition | None = None, noise: Noise | None = None
    ) -> Tensor:
        """The last state of the loop alone."""
        for state in self(denoiser, x, times, cond, noise):
            x = state.x_t
        return x


def _draws(noise: Noise | None, x: Tensor, step: int) -> Draw:
    """Draw 0, 1, ... of one step."""
    count = 0

    def draw() -> Tensor:
        nonlocal count
        if noise is None:
            raise ValueError("a stochastic sampler needs noise=")
        count += 1
        return noise.normal(x.shape[1:], step=step, draw=count - 1).to(x)

    return draw


def prior(schedule: Schedule, noise: Noise, shape: tuple[int, ...], t: float = 1.0) -> Tensor:
    """x_t, (B, *shape), for data of which nothing is left: sigma_t eps, with the noise of step 0."""
    _, sigma = schedule(torch.tensor(t, dtype=torch.float64))
    return sigma.item() * noise.normal(shape)


class DDPMSampler(Sampler):
    """Ancestral sampling from the model's own `p(x_s | x_t)` (Ho et al. 2020, arXiv 2006.11239, algorithm 2)."""

    order = 1
    stochastic = True

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        mean, log_var, x0 = denoiser.transition(x_t, t, s, cond)
        return mean + (log_var / 2).exp() * draw(), (Evaluation(t, x_t, x0),)


class DDIMSampler(Sampler):
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16): deterministic at eta = 0, DDPM's posterior at eta = 1.

    Args:
        eta: scales the noise of each step, in [0, 1].
    """

    order = 1

    def __init__(self, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {eta}")
        self.eta = eta
        self.stochastic = eta > 0

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.schedule(t), denoiser.schedule(s)
        x0 = denoiser(x_t, t, cond)
        eps = (x_t - alpha_t * x0) / sigma_t
        std = self.eta * sigma_s / sigma_t * (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2).sqrt()
        x_s = alpha_s * x0 + (sigma_s**2 - std**2).sqrt() * eps
        return x_s + std * draw() if self.stochastic else x_s, (Evaluation(t, x_t, x0),)


class HeunSampler(Sampler):
    """Heun's method on the probability-flow ODE in sigma / alpha (Karras et al. 2022, arXiv 2206.00364, algorithm
    1)."""

    order = 2
    calls = 2

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.schedule(t), denoiser.schedule(s)
        step = sigma_s / alpha_s - sigma_t / alpha_t
        x0 = denoiser(x_t, t, cond)
        eps = (x_t - alpha_t * x0) / sigma_t
        x_s = alpha_s * (x_t / alpha_t + step * eps)
        eps_s = (x_s - alpha_s * denoiser(x_s, s, cond)) / sigma_s
        return alpha_s * (x_t / alpha_t + step * (eps + eps_s) / 2), (Evaluation(t, x_t, x0),)


class DPMSolverPP2MSampler(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order at one call a step.

    With h the step in lambda and r the previous one over h, `x_s = sigma_s / sigma_t x_t - alpha_s (e^-h - 1) D'` where
    `D' = D_t + (D_t - D_previous) / (2 r)`.
    """

    order = 2

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        schedule = denoiser.schedule
        (_, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        h = (schedule.log_snr(s) - schedule.log_snr(t)) / 2
        x0 = extrapolated = denoiser(x_t, t, cond)
        if history:
            ratio = (schedule.log_snr(t) - schedule.log_snr(history[0].t)) / (2 * h)
            extrapolated = x0 + (x0 - history[0].x0) / (2 * ratio)
        return sigma_s / sigma_t * x_t - alpha_s * torch.expm1(-h) * extrapolated, (Evaluation(t, x_t, x0),)


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


class TrailingGrid(Grid):
    """Even steps in t, starting at 1 (Lin et al. 2023, arXiv 2305.08891, table 2), on a discrete schedule rounded to
    its own."""

    def _times(self, schedule: Schedule, steps: int) -> Tensor:
        times = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
        return times if schedule.timesteps is None else (times * schedule.timesteps).round() / schedule.timesteps


class LogSNRGrid(Grid):
    """Even steps in log-SNR from t = 1 to t_min."""

    def _times(self, schedule: Schedule, steps: int) -> Tensor:
        ends = schedule.log_snr(torch.tensor([1.0, schedule.t_min], dtype=torch.float64))
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
        ends = schedule.log_snr(torch.tensor([1.0, schedule.t_min], dtype=torch.float64)).clamp(max=self.log_snr_max)
        first, last = (-ends / 2).exp() ** (1 / self.rho)
        ratio = torch.lerp(first, last, torch.linspace(0, 1, steps, dtype=torch.float64)) ** self.rho
        return _starting_at_one(schedule.inverse(-2 * ratio.log()))


def _starting_at_one(times: Tensor) -> Tensor:
    """Undoes the rounding of the inverse at the first time."""
    return torch.cat((torch.ones(1, dtype=torch.float64), times[1:]))
