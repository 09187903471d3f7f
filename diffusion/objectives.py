"""Objectives: which noise levels a denoiser is trained at, how errors there are weighed, and by which distance.

The loss is taken on the network's raw output F against the target that would make D exact. With a squared error a
weight w on `||x0 - D||^2` is the weight `w c_out^2` on `||target - F||^2`, so every classical loss is one of these.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.denoisers import NetworkDenoiser
from diffusion.noise import Noise
from diffusion.schedules import Schedule, expand, float64

# Which of a sample's draws is for what: a run keeps its numbers when a new use is added at the end.
TIME, NOISE = 0, 1


class Times(ABC):
    """A distribution of training times."""

    @abstractmethod
    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        """Maps u, (B,) uniform in (0, 1), to t, (B,) in [t_min, 1]; on a discrete schedule t = i / T."""


class UniformTimes(Times):
    """i uniform on 1..T (Ho et al. 2020, algorithm 1), or t uniform on [t_min, 1] when time is continuous."""

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        if schedule.timesteps is None:
            return schedule.t_min + (1 - schedule.t_min) * u
        return (u * schedule.timesteps).ceil().clamp(1, schedule.timesteps) / schedule.timesteps


class LognormalTimes(Times):
    """`ln(sigma_t / alpha_t) ~ N(p_mean, p_std^2)` (Karras et al. 2022, arXiv 2206.00364, table 1).

    Levels outside the schedule's range become its ends; a discrete schedule takes the nearest step.
    """

    def __init__(self, p_mean: float = -1.2, p_std: float = 1.2) -> None:
        if p_std <= 0:
            raise ValueError(f"p_std must be positive, got {p_std}")
        self.p_mean, self.p_std = p_mean, p_std

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        # MPS has no ndtri.
        quantile = torch.special.ndtri(u.cpu()).to(u) if u.device.type == "mps" else torch.special.ndtri(u)
        t = schedule.inverse(-2 * (self.p_mean + self.p_std * quantile))
        if schedule.timesteps is None:
            return t
        return (t * schedule.timesteps).round().clamp(1, schedule.timesteps) / schedule.timesteps


class Weighting(ABC):
    """The weight on the raw output's error, from log_snr (B,) and c_out^2 (B,)."""

    @abstractmethod
    def __call__(self, log_snr: Tensor, c_out2: Tensor) -> Tensor: ...


class SimpleWeighting(Weighting):
    """One on the raw output: L_simple for eps (Ho et al. 2020, eq. 14), EDM's weighting for EDM."""

    def __call__(self, log_snr: Tensor, c_out2: Tensor) -> Tensor:
        return torch.ones_like(log_snr)


class MinSNRWeighting(Weighting):
    """`min(SNR, gamma)` on `||x0 - D||^2` (Hang et al. 2023, arXiv 2303.09556, eq. 7).

    On the raw output this is min(SNR, gamma) / SNR for eps, min(SNR, gamma) for x0 and min(SNR, gamma) / (SNR + 1) for
    v.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        if gamma <= 0:
            raise ValueError(f"gamma must be positive, got {gamma}")
        self.gamma = gamma

    def __call__(self, log_snr: Tensor, c_out2: Tensor) -> Tensor:
        return log_snr.exp().clamp(max=self.gamma) * c_out2


DISTANCES = {
    "l2": lambda raw, target: F.mse_loss(raw, target, reduction="none"),
    "l1": lambda raw, target: F.l1_loss(raw, target, reduction="none"),
    "huber": lambda raw, target: F.huber_loss(raw, target, reduction="none"),
}


class DenoisingObjective:
    """The weighted denoising loss `w(t) * mean(distance(F, target))` for each sample.

    Args:
        times: distribution of the training times.
        weighting: weight on the raw output's error.
        distance: "l2", "l1" or "huber" (quadratic below an error of 1), on the raw output's scale.
    """

    def __init__(self, times: Times, weighting: Weighting, distance: str = "l2") -> None:
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
        self.times, self.weighting, self.distance = times, weighting, DISTANCES[distance]

    def __call__(self, model: NetworkDenoiser, batch: Mapping[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The loss of each sample.

        Args:
            model: the denoiser in training.
            batch: "x", the data (B, *S); all but "serial" of the rest conditions the model.
            noise: the batch's random numbers.

        Returns:
            "loss" and "log_snr", each (B,).
        """
        x0 = batch["x"]
        t = self.times(model.schedule, noise.uniform(draw=TIME))
        eps = noise.normal(x0.shape[1:], draw=NOISE).to(x0.dtype)
        alpha_t, sigma_t = model.schedule(float64(t))
        c_skip, c_out, _ = model.precond(alpha_t, sigma_t)
        # F = (x0 - c_skip x_t) / c_out with x_t written out: free of cancellation where sigma_t is small.
        on_x0, on_eps = (1 - c_skip * alpha_t) / c_out, -c_skip * sigma_t / c_out

        def scaled(coefficient: Tensor, x: Tensor) -> Tensor:
            return expand(coefficient.to(x.dtype), x) * x

        x_t = scaled(alpha_t, x0) + scaled(sigma_t, eps)
        target = scaled(on_x0, x0) + scaled(on_eps, eps)
        cond = {name: value for name, value in batch.items() if name not in ("x", "serial")}
        raw = model.predict(x_t, t, cond)[1]["raw"]
        error = self.distance(raw, target).flatten(1).mean(1)
        log_snr = model.schedule.log_snr(t)
        return {"loss": self.weighting(log_snr, c_out**2).to(error.dtype) * error, "log_snr": log_snr}
