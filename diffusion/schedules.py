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
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion.ranges import check_finite, check_positive


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


def _with_derivative(function: Callable[[Tensor], Any], t: Tensor) -> tuple[Any, Any]:
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
        (alpha, sigma), (alpha_dot, _) = _with_derivative(self, t)
        _, log_snr_dot = _with_derivative(self.log_snr, t)
        return alpha_dot / alpha, -(sigma**2) * log_snr_dot


class DiscreteSchedule(Schedule):
    """T noising steps with variances beta_1..beta_T (Ho et al. 2020, arXiv 2006.11239, eq. 2 and 4).

    `alpha_t^2 = prod_{j <= i} (1 - beta_j)` and `sigma_t^2 = 1 - alpha_t^2` at t = i / T; row 0 of the table is i = 1.
    The table is float64. Between its rows log_snr is interpolated linearly in t, so that samplers may use any t.

    With zero terminal SNR alpha is 0 at t = 1: `alpha_t <- (alpha_t - alpha_T) alpha_1 / (alpha_1 -
    alpha_T)` (Lin et al. 2023, arXiv 2305.08891, algorithm 1), which keeps alpha_1. In the last interval alpha / sigma
    then falls linearly to 0, where log_snr is -inf and the rates are infinite.

    Args:
        betas: beta_1..beta_T, each in (0, 1).
        zero_terminal_snr: whether to rescale the table in this way.
    """

    def __init__(self, betas: Tensor, zero_terminal_snr: bool = False) -> None:
        betas = betas.double().cpu()
        if not ((betas > 0) & (betas < 1)).all():
            raise ValueError(f"betas must lie strictly between 0 and 1, got {betas.min():.3g} to {betas.max():.3g}")
        self.timesteps = len(betas)
        self.t_min = 1 / self.timesteps
        log_alpha_bar = torch.log1p(-betas).cumsum(0)
        if zero_terminal_snr:
            if len(betas) < 2:
                raise ValueError(
                    "zero_terminal_snr needs timesteps of at least 2: it keeps the first alpha and moves the last"
                )
            alpha = (log_alpha_bar / 2).exp()
            log_alpha_bar = 2 * ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).log()
            betas = torch.cat((betas[:1], -torch.expm1(log_alpha_bar.diff())))
        self.betas = betas
        self._log_snrs = log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))
        self._on_device: dict[torch.device, Tensor] = {}

    def log_snr(self, t: Tensor) -> Tensor:
        table = self._table(t.device)
        last = len(table) - 1
        row = float64(t) * len(table) - 1
        row = torch.where(row < 0, 0, torch.where(row > last, last, row))  # clamp would have no derivative at the ends
        below = row.floor().long().clamp(max=max(last - 1, 0))
        # Not table[below], which asks the device for a scalar index.
        start, end = table.take(below), table.take((below + 1).clamp(max=last))
        to_zero = start + 2 * torch.log1p(below - row)
        log_snr = torch.lerp(start, torch.where(end.isinf(), start, end), row - below)
        log_snr = torch.where(end.isinf(), to_zero, log_snr)
        return torch.where(t > 0, log_snr, math.inf).to(t.dtype)

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_snr = self.log_snr(t)
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    def inverse(self, log_snr: Tensor) -> Tensor:
        table = self._table(log_snr.device)
        value = float64(log_snr).clamp(table[-1], table[0])
        above = torch.searchsorted(-table, -value.contiguous()).clamp(1, max(len(table) - 1, 1))
        below, above = above - 1, above.clamp(max=len(table) - 1)
        high, low = table.take(below), table.take(above)
        part = (high - value) / (high - low).clamp(min=torch.finfo(table.dtype).tiny)
        part = torch.where(low.isinf(), -torch.expm1((value - high) / 2), part)
        return ((below + part + 1) / len(table)).to(log_snr.dtype)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f and g^2, see `Schedule.rates`: `f = -g^2 / 2`, since `alpha^2 + sigma^2 = 1`."""
        _, sigma = self(t)
        _, log_snr_dot = _with_derivative(self.log_snr, t)
        return sigma**2 * log_snr_dot / 2, -(sigma**2) * log_snr_dot

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._on_device:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._on_device[device] = self._log_snrs.to(device, dtype)
        return self._on_device[device]


def _check_timesteps(timesteps: int) -> None:
    if not 1 <= timesteps <= 1_000_000:
        raise ValueError(f"timesteps must be from 1 to a million, got {timesteps}")


class ScaledSchedule(DiscreteSchedule):
    """Betas that are given for T = 1000 and scaled by 1000 / T, so that the last noise level hardly depends on T.

    Args:
        timesteps: T.
        beta_start: the first beta of 1000.
        beta_end: the last one.
        zero_terminal_snr: see `DiscreteSchedule`.
    """

    def __init__(
        self,
        timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        zero_terminal_snr: bool = False,
    ) -> None:
        _check_timesteps(timesteps)
        for name, beta in {"beta_start": beta_start, "beta_end": beta_end}.items():
            if not 0 < beta < 1:
                raise ValueError(
                    f"{name} must lie strictly between 0 and 1 (it is the beta at 1000 timesteps), got {beta}"
                )
        betas = self._betas(timesteps, beta_start, beta_end) * (1000 / timesteps)
        # beta_end counts too: a table of one row holds beta_start alone, and would leave most of the data at t = 1.
        largest = max(betas.max().item(), beta_end * 1000 / timesteps)
        if largest >= 1:
            raise ValueError(
                f"timesteps={timesteps} is too few for this schedule: its largest beta, scaled by 1000 / timesteps, "
                f"would be {largest:.3g} and must be below 1; use more timesteps"
            )
        super().__init__(betas, zero_terminal_snr)

    @abstractmethod
    def _betas(self, timesteps: int, beta_start: float, beta_end: float) -> Tensor:
        """beta_1..beta_T before they are scaled, float64."""


class LinearSchedule(ScaledSchedule):
    """Betas linear in i from beta_start to beta_end (Ho et al. 2020, arXiv 2006.11239, section 4)."""

    def _betas(self, timesteps: int, beta_start: float, beta_end: float) -> Tensor:
        return torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)


class QuadraticSchedule(ScaledSchedule):
    """Betas whose square root is linear in i, as the code of Ho et al. 2020 (arXiv 2006.11239) offers."""

    def _betas(self, timesteps: int, beta_start: float, beta_end: float) -> Tensor:
        return torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64) ** 2


class SigmoidSchedule(ScaledSchedule):
    """Betas along a sigmoid over [-6, 6], scaled to run from about beta_start to about beta_end (Xu et al. 2022,
    GeoDiff)."""

    def _betas(self, timesteps: int, beta_start: float, beta_end: float) -> Tensor:
        curve = torch.sigmoid(torch.linspace(-6, 6, timesteps, dtype=torch.float64))
        return beta_start + (beta_end - beta_start) * curve


class CosineSchedule(DiscreteSchedule):
    """`alpha_bar(u) = cos^2(pi/2 (u + offset) / (1 + offset))` with betas capped (Nichol & Dhariwal 2021, eq. 17)."""

    def __init__(
        self, timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999, zero_terminal_snr: bool = False
    ) -> None:
        _check_timesteps(timesteps)
        if not 0 <= offset < math.inf:
            raise ValueError(f"offset must be at least 0 and finite, got {offset}")
        if not 0 < max_beta < 1:
            raise ValueError(f"max_beta must lie strictly between 0 and 1, got {max_beta}")
        u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
        alpha_bar = torch.cos(math.pi / 2 * (u + offset) / (1 + offset)) ** 2
        super().__init__((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta), zero_terminal_snr)


class ListedSchedule(DiscreteSchedule):
    """A table of given betas, for schedules that have no formula here.

    Args:
        betas: beta_1..beta_T, each in (0, 1); not scaled.
        zero_terminal_snr: see `DiscreteSchedule`.
    """

    def __init__(self, betas: Sequence[float], zero_terminal_snr: bool = False) -> None:
        _check_timesteps(len(betas))
        super().__init__(torch.tensor(betas, dtype=torch.float64), zero_terminal_snr)


class ContinuousCosineSchedule(Schedule):
    """`alpha_t = cos(a)`, `sigma_t = sin(a)` with an angle a that is linear in t, so `log_snr = -2 log tan(a)`.

    The angle begins at the offset of the discrete cosine schedule, `pi/2 * offset / (1 + offset)`, and ends where the
    log-SNR has fallen to log_snr_min, so that alpha never reaches zero (Ho & Salimans 2022, arXiv 2207.12598, section
    2).
    """

    def __init__(self, offset: float = 0.008, log_snr_min: float = -15.0) -> None:
        check_positive(offset=offset)
        check_finite(log_snr_min=log_snr_min)
        self.angle_start = math.pi / 2 * offset / (1 + offset)
        self.angle_end = math.atan(math.exp(-log_snr_min / 2))
        if not 0 < self.angle_start < self.angle_end:
            raise ValueError(
                f"need offset > 0 and log_snr_min below the highest log-SNR, got {offset=} and {log_snr_min=}"
            )

    def _angle(self, t: Tensor) -> Tensor:
        return self.angle_start + (self.angle_end - self.angle_start) * t

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cos(self._angle(t)), torch.sin(self._angle(t))

    def log_snr(self, t: Tensor) -> Tensor:
        log_snr = -2 * torch.log(torch.tan(self._angle(float64(t))))
        return torch.where(t > 0, log_snr, math.inf).to(t.dtype)

    def inverse(self, log_snr: Tensor) -> Tensor:
        angle = torch.atan(torch.exp(-float64(log_snr) / 2))
        t = (angle - self.angle_start) / (self.angle_end - self.angle_start)
        return t.clamp(self.t_min, 1).to(log_snr.dtype)


class VarianceExplodingSchedule(Schedule):
    """`alpha_t = 1`, `sigma_t = sigma_min (sigma_max / sigma_min)^t` (Song et al. 2021, arXiv 2011.13456, eq. 9).

    With the bounds of Karras et al. 2022 (arXiv 2206.00364, table 1) it is the schedule of EDM; their time is our
    sigma.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                f"sigma_min and sigma_max need 0 < sigma_min < sigma_max < inf, got {sigma_min=} and {sigma_max=}"
            )
        self.log_min, self.log_max = math.log(sigma_min), math.log(sigma_max)

    def _log_sigma(self, t: Tensor) -> Tensor:
        return self.log_min + (self.log_max - self.log_min) * t

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.exp(self._log_sigma(t))

    def log_snr(self, t: Tensor) -> Tensor:
        return torch.where(t > 0, -2 * self._log_sigma(float64(t)), math.inf).to(t.dtype)

    def inverse(self, log_snr: Tensor) -> Tensor:
        t = (-float64(log_snr) / 2 - self.log_min) / (self.log_max - self.log_min)
        return t.clamp(self.t_min, 1).to(log_snr.dtype)


