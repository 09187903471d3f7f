"""Schedules in continuous time: those of the score SDEs, of flow matching and the cosine."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from diffusion.ranges import check_finite, check_positive
from diffusion.schedules.base import Schedule, float64


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

    Sigma falls with t, not with its root, so that it is 1e-4 at a t_min of 1e-3, where the paper ends sampling.
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
