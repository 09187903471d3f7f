"""A sampler that chooses the length of its steps by a tolerance."""

from torch import Tensor

from diffusion.denoisers import Denoiser
from diffusion.ode import Parts, denoised, level, radius, solve, velocity
from diffusion.samplers.base import Draw, Evaluation, History, Sampler

# Steps of the grid; each costs nine calls or more, and fixed steps of order 2 are exact enough with fewer calls.
MOST_STEPS = 50


class AdaptiveSampler(Sampler):
    """The probability-flow ODE by Dormand and Prince's adaptive method (Song et al. 2021, arXiv 2011.13456, section
    4.3).

    For a step of the grid, from t to s, the solver takes as many steps of its own as the tolerance needs, each of six
    calls, and three calls to begin. So the grid only decides which states are yielded and where the last step to D
    begins. It should have few steps and end at t_min, like five steps of a `LogSNRGrid`; `trailing` ends far from it.
    `diffusion.ode.solve` says how the error of each sample is controlled.

    Args:
        rtol: relative tolerance of a solver's step. The default is the paper's, at which an image is the same to 1/255
            in any batch.
        atol: absolute tolerance, for data of about size one; below 1e-6 it follows a float32 network's rounding errors.
    """

    order = 5
    calls = 0
    off_grid = True

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5) -> None:
        for name, value in {"rtol": rtol, "atol": atol}.items():
            if not 1e-12 <= value <= 0.1:
                raise ValueError(f"{name} must be from 1e-12 to 0.1, got {value}")
        self.rtol, self.atol = rtol, atol

    def check(self, denoiser: Denoiser, times: Tensor) -> None:
        super().check(denoiser, times)
        if len(times) - 1 > MOST_STEPS:
            raise ValueError(
                f"the adaptive sampler starts its solver anew at each of the grid's {len(times) - 1} times, and "
                f"{MOST_STEPS} are the most; steps=5 is usual"
            )

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        schedule = denoiser.schedule

        def slope(k: Tensor, state: Parts) -> Parts:
            (z,) = state
            return (velocity(z, denoised(denoiser, z.to(x_t), k).to(z), k),)

        z = x_t / radius(schedule, t).to(x_t)
        (z_s,) = solve(slope, (z,), level(schedule, t), level(schedule, s), self.rtol, self.atol)
        return z_s * radius(schedule, s).to(x_t), (Evaluation(t, x_t, denoiser(x_t, t)),)
