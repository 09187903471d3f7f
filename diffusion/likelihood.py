"""How likely data are under a model: the variational bound term by term, and the probability-flow ODE's density.

All values are in nats per dimension; `bits` converts them. A likelihood is that of the model as it was trained, so D is
never clipped here.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.denoisers import ClippedDenoiser, Denoiser
from diffusion.forward import noised, posterior
from diffusion.noise import Noise
from diffusion.ode import Parts, denoised, level, radius, solve, stretch, velocity
from diffusion.schedules import Schedule, expand, float64

# Pixels are 2 / 255 apart in [-1, 1].
HALF_BIN = 1 / 255
EDGE = 0.999
# The ODE's draws; a bound's noise is draw 0 of step i.
DEQUANTISE, PROBE = 0, 1


def bits(nats: Tensor) -> Tensor:
    """Bits from nats."""
    return nats / math.log(2)


def gaussian_kl(mean: Tensor, log_var: Tensor, other_mean: Tensor, other_log_var: Tensor) -> Tensor:
    """`KL(N(mean, e^log_var) || N(other_mean, e^other_log_var))` of each element."""
    ratio = log_var - other_log_var
    return 0.5 * (torch.expm1(ratio) - ratio + (mean - other_mean) ** 2 * torch.exp(-other_log_var))


def gaussian_nll(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """`-log N(x0; mean, e^log_var)` of each element."""
    return 0.5 * (math.log(2 * math.pi) + log_var + (x0 - mean) ** 2 * torch.exp(-log_var))


def discretised_nll(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Minus the log-probability of an 8-bit value under a Gaussian (Ho et al. 2020, arXiv 2006.11239, eq. 13).

    A value owns the bin of 1/255 to either side of it; the first and last bins are open.
    """
    std = torch.exp(log_var / 2)
    low, high = (x0 - HALF_BIN - mean) / std, (x0 + HALF_BIN - mean) / std
    # Both ends mirrored into the lower tail, where log Phi keeps its digits however far out the bin is.
    mirrored = low + high > 0
    outer = torch.special.log_ndtr(torch.where(mirrored, -high, low))
    inner = torch.special.log_ndtr(torch.where(mirrored, -low, high))
    within = inner + torch.log(-torch.expm1(outer - inner))
    first, last = torch.special.log_ndtr(high), torch.special.log_ndtr(-low)
    return -torch.where(x0 < -EDGE, first, torch.where(x0 > EDGE, last, within))


def bound_term(
    denoiser: Denoiser,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    mean: Tensor,
    log_var: Tensor,
    eight_bit: bool,
) -> Tensor:
    """The term of the bound that belongs to the step from t to s, at one x_t: (B,) in nats per dimension.

    `KL(q(x_s | x_t, x0) || N(mean, e^log_var))`, and to s = 0 the decoder's `-log p(x0 | x_t)`: discretised for 8-bit
    data, else a density. The density of a model whose variance is beta-tilde has beta there, which is right for
    continuous data: beta-tilde of the last step is zero, and what stands in for it is made for pixels.

    Args:
        denoiser: tells the schedule and which variance it has.
        x0: (B, *S), the data.
        x_t: drawn from `q(x_t | x0)`.
        t: () or (B,).
        s: the same shape, below t.
        mean: of the model's step.
        log_var: of the model's step, broadcasting against x_t.
        eight_bit: whether the data are pixels.
    """
    schedule = denoiser.schedule
    x0, x_t, mean = float64(x0), float64(x_t), float64(mean)
    log_var = float64(log_var).to(mean.device).expand_as(mean)
    # At s = 0 the posterior is a point, and not used; any s below t does in its place.
    inside = torch.where(s > 0, s, t / 2)
    true_mean, true_var = posterior(schedule, x_t, x0, t, inside)
    kl = gaussian_kl(true_mean, expand(true_var.log(), x_t), mean, log_var)
    if eight_bit:
        decoder = discretised_nll(x0, mean, log_var)
    else:
        sigma = schedule(t)[1]
        log_beta = expand(2 * sigma.log(), x_t).to(mean.device).expand_as(mean)
        decoder = gaussian_nll(x0, mean, log_beta if denoiser.variance == "beta_tilde" else log_var)
    return torch.where(expand(s > 0, x_t), kl, decoder).flatten(1).mean(1)


