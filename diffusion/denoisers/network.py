"""Networks as denoisers.

A network becomes a denoiser by a preconditioner, `D = c_skip x_t + c_out F(c_in x_t, c_noise)` (Karras et al. 2022,
arXiv 2206.00364, eq. 7); predicting eps, x0, v or a flow is a choice of these coefficients.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.denoisers.base import Condition, Denoiser, Prediction
from diffusion.ranges import check_positive
from diffusion.schedules import Schedule, expand, float64
from diffusion.trainable import Trainable


class Coefficients(NamedTuple):
    """The preconditioner's coefficients at one t, or at (B,) of them."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


class Preconditioner(ABC):
    """`(alpha_t, sigma_t) -> (c_skip, c_out, c_in)`: how a raw network output F becomes D."""

    @abstractmethod
    def __call__(self, alpha_t: Tensor, sigma_t: Tensor) -> Coefficients: ...

    def c_noise(self, schedule: Schedule, t: Tensor) -> Tensor:
        """The noise level as an input of the network."""
        return schedule.c_noise(t)


class EpsPreconditioner(Preconditioner):
    """F is the noise: `D = (x_t - sigma_t F) / alpha_t` (Ho et al. 2020, arXiv 2006.11239, eq. 15)."""

    def __call__(self, alpha_t: Tensor, sigma_t: Tensor) -> Coefficients:
        return Coefficients(1 / alpha_t, -sigma_t / alpha_t, (alpha_t**2 + sigma_t**2).rsqrt())


class X0Preconditioner(Preconditioner):
    """F is the data: `D = F`."""

    def __call__(self, alpha_t: Tensor, sigma_t: Tensor) -> Coefficients:
        return Coefficients(torch.zeros_like(alpha_t), torch.ones_like(alpha_t), (alpha_t**2 + sigma_t**2).rsqrt())


class VPreconditioner(Preconditioner):
    """F is the velocity `alpha_t eps - sigma_t x0` (Salimans & Ho 2022, arXiv 2202.00512, section 4 and appendix D).

    `D = (alpha_t x_t - sigma_t F) / (alpha_t^2 + sigma_t^2)`, which holds whether or not the denominator is one.
    """

    def __call__(self, alpha_t: Tensor, sigma_t: Tensor) -> Coefficients:
        power = alpha_t**2 + sigma_t**2
        return Coefficients(alpha_t / power, -sigma_t / power, power.rsqrt())


class ScorePreconditioner(Preconditioner):
    """F is the score times sigma_t, `sigma_t grad log p_t(x_t)`, which is -eps: `D = (x_t + sigma_t F) / alpha_t`.

    Simple weighting on F is then denoising score matching weighted by sigma_t^2 (Song & Ermon 2019, arXiv 1907.05600,
    eq. 6).
    """

    def __call__(self, alpha_t: Tensor, sigma_t: Tensor) -> Coefficients:
        return Coefficients(1 / alpha_t, sigma_t / alpha_t, (alpha_t**2 + sigma_t**2).rsqrt())


class FlowPreconditioner(Preconditioner):
    """F is flow matching's velocity `eps - x0` (Liu et al. 2022, arXiv 2209.03003, eq. 1, time running to noise).

    `D = (x_t - sigma_t F) / (alpha_t + sigma_t)`, on any schedule; the denominator is one on `FlowSchedule`.
    """

    def __call__(self, alpha_t: Tensor, sigma_t: Tensor) -> Coefficients:
        total = alpha_t + sigma_t
        return Coefficients(1 / total, -sigma_t / total, (alpha_t**2 + sigma_t**2).rsqrt())


