"""What the tests of samplers measure with: the exact solution of one Gaussian, orders, and exact propagation."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.denoisers import Denoiser, GaussianMixtureDenoiser
from diffusion.samplers import (
    DDIMSampler,
    DPMSolverPP2MSampler,
    DPMSolverPP3MSampler,
    Draw,
    Evaluation,
    HeunSampler,
    History,
    IPNDMSampler,
    Sampler,
    UniPCSampler,
)
from diffusion.schedules import Schedule

# Each deterministic sampler, and the variable of which its order is that with even steps.
DETERMINISTIC: dict[str, tuple[Sampler, str]] = {
    "ddim": (DDIMSampler(), "ratio"),
    "heun": (HeunSampler(), "ratio"),
    "dpmpp_2m": (DPMSolverPP2MSampler(), "lambda"),
    "dpmpp_3m": (DPMSolverPP3MSampler(), "lambda"),
    "unipc": (UniPCSampler(), "lambda"),
    "ipndm": (IPNDMSampler(), "ratio"),
}
COUNTS = (64, 96, 128, 192, 256)
WEAK_COUNTS = (12, 16, 24, 32, 48)  # each step is probed several times


def solution(denoiser: GaussianMixtureDenoiser, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The probability-flow ODE of one Gaussian: along each eigenvector the state keeps its number of deviations."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.schedule(t), denoiser.schedule(s)
    basis, spread, m = denoiser.eigenvectors[0], denoiser.eigenvalues[0], denoiser.means[0]
    growth = ((alpha_s**2 * spread + sigma_s**2) / (alpha_t**2 * spread + sigma_t**2)).sqrt()
    return alpha_s * m + ((x_t - alpha_t * m) @ basis * growth) @ basis.T


def marginal(denoiser: GaussianMixtureDenoiser, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x_t for the data of one Gaussian in the plane."""
    alpha, sigma = denoiser.schedule(t)
    basis, spread = denoiser.eigenvectors[0], denoiser.eigenvalues[0]
    return alpha * denoiser.means[0], basis @ torch.diag(alpha**2 * spread + sigma**2) @ basis.T


def interior(schedule: Schedule, variable: str, steps: int, before: int) -> Tensor:
    """Even steps in lambda, in sigma / alpha ("ratio") or in t from a log-SNR of -2 to one of 3, and some before."""
    ends = torch.tensor([-2.0, 3.0], dtype=torch.float64)
    i = torch.arange(-before, steps + 1, dtype=torch.float64) / steps
    if variable == "lambda":
        return schedule.inverse(torch.lerp(ends[0], ends[1], i))
    if variable == "ratio":
        low, high = (-ends / 2).exp()
        return schedule.inverse(-2 * torch.lerp(low, high, i).log())
    first, last = schedule.inverse(ends)
    return torch.lerp(first, last, i)


def slope(counts: Sequence[int], errors: Sequence[float]) -> float:
    """Minus the slope of log error over log steps."""
    log_n, log_error = torch.tensor(counts).double().log(), torch.tensor(errors).double().log()
    centred = log_n - log_n.mean()
    return -((centred * log_error).sum() / (centred**2).sum()).item()


def order(sampler: Sampler, denoiser: GaussianMixtureDenoiser, variable: str) -> float:
    """The measured order inside the schedule, with even steps in the solver's own variable.

    A multistep solver starts from exact evaluations at the three times before the interval.
    """
    x_start, errors = torch.tensor([[0.9, -1.4]], dtype=torch.float64), []
    for n in COUNTS:
        times = interior(denoiser.schedule, variable, n, before=3)
        past = [(t, solution(denoiser, x_start, times[3], t)) for t in times[:3].flip(0)]
        history: History = tuple(Evaluation(t, x, denoiser(x, t)) for t, x in past)
        x = x_start
        for t, s in pairwise(times[3:]):
            x, history = sampler.step(denoiser, x, t, s, history, lambda: torch.zeros_like(x_start))
        errors.append((x - solution(denoiser, x_start, times[3], times[-1])).norm().item())
    return slope(COUNTS, errors)