def prior_term(schedule: Schedule, x0: Tensor) -> Tensor:
    """`KL(q(x_1 | x0) || N(0, sigma_1^2))`, where sampling begins from the second: (B,) in nats per dimension."""
    alpha, sigma = schedule(torch.ones((), dtype=float64(x0).dtype, device=x0.device))
    return 0.5 * ((alpha / sigma * float64(x0)) ** 2).flatten(1).mean(1)


@torch.no_grad()
def variational_bound(denoiser: Denoiser, x0: Tensor, times: Tensor, noise: Noise, eight_bit: bool) -> Tensor:
    """The bound on `-log p(x0)`, term by term (Ho et al. 2020, eq. 5): (B, len(times)) in nats per dimension.

    Column 0 is L_T, column k the step from times[k - 1] to times[k], the last one L_0; a row's sum is the bound.
    Each term has its own noise, which depends only on the sample's number and the term.

    Args:
        denoiser: not a clipped one; `Conditioned` for a conditional one.
        x0: (B, *S).
        times: falling from 1 to 0: all of a discrete schedule's for the model as it was trained.
        noise: the batch's random numbers.
        eight_bit: whether x0 are pixels (a probability) or continuous (a density).
    """
    _check_unclipped(denoiser)
    denoiser.check_times(times)
    terms = [prior_term(denoiser.schedule, x0)]
    for step, (t, s) in enumerate(zip(times[:-1].to(x0.device), times[1:].to(x0.device), strict=True), start=1):
        x_t = noised(denoiser.schedule, x0, t, noise.normal(x0.shape[1:], step=step))
        mean, log_var, _ = denoiser.transition(x_t, t, s)
        terms.append(bound_term(denoiser, x0, x_t, t, s, mean, log_var, eight_bit))
    return torch.stack(terms, dim=1)


def dequantised(x0: Tensor, noise: Noise) -> Tensor:
    """Pixels spread evenly over their bins, whose width is 1/127.5."""
    return x0 + (noise.uniform(x0.shape[1:], draw=DEQUANTISE).to(x0) - 0.5) / 127.5


def ode_log_density(
    denoiser: Denoiser,
    x: Tensor,
    noise: Noise | None = None,
    steps: int | None = None,
    probes: int = 1,
    probe: str = "rademacher",
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor]:
    """log p_{t_min}(x) by the probability-flow ODE (Song et al. 2021, arXiv 2011.13456, eq. 39), but for its end.

    With z and k as in `diffusion.ode`, `log p(z)` falls along the ODE by the integral of its divergence
    `d / c^2 - tr(dD/dz) / c`. It is solved by the classical Runge-Kutta method in even steps of k, or adaptively.

    Args:
        denoiser: not a clipped one; `Conditioned` for a conditional one.
        x: (B, *S) at t_min, the data themselves; float64 gives a float64 solution.
        noise: the batch's random numbers, for the probes.
        steps: of the solver, each of four calls of the denoiser; None is 100, unless there is a tolerance.
        probes: vectors v in Hutchinson's estimate `v^T (dD/dz) v` of the trace, the same all along the path.
        probe: "rademacher", "gaussian", or "exact": the trace itself, at the price of a derivative a dimension.
        tolerance: of an adaptive step, relative and absolute, in z and in nats per dimension, see `solve`.

    Returns:
        x_1 (B, *S), and what is to be added to log p_1(x_1) to give log p_{t_min}(x), in nats, (B,).

    Raises:
        ValueError: steps and a tolerance, bad probes, a clipped denoiser.
    """
    check_ode(denoiser)
    if steps is not None and tolerance is not None:
        raise ValueError(f"tolerance={tolerance} chooses the solver's steps: leave out steps={steps}, or the tolerance")
    schedule, size = denoiser.schedule, x[0].numel()
    vectors = _probes(x, noise, probes, probe)

    def slope(k: Tensor, state: Parts) -> Parts:
        """dz/dk, and the divergence of it per dimension."""
        with torch.enable_grad():
            z = state[0].detach().to(x).requires_grad_()
            x0 = denoised(denoiser, z, k)
            trace = z.new_zeros(len(z))
            for v in vectors:
                (product,) = torch.autograd.grad(x0, z, v, retain_graph=True)
                trace += (product * v).flatten(1).sum(1)
        c = stretch(k).to(z)
        return velocity(z, x0, k).detach(), 1 / c**2 - trace / (probes * size * c)

    ends = torch.tensor([schedule.t_min, 1.0], dtype=torch.float64)
    (begin, end), (r_begin, r_end) = level(schedule, ends), radius(schedule, ends)
    z, divergence = x / r_begin.to(x), x.new_zeros(len(x))
    if tolerance is not None:
        z, divergence = solve(slope, (z, divergence), begin, end, tolerance, tolerance)
    else:
        z, divergence = _runge_kutta(slope, (z, divergence), begin, end, 100 if steps is None else steps)
    # Densities of x and of z = x / r differ by r^d, at either end.
    return z * r_end.to(x), size * (divergence + (r_end / r_begin).log().to(x))


