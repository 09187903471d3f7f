"""Schedules of T noising steps, by their betas: those of DDPM and its successors."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.schedules.base import Schedule, float64, with_derivative


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
        _, log_snr_dot = with_derivative(self.log_snr, t)
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
        most = max(1, timesteps / 1000)
        for name, beta in {"beta_start": beta_start, "beta_end": beta_end}.items():
            if not 0 < beta < most:
                raise ValueError(
                    f"{name} must lie strictly between 0 and {most:g} (it is the beta at 1000 timesteps), got {beta}"
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
