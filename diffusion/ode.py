"""The probability-flow ODE in variables that are well scaled at both ends, and its adaptive solver.

In `k = log(sigma_t / alpha_t)` and `z = x_t / r_t` with `r_t = (alpha_t^2 + sigma_t^2)^(1/2)`, the ODE of Song et al.
2021 (arXiv 2011.13456, eq. 13) is `dz/dk = (z / c - D) / c` with `c^2 = 1 + e^2k`, whatever the schedule.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torchdiffeq import odeint

from diffusion.denoisers import Denoiser
from diffusion.schedules import Schedule, beside, float64

Parts = tuple[Tensor, ...]


def level(schedule: Schedule, t: Tensor) -> Tensor:
    """k, shaped like t: rises with noise, and with t."""
    return -schedule.log_snr(t) / 2


def radius(schedule: Schedule, t: Tensor) -> Tensor:
    """r_t, shaped like t."""
    return torch.hypot(*schedule(t))


def stretch(k: Tensor) -> Tensor:
    """c, shaped like k."""
    return (1 + (2 * k).exp()).sqrt()


def denoised(denoiser: Denoiser, z: Tensor, k: Tensor) -> Tensor:
    """D at the state z (B, *S), k being () and within the schedule's range."""
    t = beside(denoiser.schedule.inverse(-2 * k), z)
    return denoiser(radius(denoiser.schedule, t).to(z) * z, t)


def velocity(z: Tensor, x0: Tensor, k: Tensor) -> Tensor:
    """dz/dk where the denoiser's answer is x0."""
    c = stretch(k).to(z)
    return (z / c - x0) / c


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Meanwhile convolutions of float32 on a GPU are of float32; by torch's default they round to the ten bits of TF32,
    which solvers of small tolerances take for the shape of the function."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def solve(
    slope: Callable[[Tensor, Parts], Parts], start: Parts, begin: Tensor, end: Tensor, rtol: float, atol: float
) -> Parts:
    """The state at k = end of `d state / dk = slope(k, state)`, by Dormand and Prince's method of order 5.

    A step is taken if in every sample, and in each part of it, the root mean square over its elements of
    `error / (atol + rtol |state|)` is at most one. So each sample's error is controlled, and a bad one is not hidden by
    a good batch; but the steps are the batch's, so that digits of a sample below the tolerance depend on what it is
    solved with.

    Args:
        slope: gives a derivative for each part; k is () on the state's device.
        start: the parts of the state at begin, each (B, ...); float64 on the way, where the device has it.
        begin: k, ().
        end: k, (), below or above it.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.

    Raises:
        ValueError: no step is short enough.
    """

    def worst(errors: Parts) -> Tensor:
        return torch.stack([error.reshape(len(error), -1).square().mean(1).max() for error in errors]).max().sqrt()

    wide = tuple(float64(part) for part in start)
    times = torch.stack((begin, end)).to(wide[0])
    # Without step_t the solver would look beyond the end, where there may be no noise level, and interpolate.
    options = {"norm": worst, "step_t": times[1:], "dtype": wide[0].dtype}
    try:
        with exact_convolutions():
            found = odeint(slope, wide, times, rtol=rtol, atol=atol, method="dopri5", options=options)
    except AssertionError as error:
        # The library's words for steps that vanish, as they do on answers that are not numbers.
        if not str(error).startswith(("underflow in dt", "non-finite values in state")):
            raise
        raise ValueError(
            f"the adaptive solver found no step within rtol={rtol:g} and atol={atol:g}: the model's answers are not "
            "finite, or too rough; raise the tolerance or take fixed steps"
        ) from error
    return tuple(part[-1].to(before) for part, before in zip(found, start, strict=True))