def _runge_kutta(
    slope: Callable[[Tensor, Parts], Parts], state: Parts, begin: Tensor, end: Tensor, steps: int
) -> Parts:
    """The state at the end by the classical method of order 4 in even steps."""
    h = (end - begin) / steps

    def moved(by: Tensor, slopes: Parts) -> Parts:
        return tuple(part + by.to(part) * d for part, d in zip(state, slopes, strict=True))

    for k in torch.lerp(begin, end, torch.linspace(0, 1, steps + 1, dtype=begin.dtype))[:-1]:
        first = slope(k, state)
        second = slope(k + h / 2, moved(h / 2, first))
        third = slope(k + h / 2, moved(h / 2, second))
        fourth = slope(k + h, moved(h, third))
        state = moved(
            h / 6, tuple(a + 2 * b + 2 * c + d for a, b, c, d in zip(first, second, third, fourth, strict=True))
        )
    return state


def prior_log_density(schedule: Schedule, x: Tensor) -> Tensor:
    """log N(x; 0, sigma_1^2), where sampling begins, in nats, (B,)."""
    _, sigma = schedule(torch.ones((), dtype=float64(x).dtype, device=x.device))
    return -gaussian_nll(float64(x), torch.zeros_like(x), 2 * sigma.log()).flatten(1).sum(1)


def ode_nll(log_density: Tensor, size: int, eight_bit: bool) -> Tensor:
    """Nats per dimension from a log-density in nats; for dequantised pixels with the width of their bins, 1/127.5."""
    return -log_density / size + (math.log(127.5) if eight_bit else 0.0)


def _probes(x: Tensor, noise: Noise | None, probes: int, probe: str) -> list[Tensor]:
    """The vectors whose quadratic forms make the trace, each shaped like x."""
    if probe not in ("rademacher", "gaussian", "exact"):
        raise ValueError(f"probe must be rademacher, gaussian or exact, got {probe!r}")
    if probes < 1 or (probe == "exact" and probes != 1):
        raise ValueError(f"probes must be at least 1, and 1 with probe=exact, got {probes}")
    if probe == "exact":
        basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).reshape(-1, 1, *x.shape[1:])
        return list(basis.expand(-1, *x.shape))
    if noise is None:
        raise ValueError(f"probe={probe} needs noise=")
    if probe == "gaussian":
        return [noise.normal(x.shape[1:], draw=PROBE + i).to(x) for i in range(probes)]
    return [(2 * (noise.uniform(x.shape[1:], draw=PROBE + i) > 0.5) - 1).to(x) for i in range(probes)]


def check_ode(denoiser: Denoiser) -> None:
    """Raises ValueError if a model has no density by the ODE."""
    _check_unclipped(denoiser)
    ends = torch.tensor([1.0, denoiser.schedule.t_min], dtype=torch.float64)
    if not denoiser.schedule.log_snr(ends).isfinite().all():
        raise ValueError("the ODE cannot go to t = 1 on a schedule with zero terminal SNR, where alpha is 0")
    denoiser.check_times(torch.linspace(1, denoiser.schedule.t_min, 50, dtype=torch.float64))


def _check_unclipped(denoiser: Denoiser) -> None:
    if isinstance(denoiser, ClippedDenoiser):
        raise ValueError("a likelihood needs the model without clipping: give the denoiser inside the ClippedDenoiser")