class GeometricSchedule(VarianceExplodingSchedule):
    """NCSN's noise levels (Song & Ermon 2019, arXiv 1907.05600, section 3): `alpha_t = 1` and T levels in geometric
    progression.

    `sigma_t = sigma_min (sigma_max / sigma_min)^((i - 1) / (T - 1))` at t = i / T. The paper's images lie in [0, 1] and
    its levels between 1 and 0.01; in [-1, 1] that is 2 and 0.02.
    """

    def __init__(self, timesteps: int = 10, sigma_min: float = 0.02, sigma_max: float = 2.0) -> None:
        if not 2 <= timesteps <= 1_000_000:
            raise ValueError(f"timesteps must be from 2 to a million, got {timesteps}")
        super().__init__(sigma_min, sigma_max)
        # The line of log sigma through both ends, continued from t = 1 / T to t = 0.
        self.log_min -= (self.log_max - self.log_min) / (timesteps - 1)
        self.timesteps = timesteps
        self.t_min = 1 / timesteps


class LinearBetaSchedule(Schedule):
    """Continuous time with beta(t) linear from beta_min to beta_max and `alpha_t = exp(-B / 2)`, `B = int_0^t beta`.

    A subclass defines sigma_t as a function of B (Song et al. 2021, arXiv 2011.13456, appendices B and C).
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min <= beta_max < math.inf:
            raise ValueError(
                f"beta_min and beta_max need 0 < beta_min <= beta_max < inf, got {beta_min=} and {beta_max=}"
            )
        self.beta_min, self.slope = beta_min, beta_max - beta_min

    def _integral(self, t: Tensor) -> Tensor:
        return (self.beta_min + self.slope * t / 2) * t

    @abstractmethod
    def _log_snr(self, integral: Tensor) -> Tensor: ...

    @abstractmethod
    def _integral_at(self, log_snr: Tensor) -> Tensor:
        """The inverse of `_log_snr`."""

    def log_snr(self, t: Tensor) -> Tensor:
        wide = float64(t)
        return torch.where(wide > 0, self._log_snr(self._integral(wide)), math.inf).to(t.dtype)

    def inverse(self, log_snr: Tensor) -> Tensor:
        integral = self._integral_at(float64(log_snr)).clamp(max=self.beta_min + self.slope / 2)
        # The root of slope / 2 t^2 + beta_min t = B in the form that does not cancel.
        t = 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * self.slope * integral).sqrt())
        return t.clamp(self.t_min, 1).to(log_snr.dtype)


class VPSchedule(LinearBetaSchedule):
    """The variance-preserving SDE (Song et al. 2021, eq. 11 and 33): `sigma_t^2 = 1 - e^-B`, the limit of DDPM's."""

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        integral = self._integral(t)
        return torch.exp(-integral / 2), (-torch.expm1(-integral)).sqrt()

    def _log_snr(self, integral: Tensor) -> Tensor:
        return -integral - torch.log(-torch.expm1(-integral))

    def _integral_at(self, log_snr: Tensor) -> Tensor:
        return torch.logaddexp(-log_snr, torch.zeros_like(log_snr))