def affine(step: Callable[[Tensor, Draw], Tensor], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A (d, d), b (d,) and Q (d, d) of a step `z' = A z + b + N(0, Q)` of d numbers, found by probing it.

    The step draws vectors of the plane; that it is affine in the state and in each draw is checked.
    """
    probes = torch.cat((torch.zeros(1, size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)))
    drawn: list[Tensor] = []

    def drawing(which: int, z: Tensor) -> Draw:
        """Zeros, but for draw number `which`, which is z."""

        def draw() -> Tensor:
            drawn.append(z)
            return z if len(drawn) == which + 1 else torch.zeros_like(z)

        drawn.clear()
        return draw

    images = step(probes, drawing(-1, torch.zeros(2, dtype=torch.float64)))
    b, draws = images[0], len(drawn)
    q = torch.zeros(size, size, dtype=torch.float64)
    for k in range(draws):
        for direction in torch.eye(2, dtype=torch.float64):
            moved = step(probes, drawing(k, direction)) - images
            torch.testing.assert_close(moved, moved[:1].expand_as(moved), rtol=1e-8, atol=1e-11)
            q = q + torch.outer(moved[0], moved[0])
    return (images[1:] - b).T, b, q


def _paired(
    sampler: Sampler, denoiser: Denoiser, before: Tensor | None, t: Tensor, s: Tensor
) -> Callable[[Tensor, Draw], Tensor]:
    """The step (x_t, x_before) -> (x_s, x_t): two-step methods are affine in both."""

    def step(z: Tensor, draw: Draw) -> Tensor:
        x_t, x_before = z[:, :2], z[:, 2:]
        history = () if before is None else (Evaluation(before, x_before, denoiser(x_before, before)),)
        return torch.cat((sampler.step(denoiser, x_t, t, s, history, draw)[0], x_t), 1)

    return step


def propagate(
    sampler: Sampler, denoiser: Denoiser, mean: Tensor, cov: Tensor, times: Tensor, before: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The exact mean and covariance of x at each time after the first.

    Args:
        sampler: at most a two-step method.
        denoiser: affine in x_t.
        mean: of x at the first time, (2,); with `before` of (x, x_before), (4,).
        cov: likewise.
        times: falling.
        before: the time before the first, for a two-step method that has begun there.
    """
    if before is None:
        mean, cov = mean.repeat(2), cov.repeat(2, 2)
    for t, s in pairwise(times):
        a, b, q = affine(_paired(sampler, denoiser, before, t, s), 4)
        mean, cov, before = a @ mean + b, a @ cov @ a.T + q, t
        yield mean[:2], cov[:2, :2]


def weak_order(at: Callable[[int], Sampler], denoiser: GaussianMixtureDenoiser, variable: str) -> float:
    """The measured order of mean and covariance, begun exactly: `at(n)` is the sampler for n steps."""
    errors = []
    for n in WEAK_COUNTS:
        times = interior(denoiser.schedule, variable, n, before=1)
        (mean, cov), (mean_before, cov_before) = marginal(denoiser, times[1]), marginal(denoiser, times[0])
        cross = denoiser.schedule(times[0])[0] / denoiser.schedule(times[1])[0] * cov  # x_before = r x_t + noise
        joint = torch.cat((torch.cat((cov, cross.T), 1), torch.cat((cross, cov_before), 1)))
        *_, last = propagate(at(n), denoiser, torch.cat((mean, mean_before)), joint, times[1:], times[0])
        expected = marginal(denoiser, times[-1])
        errors.append(sum((x - y).norm().item() for x, y in zip(last, expected, strict=True)))
    return slope(WEAK_COUNTS, errors)


def states_at(schedule: Schedule, times: Tensor, rows: int = 9) -> Tensor:
    """States (rows, 2) of about the size that they have at these times."""
    alpha, sigma = schedule(times)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return (alpha**2 + sigma**2).sqrt().expand(rows)[:, None] * noise
