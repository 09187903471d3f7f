"""Sampling from a consistency model: each call gives a sample, and added noise starts the next call."""

from torch import Tensor

from diffusion.denoisers import Denoiser
from diffusion.samplers.base import Draw, Evaluation, History, Sampler


class ConsistencySampler(Sampler):
    """Multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1).

    `x_s = alpha_s f(x_t, t) + sigma_s z` with fresh noise z. If f is where the ODE through x_t ends, x_s has the exact
    distribution at s, so samples are exact in any number of calls. With a network, a second call corrects errors of
    the first.
    """

    order = 0  # the error is the model's, and no number of steps removes it
    stochastic = True
    from_pure_noise = True
    flow_map = True

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        alpha_s, sigma_s = denoiser.schedule(s)
        x0 = denoiser(x_t, t)
        return alpha_s * x0 + sigma_s * draw(), (Evaluation(t, x_t, x0),)
