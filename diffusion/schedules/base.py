"""Noise schedules: alpha_t and sigma_t, the shares of data and noise at time t.

The one convention of this project: `x_t = alpha_t * x0 + sigma_t * eps` with `eps ~ N(0, I)` and t in [t_min, 1],
where t grows with noise. `log_snr = log(alpha_t^2 / sigma_t^2)` falls as t grows. t = 0 is data, a marker with
(alpha, sigma) = (1, 0) at which sampling ends. No code assumes `alpha^2 + sigma^2 = 1`.

Coefficients are computed in float64 where the device has it and returned in the dtype of t.

They are on the device of t. In training t is (B,) on the batch's device. In a sampler t is a scalar () on the CPU, and
so are its coefficients. torch accepts a CPU scalar in an operation on any device, but no other CPU tensor, not even one
of shape (1,). So `expand` moves coefficients to x, and `beside` moves t to x where t is used with a model's
statistics.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """Shapes a coefficient, () or (B,) on any device, so that it multiplies x of shape (B, *S) on x's device."""
    if coefficient.ndim == 0:
        return coefficient if coefficient.device.type == "cpu" else coefficient.to(x.device)
    return coefficient.to(x.device).reshape(-1, *[1] * (x.ndim - 1))


def float64(t: Tensor) -> Tensor:
    """t in float64, or in float32 on devices that have nothing wider (Apple's MPS)."""
    return t if t.device.type == "mps" else t.double()


def beside(t: Tensor, x: Tensor) -> Tensor:
    """t on x's device, in float64 where that has it."""
    return t.to(x.device, torch.float32 if x.device.type == "mps" else torch.float64)


def with_derivative(function: Callable[[Tensor], Any], t: Tensor) -> tuple[Any, Any]:
    """function(t) and its derivative, of a function that acts on each element alone."""
    with warnings.catch_warnings():  # torch's first use of forward differentiation warns of torch's own scripts
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
        value, derivative = torch.func.jvp(function, (t,), (torch.ones_like(t),))[:2]
    return value, derivative


class Schedule(ABC):
    """A noise schedule: `schedule(t) -> (alpha_t, sigma_t)`.

    A subclass gives `_alpha_sigma`, `log_snr` and `inverse`; t is a tensor of any shape, on any device.
    """

    t_min: float = 1e-5
    timesteps: int | None = None  # T when the schedule is discrete: training times are i / T for i = 1..T

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, shaped like t; (1, 0) at t = 0."""
        alpha, sigma = self._alpha_sigma(float64(t))
        return torch.where(t > 0, alpha, 1).to(t.dtype), torch.where(t > 0, sigma, 0).to(t.dtype)

    @abstractmethod
    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2), shaped like t; infinite at t = 0."""

    @abstractmethod
    def inverse(self, log_snr: Tensor) -> Tensor:
        """The t in [t_min, 1] at which the schedule has this log-SNR; clamped to that range."""

    def c_noise(self, t: Tensor) -> Tensor:
        """The network's input for t: 1000 t, or i - 1 on a discrete schedule (DDPM's code counts from zero)."""
        return 1000 * t if self.timesteps is None else t * self.timesteps - 1

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f and g^2 of the SDE `dx = f x dt + g dw` with these marginals (Kingma et al. 2021, arXiv 2107.00630, eq.
        21).

        `f = d log(alpha) / dt` and `g^2 = d sigma^2 / dt - 2 f sigma^2 = -sigma^2 d log_snr / dt`, both shaped like t.
        """
        (alpha, sigma), (alpha_dot, _) = with_derivative(self, t)
        _, log_snr_dot = with_derivative(self.log_snr, t)
        return alpha_dot / alpha, -(sigma**2) * log_snr_dot


def time_of(schedule: Schedule, level: float) -> float:
    """The time at which sigma / alpha is this, of a discrete schedule the nearest row; at most 1."""
    log_snr = torch.tensor(-2 * math.log(level), dtype=torch.float64, device="cpu")
    if log_snr <= schedule.log_snr(torch.ones((), dtype=torch.float64, device="cpu")):
        return 1.0
    t, count = schedule.inverse(log_snr).item(), schedule.timesteps
    return t if count is None else min(max(round(t * count), 1), count) / count
