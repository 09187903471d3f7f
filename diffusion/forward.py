"""The forward process q, from data to noise: its states, its steps, and its posterior given x0.

`x_t = alpha_t x0 + sigma_t eps` with `eps ~ N(0, I)`, and for s < t

    q(x_t | x_s)     = N(r x_s, beta I)                  r = alpha_t / alpha_s,  beta = sigma_t^2 - r^2 sigma_s^2
    q(x_s | x_t, x0) = N(mean, beta_tilde I)             beta_tilde = beta sigma_s^2 / sigma_t^2

Given x_t, each of x0, eps and the score determines the others: `eps = (x_t - alpha_t x0) / sigma_t` and
`score = -eps / sigma_t`.
"""

import torch
from torch import Tensor

from diffusion.noise import Noise
from diffusion.schedules import Schedule, expand, float64


def noised(schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t from `q(x_t | x0)` with the noise eps: `alpha_t x0 + sigma_t eps`, in x0's dtype.

    Args:
        schedule: alpha and sigma.
        x0: (B, *S).
        t: () or (B,).
        eps: shaped like x0.
    """
    alpha_t, sigma_t = (expand(c.to(x0), x0) for c in schedule(float64(t)))
    return alpha_t * x0 + sigma_t * eps.to(x0)


def trajectory(schedule: Schedule, x0: Tensor, times: Tensor, noise: Noise) -> Tensor:
    """The states x_t of data at several times, with one eps for each sample: (len(times), n, *S).

    Each cloud is a draw from `q(x_t)`; with the same eps at all times samples move along smooth curves.

    Args:
        schedule: of the model.
        x0: (n, *S), data.
        times: in any order, 0 being the data themselves.
        noise: of the n samples.
    """
    eps = noise.normal(x0.shape[1:]).to(x0)
    return torch.stack([noised(schedule, x0, t, eps) for t in times])


def renoised(schedule: Schedule, x_s: Tensor, s: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t from `q(x_t | x_s)`, s < t, with the noise eps: `r x_s + beta^(1/2) eps`."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    ratio = alpha_t / alpha_s
    return ratio * x_s + (sigma_t**2 - (ratio * sigma_s) ** 2).sqrt() * eps


def at_equal_log_snr(schedule: Schedule, other: Schedule, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The same state on another schedule: x_u, `alpha_u / alpha_t` times x_t, and u, where the log-SNR is that of t.

    u is shaped like t and clamped to the range of the other schedule; where it is clamped, the log-SNR is another one.
    """
    u = other.inverse(schedule.log_snr(float64(t)))
    return expand((other(u)[0] / schedule(float64(t))[0]).to(x_t), x_t) * x_t, u


def posterior(schedule: Schedule, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of `q(x_s | x_t, x0)`, s < t (Ho et al. 2020, arXiv 2006.11239, eq. 7).

    For any alpha and sigma the mean is `(r sigma_s^2 x_t + alpha_s beta x0) / sigma_t^2`; the variance is beta_tilde,
    shaped like t.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    ratio = alpha_t / alpha_s
    added = sigma_t**2 - (ratio * sigma_s) ** 2
    mean = expand(ratio * sigma_s**2 / sigma_t**2, x_t) * x_t + expand(alpha_s * added / sigma_t**2, x_t) * x0
    return mean, added * sigma_s**2 / sigma_t**2


def log_variances(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of beta and beta_tilde of the step from t to s, shaped like t and s.

    At s = 0 beta_tilde would be zero. There it is that of the step before on an even grid, from 2 t to t, as in
    improved-diffusion (Nichol & Dhariwal 2021, arXiv 2102.09672); a grid of one step has only beta.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    beta = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    alpha_2t, sigma_2t = schedule((2 * t).clamp(max=1))
    lent = (sigma_2t**2 - (alpha_2t / alpha_t * sigma_t) ** 2) * sigma_t**2 / sigma_2t**2
    last = torch.where(t < 1, lent, beta)
    return beta.log(), torch.where(s > 0, beta * sigma_s**2 / sigma_t**2, last).log()


def eps_from(schedule: Schedule, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    """The noise in x_t if its data are x0: `(x_t - alpha_t x0) / sigma_t`, t ()."""
    alpha_t, sigma_t = schedule(t)
    return (x_t - alpha_t * x0) / sigma_t


def score_from(schedule: Schedule, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    """`grad log p_t(x_t) = (alpha_t x0 - x_t) / sigma_t^2` where x0 is `E[x0 | x_t]` (Tweedie's formula), t ()."""
    alpha_t, sigma_t = schedule(t)
    return (alpha_t * x0 - x_t) / sigma_t**2
