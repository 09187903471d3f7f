"""One-step samplers, which use no earlier steps: DDPM, DDIM and Heun."""

import torch
from torch import Tensor

from diffusion.denoisers import Denoiser
from diffusion.forward import eps_from
from diffusion.samplers.base import Draw, Evaluation, History, Sampler


class DDPMSampler(Sampler):
    """Ancestral sampling from the model's own `p(x_s | x_t)` (Ho et al. 2020, arXiv 2006.11239, algorithm 2)."""

    order = 1
    stochastic = True
    from_pure_noise = True
    by_transition = True

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        mean, log_var, x0 = denoiser.transition(x_t, t, s)
        return mean + (log_var / 2).exp() * draw(), (Evaluation(t, x_t, x0),)


class DDIMSampler(Sampler):
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16): deterministic at eta = 0, DDPM's posterior at eta = 1.

    Args:
        eta: scales the noise of each step, in [0, 1].
    """

    order = 1
    from_pure_noise = True

    def __init__(self, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {eta}")
        self.eta = eta
        self.stochastic = eta > 0

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.schedule(t), denoiser.schedule(s)
        x0 = denoiser(x_t, t)
        eps = eps_from(denoiser.schedule, x_t, t, x0)
        known = (Evaluation(t, x_t, x0),)
        if not self.stochastic:
            return alpha_s * x0 + sigma_s * eps, known
        std = self.eta * sigma_s / sigma_t * (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2).sqrt()
        return alpha_s * x0 + (sigma_s**2 - std**2).sqrt() * eps + std * draw(), known


class HeunSampler(Sampler):
    """Heun's method on the probability-flow ODE in sigma / alpha (Karras et al. 2022, arXiv 2206.00364, algorithm
    1).

    With h the step in lambda, a step that is too long for the slope to be nearly linear (see `_bends`) takes the mean
    of both D instead of the mean of both slopes: `x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) (D_t + D_s) / 2`.
    That is the corrector of UniPC with one evaluation in the past (Zhao et al. 2023, arXiv 2302.04867, algorithm 1). It
    is of second order too, and its D stays between D_t and D_s for a step of any length.
    """

    order = 2
    calls = 2

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.schedule(t), denoiser.schedule(s)
        step = sigma_s / alpha_s - sigma_t / alpha_t
        x0 = denoiser(x_t, t)
        eps = eps_from(denoiser.schedule, x_t, t, x0)
        known = (Evaluation(t, x_t, x0),)
        x_s = alpha_s * (x_t / alpha_t + step * eps)
        x0_s = denoiser(x_s, s)
        h = (denoiser.schedule.log_snr(s) - denoiser.schedule.log_snr(t)) / 2
        if _bends(h, sigma_s / alpha_s):
            return sigma_s / sigma_t * x_t - alpha_s * torch.expm1(-h) * (x0 + x0_s) / 2, known
        eps_s = eps_from(denoiser.schedule, x_s, s, x0_s)
        return alpha_s * (x_t / alpha_t + step * (eps + eps_s) / 2), known


def _bends(h: Tensor, ratio: Tensor) -> bool:
    """Whether the slope eps bends over a step of h in lambda that ends at sigma / alpha = ratio.

    On data of variance v the mean of the two slopes multiplies a state by `v e^h / (2 (v + ratio^2))` too much, if h is
    large. Steps up to h = 1 are Heun's, and longer ones if they end so far above data of unit variance that this is at
    most 1 %. Both bounds are measured: with them the error of an exact Gaussian's moments is at most DDIM's on every
    grid and schedule of this project, from 3 steps on.
    """
    return bool((h > 1) & (h.exp() > 0.02 * (1 + ratio**2)))
