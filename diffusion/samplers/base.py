"""Samplers: from noise to data with any denoiser, along any falling sequence of times.

A sampler is one `step` from t to s; the loop is written once, in `Sampler.__call__`. With `lambda = log_snr / 2`,
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

    Attributes:
        order: global order of convergence in the step size: of the state, or for stochastic samplers of its mean and
            covariance; 0 if a bias remains for any number of steps. 1 where a class does not state it.
        calls: of the denoiser in one step; 0 if the number varies.
        stochastic: whether a step draws noise.
        from_pure_noise: whether a step may begin at alpha_t = 0, so without sigma / alpha and the SDE's rates there.
        off_grid: whether a step calls the denoiser at times other than t and s.
        by_transition: whether a step is `Denoiser.transition`, the model's own.
        affine: whether a step is affine in the state and in its draws if the denoiser is affine.
        remembers: whether a step reads the history.
        flow_map: whether a step takes D as the end of the ODE's path, which holds only for a consistency model.
    """

    order: int = 1
    calls: int = 1
    stochastic: bool = False
    from_pure_noise: bool = False
    off_grid: bool = False
    by_transition: bool = False
    affine: bool = True
    remembers: bool = False
    flow_map: bool = False

    @abstractmethod
    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        """x_s and the history, from x_t; s and t are unequal float64 scalars above 0; draw() gives noise like x_t."""

    def check(self, denoiser: Denoiser, times: Tensor) -> None:
        """Raises ValueError, with what to do, if these do not go together.

        The loop calls it, and the scripts call it before anything slow. A sampler with further conditions extends it.
        """
        if not times.isfinite().all():
            raise ValueError(f"times must be finite numbers, got {times[~times.isfinite()][0].item()}")
        if denoiser.acts_in_step and not self.by_transition:
            raise ValueError(
                f"this guidance moves the mean of a DDPM step, which {type(self).__name__} does not take: use ddpm, or "
                f"EnergyGuidance"
            )
        if (times[:-1] == 0).any() or (times.diff() == 0).any():
            raise ValueError("times must differ from one to the next, and only the last may be 0")
        rising = bool((times.diff() > 0).any())
        if self.stochastic and rising:
            raise ValueError(
                "the times of a stochastic sampler must fall; to invert use a deterministic one, like ddim"
            )
        if denoiser.schedule.log_snr(times.max()) == -math.inf and (rising or not self.from_pure_noise):
            raise ValueError(
                f"{type(self).__name__} can neither begin at alpha = 0 nor lead back from there: the schedule has zero "
                f"terminal SNR"
            )
        try:
            denoiser.check_times(_refined(times) if self.off_grid else times)
        except ValueError as error:
            denoiser.check_times(times)  # raises what is wrong with these themselves
            raise ValueError(
                f"{type(self).__name__} asks at times between the grid's, which this model does not know: {error}"
            ) from error

    def __call__(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, noise: Noise | None = None
    ) -> Iterator[Evaluation]:
        """Walks along the times and yields every state.

        Args:
            denoiser: any; wrapped in `Conditioned` if the model is conditional.
            x: (B, *S), the state at times[0]; `prior(...)` draws it.
            times: falling, from at most 1; a last 0 ends on D itself, a first-order step for every sampler. For
                deterministic samplers they may also rise, from data to noise, and change direction: a multistep method
                then starts again without history.
            noise: the batch's random numbers, for stochastic samplers.

        Yields:
            For each time but the last (t, x_t, x0) with x0 the denoiser's output; at the end (t, x, x).
        """
        times = times.double().cpu()
        self.check(denoiser, times)
        rises = times.diff() > 0
        history: History = ()
        for i, (t, s) in enumerate(pairwise(times)):
            if i and rises[i] != rises[i - 1]:
                history = ()
            if s == 0:
                history = (Evaluation(t, x, denoiser(x, t)),)
                x_s = history[0].x0
            else:
                x_s, history = self.step(denoiser, x, t, s, history, self._draws(noise, x, step=i + 1))
            yield history[0]
            x = x_s
        yield Evaluation(times[-1], x, x)

    def _draws(self, noise: Noise | None, x: Tensor, step: int) -> Draw:
        """Draw 0, 1, ... of one step."""
        count = 0

        def draw() -> Tensor:
            nonlocal count
            if not self.stochastic:  # what depends on the attribute would be wrong
                raise ValueError(f"{type(self).__name__} draws noise, so its class has to state stochastic = True")
            if noise is None:
                raise ValueError("a stochastic sampler needs noise=")
            count += 1
            return noise.normal(x.shape[1:], step=step, draw=count - 1).to(x)

        return draw

    def sample(self, denoiser: Denoiser, x: Tensor, times: Tensor, noise: Noise | None = None) -> Tensor:
        """Only the last state of the loop."""
        for state in self(denoiser, x, times, noise):
            x = state.x_t
        return x


def _refined(times: Tensor) -> Tensor:
    """The times and 15 more between any two of them; the last step, to data, has none between."""
    asked = times[times > 0]
    shares = torch.arange(16, dtype=asked.dtype) / 16
    return torch.cat(((asked[:-1, None] + asked.diff()[:, None] * shares).flatten(), asked[-1:]))


def prior(schedule: Schedule, noise: Noise, shape: tuple[int, ...], t: float = 1.0) -> Tensor:
    """The state x_t = sigma_t eps from which sampling begins, (B, *shape), with the noise of step 0."""
    _, sigma = schedule(torch.tensor(t, dtype=torch.float64, device="cpu"))
    return sigma * noise.normal(shape)


def begun(
    denoiser: Denoiser, noise: Noise, shape: tuple[int, ...], t: float = 1.0, cond: Condition | None = None
) -> Tensor:
    """The state from which sampling without an image begins, (B, *shape): below t = 1 the noised prior of a denoiser
    that has one."""
    x = prior(denoiser.schedule, noise, shape, t)
    if t == 1:
        return x
    alpha, _ = denoiser.schedule(torch.tensor(t, dtype=torch.float64, device="cpu"))
    return x + alpha * denoiser.draw_prior(noise, shape, cond).to(x)