class EDMPreconditioner(Preconditioner):
    """Inputs and training targets of unit variance at every noise level (Karras et al. 2022, table 1).

    The paper's formulas hold for `x_t / alpha_t`, whose noise has the standard deviation `sigma_t / alpha_t`.

    Args:
        sigma_data: the data's standard deviation.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        check_positive(sigma_data=sigma_data)
        self.sigma_data = sigma_data

    def __call__(self, alpha_t: Tensor, sigma_t: Tensor) -> Coefficients:
        power = sigma_t**2 + (alpha_t * self.sigma_data) ** 2
        return Coefficients(
            alpha_t * self.sigma_data**2 / power, sigma_t * self.sigma_data * power.rsqrt(), power.rsqrt()
        )

    def c_noise(self, schedule: Schedule, t: Tensor) -> Tensor:
        """`ln(sigma_t / alpha_t) / 4`, times 1000: the sinusoidal embedding is made for steps that count to 1000."""
        return -125 * schedule.log_snr(t)


class TrainableDenoiser(Denoiser, Trainable):
    """A denoiser whose weights are those of one network, `network(x, c_noise, cond) -> F`; c_noise is (B,).

    `num_classes` is the number of labels that it knows; `steps` is the number of noising steps with weights of their
    own, or 0.

    Raises:
        ValueError: the schedule has another number of steps than the network, or the network is not for denoising (its
            `not_for_denoising` is the message).
    """

    kind = "denoiser"
    draws = True

    def __init__(self, network: nn.Module, schedule: Schedule, variance: str) -> None:
        super().__init__(schedule, variance)
        if refusal := getattr(network, "not_for_denoising", ""):
            raise ValueError(refusal)
        self.network = network
        for name in ("num_classes", "embedding", "condition_channels"):  # not every network has them
            setattr(self, name, int(getattr(network, name, 0)))
        self.steps = int(getattr(network, "steps", 0))
        if self.steps and schedule.timesteps != self.steps:
            raise ValueError(
                f"the network has {self.steps} heads, one a noising step, and the schedule has {schedule.timesteps}"
            )

    def output(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        """F in x's dtype. The network may run in reduced precision under autocast; the code after it never does."""
        c_noise = c_noise.to(x.device, torch.float32).expand(x.shape[0])
        return self.network(x.to(self.dtype), c_noise, cond).to(x.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's weights."""
        return next(self.network.parameters()).dtype


class RegressionDenoiser(TrainableDenoiser):
    """D is a known function of x_t plus c_out(t) times the output F, so there is one F that makes it exact."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, t: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """The F for which D is x0 at `x_t = alpha_t x0 + sigma_t eps`, shaped like x0, and c_out, (B,) float64.

        t is (B,), and `prediction` is what `predict` returned there.
        """


class NetworkDenoiser(RegressionDenoiser):
    """A network behind a preconditioner.

    Args:
        network: F is shaped like x. With variance "learned" it has twice x's channels; the second half is
            `Prediction.extra`.
        schedule: see `Denoiser`.
        precond: the parameterization.
        variance: see `Denoiser`.

    Raises:
        ValueError: the parameterization is undefined at t = 1 of this schedule.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, precond: Preconditioner, variance: str = "beta") -> None:
        super().__init__(network, schedule, variance)
        one = torch.ones((), dtype=torch.float64, device="cpu")
        if not all(c.isfinite() for c in (*precond(*schedule(one)), precond.c_noise(schedule, one))):
            raise ValueError(
                f"{type(precond).__name__} says nothing of the data at t = 1 on a schedule with zero terminal SNR"
            )
        self.precond = precond
        if self.steps:
            self.check_times(torch.arange(self.steps, 0, -1, dtype=torch.float64, device="cpu") / self.steps)

    def check_times(self, times: Tensor) -> None:
        number = self.precond.c_noise(self.schedule, times[times > 0])
        if self.steps and ((number - number.round()).abs() > 1e-3).any():
            raise ValueError(
                f"the network has a head for each of {self.steps} noising steps and none between: it takes the "
                f"schedule's own steps alone, by their numbers"
            )

    def target(self, x0: Tensor, eps: Tensor, t: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = self.schedule(float64(t))
        c_skip, c_out, _ = self.precond(alpha_t, sigma_t)
        # (x0 - c_skip x_t) / c_out with x_t written out: free of cancellation where sigma_t is small.
        on_x0, on_eps = (1 - c_skip * alpha_t) / c_out, -c_skip * sigma_t / c_out
        return expand(on_x0.to(x0.dtype), x0) * x0 + expand(on_eps.to(x0.dtype), x0) * eps, c_out

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        c_skip, c_out, c_in = (expand(c.to(x_t.dtype), x_t) for c in self.precond(*self.schedule(float64(t))))
        out = self.output(c_in * x_t, self.precond.c_noise(self.schedule, t), cond)
        raw, extra = out, None
        if self.variance == "learned":
            if out.shape[1] != 2 * x_t.shape[1]:
                raise ValueError(
                    f"a learned variance needs {2 * x_t.shape[1]} output channels, and the network has {out.shape[1]}"
                )
            raw, extra = out.chunk(2, dim=1)
        return Prediction(c_skip * x_t + c_out * raw, raw, extra)