class SubVPSchedule(LinearBetaSchedule):
    """The sub-VP SDE (Song et al. 2021, eq. 12 and 29): `sigma_t = 1 - e^-B`, so `alpha^2 + sigma^2 < 1` on the way.

    Sigma falls with t, not with its root, so that it is 1e-4 at a t_min of 1e-3, where the paper starts sampling.
    """

    t_min = 1e-3

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        integral = self._integral(t)
        return torch.exp(-integral / 2), -torch.expm1(-integral)

    def _log_snr(self, integral: Tensor) -> Tensor:
        return -integral - 2 * torch.log(-torch.expm1(-integral))

    def _integral_at(self, log_snr: Tensor) -> Tensor:
        return 2 * torch.asinh(torch.exp(-log_snr / 2) / 2)  # sigma / alpha = 2 sinh(B / 2)


class FlowSchedule(Schedule):
    """The straight path `alpha_t = 1 - c t`, `sigma_t = c t` (Liu et al. 2022, arXiv 2209.03003, eq. 1; Lipman et al.
    2022).

    Flow matching's time is c t. With c below 1 a little of the data is left at t = 1, and the log-SNR is finite there.

    Args:
        end: c.
    """

    t_min = 1e-3

    def __init__(self, end: float = 0.999) -> None:
        if not 0 < end < 1:
            raise ValueError(f"end must lie strictly between 0 and 1, got {end}")
        self.end = end

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - self.end * t, self.end * t

    def log_snr(self, t: Tensor) -> Tensor:
        sigma = self.end * float64(t)
        return torch.where(sigma > 0, 2 * (torch.log1p(-sigma) - torch.log(sigma)), math.inf).to(t.dtype)

    def inverse(self, log_snr: Tensor) -> Tensor:
        t = torch.sigmoid(-float64(log_snr) / 2) / self.end
        return t.clamp(self.t_min, 1).to(log_snr.dtype)
