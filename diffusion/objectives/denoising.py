"""The denoising loss: a distribution of noise levels, a weight for each level, and a distance.

The loss compares the network's raw output F with the target that would make D exact. With a squared error a weight w on
`||x0 - D||^2` is the weight `w c_out^2` on `||target - F||^2`, so the usual losses are all of this form.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.denoisers import Prediction, RegressionDenoiser
from diffusion.forward import noised
from diffusion.likelihood import bits, bound_term
from diffusion.noise import Noise
from diffusion.objectives.base import NOISE, TIME, Objective, conditions, noising_steps
from diffusion.ranges import check_finite, check_positive
from diffusion.schedules import Schedule, float64


class Times(ABC):
    """A distribution of training times."""

    @abstractmethod
    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        """Maps u, (B,) uniform in (0, 1), to t, (B,) in [t_min, 1]; on a discrete schedule t = i / T."""

    def check(self, schedule: Schedule) -> None:  # noqa: B027 (most have nothing to refuse)
        """Raises ValueError if these times leave out a part of the schedule that sampling needs."""


class UniformTimes(Times):
    """i uniform on 1..T (Ho et al. 2020, algorithm 1), or t uniform on [t_min, 1] when time is continuous."""

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        if schedule.timesteps is None:
            return schedule.t_min + (1 - schedule.t_min) * u
        return (u * schedule.timesteps).ceil().clamp(1, schedule.timesteps) / schedule.timesteps


class LognormalTimes(Times):
    """`ln(sigma_t / alpha_t) ~ N(p_mean, p_std^2)` (Karras et al. 2022, arXiv 2206.00364, table 1).

    Levels outside the schedule's range become its ends; a discrete schedule takes the nearest step.

    Args:
        p_mean: mean of ln(sigma / alpha) over the training times.
        p_std: and its standard deviation.
        highest: the distribution is cut off above this level, where the sampling of the model begins; None is not.
    """

    def __init__(self, p_mean: float = -1.2, p_std: float = 1.2, highest: float | None = None) -> None:
        check_finite(p_mean=p_mean)
        check_positive(p_std=p_std)
        if highest is not None and not highest > 0:
            raise ValueError(f"highest must be a level above 0, got {highest:g}")
        self.p_mean, self.p_std, self.highest = p_mean, p_std, highest
        self._share = 1.0 if highest is None else NormalDist(p_mean, p_std).cdf(math.log(highest))
        if highest is not None and self._share < 1e-6:  # whose quantiles would be those of a tail
            raise ValueError(
                f"highest={highest:g} lies below nearly all levels of p_mean={p_mean:g}, p_std={p_std:g}: lower p_mean"
            )

    def check(self, schedule: Schedule) -> None:
        _some_data_at_one(schedule)

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        u = self._share * u
        # MPS has no ndtri.
        quantile = torch.special.ndtri(u.cpu()).to(u) if u.device.type == "mps" else torch.special.ndtri(u)
        t = schedule.inverse(-2 * (self.p_mean + self.p_std * quantile))
        if schedule.timesteps is None:
            return t
        return (t * schedule.timesteps).round().clamp(1, schedule.timesteps) / schedule.timesteps


class LogSNRTimes(Times):
    """The log-SNR uniform between its ends, for continuous time: `p(t) = g^2 / (R sigma_t^2)` with the range R of the
    log-SNR, since `g^2 / sigma_t^2 = -d log_snr / dt`.

    With uniform times the weight g^2 / sigma_t^2 has a heavy tail, 1 / t at low noise; with these it is R (Song et al.
    2021b, arXiv 2101.09258, on importance sampling).
    """

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        start, end = (schedule.log_snr(u.new_full((), t)) for t in (schedule.t_min, 1.0))
        return schedule.inverse(torch.lerp(start, end, u))


class Weighting(ABC):
    """The weight on the raw output's error, from the schedule, t (B,) and c_out^2 (B,), both float64."""

    @abstractmethod
    def __call__(self, schedule: Schedule, t: Tensor, c_out2: Tensor) -> Tensor: ...

    def check(self, schedule: Schedule) -> None:  # noqa: B027 (most have nothing to refuse)
        """Raises ValueError if the weight has no meaning on this schedule."""


class SimpleWeighting(Weighting):
    """Weight 1 on the raw output: L_simple for eps (Ho et al. 2020, eq. 14), EDM's weighting for EDM."""

    def __call__(self, schedule: Schedule, t: Tensor, c_out2: Tensor) -> Tensor:
        return torch.ones_like(t)


class MinSNRWeighting(Weighting):
    """`min(SNR, gamma)` on `||x0 - D||^2` (Hang et al. 2023, arXiv 2303.09556, eq. 7).

    On the raw output: min(SNR, gamma) / SNR for eps, min(SNR, gamma) for x0 and min(SNR, gamma) / (SNR + 1) for v.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        check_positive(gamma=gamma)
        self.gamma = gamma

    def __call__(self, schedule: Schedule, t: Tensor, c_out2: Tensor) -> Tensor:
        return schedule.log_snr(t).exp().clamp(max=self.gamma) * c_out2

    def check(self, schedule: Schedule) -> None:
        _some_data_at_one(schedule)


class LikelihoodWeighting(Weighting):
    """`g^2` on the squared error of the score, so that the loss bounds the likelihood of the reverse SDE (Song et al.
    2021b, arXiv 2101.09258, theorem 1).

    On the raw output this is `g^2 alpha_t^2 / sigma_t^4 c_out^2`, so `g^2 / sigma_t^2` for eps and score. It needs
    `LogSNRTimes`. Divided by their density it is `R SNR c_out^2`, whose mean over these times is the integral over t.
    For eps and score that is the constant R. On VE, whose log-SNR is linear in t, the loss is then R times that of
    `SimpleWeighting`. The theorem's integrand is half of this, and a sum over the dimensions; a loss here is a mean.
    """

    def __call__(self, schedule: Schedule, t: Tensor, c_out2: Tensor) -> Tensor:
        highest, lowest = (schedule.log_snr(t.new_full((), end)) for end in (schedule.t_min, 1.0))
        return (highest - lowest) * schedule.log_snr(t).exp() * c_out2

    def check(self, schedule: Schedule) -> None:
        if schedule.timesteps is not None:
            raise ValueError(
                "likelihood weighting is for continuous time, and this schedule is discrete; a discrete one has the "
                "variational bound"
            )


DISTANCES = {
    "l2": lambda raw, target: F.mse_loss(raw, target, reduction="none"),
    "l1": lambda raw, target: F.l1_loss(raw, target, reduction="none"),
    "huber": lambda raw, target: F.huber_loss(raw, target, reduction="none"),
}


class DenoisingObjective(Objective):
    """The weighted denoising loss `w(t) * mean(distance(F, target))` for each sample.

    Args:
        times: distribution of the training times.
        weighting: weight on the raw output's error.
        distance: "l2", "l1" or "huber" (quadratic below an error of 1), on the raw output's scale.
    """

    trains = RegressionDenoiser

    def __init__(self, times: Times, weighting: Weighting, distance: str = "l2") -> None:
        super().__init__()
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
        if isinstance(weighting, LikelihoodWeighting) != isinstance(times, LogSNRTimes):
            raise ValueError("LikelihoodWeighting and LogSNRTimes must be used together")
        self.times, self.weighting, self.distance = times, weighting, DISTANCES[distance]

    def forward(self, model: RegressionDenoiser, batch: Mapping[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The loss of each sample.

        Args:
            model: the denoiser in training.
            batch: "x", the data (B, *S), and "serial"; all other entries condition the model.
            noise: the batch's random numbers.

        Returns:
            "loss" and "log_snr", each (B,).
        """
        self.check(model)
        x0 = batch["x"]
        t = self.times(model.schedule, noise.uniform(draw=TIME))
        eps = noise.normal(x0.shape[1:], draw=NOISE).to(x0.dtype)
        x_t = noised(model.schedule, x0, t, eps)
        prediction = model.predict(x_t, t, conditions(batch))
        target, c_out = model.target(x0, eps, t, prediction)
        error = self.distance(prediction.raw, target).flatten(1).mean(1)
        log_snr = model.schedule.log_snr(t)
        loss = self.weighting(model.schedule, float64(t), c_out**2).to(error.dtype) * error
        return {"loss": loss + self.further(model, x0, x_t, t, prediction).to(loss.dtype), "log_snr": log_snr}

    def check(self, model: nn.Module) -> None:
        super().check(model)
        assert isinstance(model, RegressionDenoiser)
        if model.variance == "learned":
            raise ValueError("this objective does not train the variance, but the denoiser has a learned one")
        self.times.check(model.schedule)
        self.weighting.check(model.schedule)

    def further(self, model: RegressionDenoiser, x0: Tensor, x_t: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
        """A further term of each sample's loss, (B,)."""
        return torch.zeros_like(t)


class HybridObjective(DenoisingObjective):
    """`L_simple + vlb_weight L_vlb`, where L_vlb trains only the variance: it treats the mean as a constant (Nichol &
    Dhariwal 2021, arXiv 2102.09672, eq. 16).

    L_vlb is in bits per dimension, as in their code, and estimated as T times the term of one step.

    Args:
        weighting: see `DenoisingObjective`.
        distance: see `DenoisingObjective`.
        vlb_weight: the paper's lambda.
        eight_bit: whether the data are pixels, see `diffusion.likelihood`.
    """

    def __init__(
        self, weighting: Weighting, distance: str = "l2", vlb_weight: float = 0.001, eight_bit: bool = True
    ) -> None:
        super().__init__(UniformTimes(), weighting, distance)
        check_positive(vlb_weight=vlb_weight)  # with weight 0 it would be a DenoisingObjective
        self.vlb_weight, self.eight_bit = vlb_weight, eight_bit

    def check(self, model: nn.Module) -> None:
        Objective.check(self, model)
        assert isinstance(model, RegressionDenoiser)
        if model.variance != "learned":
            raise ValueError(
                "a HybridObjective trains the variance beside the mean, and this denoiser has no learned variance"
            )
        noising_steps(model.schedule)
        self.weighting.check(model.schedule)

    def further(self, model: RegressionDenoiser, x0: Tensor, x_t: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
        steps = noising_steps(model.schedule)
        s = ((t * steps).round() - 1) / steps
        mean, log_var = model.step(x_t, t, s, prediction._replace(x0=prediction.x0.detach()))
        term = bound_term(model, x0, x_t, t, s, mean, log_var, self.eight_bit)
        return self.vlb_weight * steps * bits(term)


def _some_data_at_one(schedule: Schedule) -> None:
    if schedule.log_snr(torch.ones(())).isinf():
        raise ValueError(
            "this objective never trains t = 1 of a schedule with zero terminal SNR, where sampling begins"
        )
