"""Stochastic samplers: the reverse SDE, with and without Langevin steps, Langevin dynamics alone, and EDM's churn.

The score follows from the denoiser, `forward.score_from`.
"""

import torch
from torch import Tensor

from diffusion.denoisers import Denoiser
from diffusion.forward import score_from
from diffusion.ranges import check_positive
from diffusion.samplers.base import Draw, Evaluation, History, Sampler
from diffusion.samplers.onestep import HeunSampler
from diffusion.schedules import expand


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _langevin(denoiser: Denoiser, x_t: Tensor, t: Tensor, x0: Tensor, size: Tensor, draw: Draw) -> Tensor:
    return x_t + size / 2 * score_from(denoiser.schedule, x_t, t, x0) + size.sqrt() * draw()


class EulerMaruyamaSampler(Sampler):
    """Euler-Maruyama on the reverse SDE (Song et al. 2021, arXiv 2011.13456, eq. 6).

    `dx = (f x - g^2 score) dt + g dw`, made for even steps in t.
    """

    order = 1
    stochastic = True

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        f, g2 = denoiser.schedule.rates(t)
        x0 = denoiser(x_t, t)
        drift = f * x_t - g2 * score_from(denoiser.schedule, x_t, t, x0)
        return x_t + (s - t) * drift + (g2 * (t - s)).sqrt() * draw(), (Evaluation(t, x_t, x0),)


class PredictorCorrectorSampler(Sampler):
    """The reverse SDE by Euler-Maruyama, then Langevin steps at the new time (Song et al. 2021, arXiv 2011.13456,
    algorithms 2 to 5).

    A Langevin step is `x + a score + sqrt(2 a) z` with `a = 2 r (snr |z| / |score|)^2`, each sample with its own norms.
    r is the algorithm's alpha_i, the 1 - beta of a noising step, here `(alpha_t / alpha_s)^2` of the step taken; 1 on
    VE.

    A step whose size depends on the state is biased, and more so in few dimensions. On Gaussian data with variances
    from 0.01 to 1, on VE with sigma from 0.01 to 10 in 300 even steps, the mean variance comes out several times too
    large in 2 dimensions (a heavy tail: figures vary from draw to draw), by a third to four fifths in 8 and by 7 % in
    64; with sigma_s instead of `|z| / |score|` it is nearly right in any number of dimensions.

    Args:
        snr: the signal-to-noise ratio of a Langevin step.
        corrections: Langevin steps after each prediction.
        rule: "norm", as above, "level", with sigma_s, or "auto": "norm" for samples of 32 numbers or more, else
            "level".
    """

    order = 0  # the size of the Langevin steps does not shrink
    stochastic = True

    def __init__(self, snr: float = 0.16, corrections: int = 1, rule: str = "auto") -> None:
        check_positive(snr=snr)
        if corrections < 1:
            raise ValueError(f"corrections must be at least 1 (without any, use euler_maruyama), got {corrections}")
        if rule not in ("norm", "level", "auto"):
            raise ValueError(f"rule must be norm, level or auto, got {rule!r}")
        self.snr, self.corrections, self.rule = snr, corrections, rule
        self.calls = 1 + corrections
        self.affine = rule != "norm"

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        x_s, known = EulerMaruyamaSampler().step(denoiser, x_t, t, s, history, draw)
        (alpha_t, _), (alpha_s, sigma_s) = denoiser.schedule(t), denoiser.schedule(s)
        by_norm = self.rule == "norm" or (self.rule == "auto" and x_t[0].numel() >= 32)
        for _ in range(self.corrections):
            slope, z = score_from(denoiser.schedule, x_s, s, denoiser(x_s, s)), draw()
            length = sigma_s
            if by_norm:
                steepness = _norm(slope)  # zero all over for a network that has learned nothing yet
                length = expand(torch.where(steepness > 0, _norm(z) / steepness, sigma_s.to(z)), x_s)
            size = 2 * (alpha_t / alpha_s * self.snr * length) ** 2
            x_s = x_s + size * slope + (2 * size).sqrt() * z
        return x_s, known


class AnnealedLangevinSampler(Sampler):
    """Langevin dynamics at one noise level after another (Song & Ermon 2019, arXiv 1907.05600, algorithm 1).

    `x + a / 2 score + sqrt(a) z` with `a = epsilon sigma_s^2`, repeated at each level s. If alpha changes between
    levels, x is scaled with it. The first level, t = 1, is the prior and needs no steps.

    Args:
        epsilon: the step size at sigma = 1; the paper's divided by its lowest sigma squared, 2e-5 / 0.01^2.
        corrections: steps at each level.
    """

    order = 0  # with few steps at each level x lags behind, and their size does not shrink
    stochastic = True

    def __init__(self, epsilon: float = 0.2, corrections: int = 5) -> None:
        if not 0 < epsilon < 4:
            raise ValueError(f"epsilon must lie between 0 and 4 (from 4 on the steps diverge), got {epsilon}")
        if corrections < 1:
            raise ValueError(f"corrections must be at least 1, got {corrections}")
        self.epsilon, self.corrections = epsilon, corrections
        self.calls = 1 + corrections

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        (alpha_t, _), (alpha_s, sigma_s) = denoiser.schedule(t), denoiser.schedule(s)
        known = (Evaluation(t, x_t, denoiser(x_t, t)),)  # only to be yielded
        size = self.epsilon * sigma_s**2
        x_s = alpha_s / alpha_t * x_t
        for _ in range(self.corrections):
            x_s = _langevin(denoiser, x_s, s, denoiser(x_s, s), size, draw)
        return x_s, known


class LangevinSampler(Sampler):
    """Langevin dynamics without annealing (Song & Ermon 2019, arXiv 1907.05600, eq. 4), at the lowest noise level.

    `x + a / 2 score + sqrt(a) z` with `a = epsilon sigma^2` and the score at t_min, whatever the time: the times only
    count the steps. From the prior a state falls into a near mode and hardly ever leaves it. So the weights of modes
    that are far apart come out wrong for any number of steps; annealing corrects that.

    Args:
        epsilon: the step size at sigma = 1; from 4 the steps diverge along directions in which the data do not vary.
        corrections: steps for each time.
    """

    order = 0
    stochastic = True
    from_pure_noise = True  # it only begins there: the score is taken at t_min

    def __init__(self, epsilon: float = 0.2, corrections: int = 100) -> None:
        check_positive(epsilon=epsilon)
        if corrections < 1:
            raise ValueError(f"corrections must be at least 1, got {corrections}")
        self.epsilon, self.corrections = epsilon, corrections
        self.calls = corrections

    def check(self, denoiser: Denoiser, times: Tensor) -> None:
        super().check(denoiser, times)
        above = times[times > 0]
        if len(above) == 0 or not torch.isclose(above[-1], above.new_tensor(denoiser.schedule.t_min)):
            raise ValueError(
                "a Langevin sampler stays at the lowest noise level: its last time above 0 must be t_min, as "
                "on a uniform grid of at least 2 steps"
            )

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        low = t.new_tensor(denoiser.schedule.t_min)
        size = self.epsilon * denoiser.schedule(low)[1] ** 2
        known = Evaluation(low, x_t, denoiser(x_t, low))
        x_s = _langevin(denoiser, x_t, low, known.x0, size, draw)
        for _ in range(self.corrections - 1):
            x_s = _langevin(denoiser, x_s, low, denoiser(x_s, low), size, draw)
        return x_s, (known,)


class ChurnSampler(Sampler):
    """EDM's stochastic sampler: some fresh noise, then Heun from the raised level (Karras et al. 2022, arXiv
    2206.00364, algorithm 2).

    It yields the raised states, at which the denoiser was called. The last step, to t = 0, starts from a level that is
    not raised, unlike in the paper. No level is raised above that of t = 1.

    Args:
        gamma: raises a level sigma / alpha by the factor 1 + gamma; the paper's S_churn over the number of steps.
        s_min: raises only levels of at least this,
        s_max: and at most this.
        s_noise: standard deviation of the fresh noise.
    """

    order = 2  # with gamma in proportion to the steps' size
    calls = 2
    stochastic = True
    off_grid = True

    def __init__(self, gamma: float = 0.1, s_min: float = 0.05, s_max: float = 50.0, s_noise: float = 1.0) -> None:
        if not 0 <= gamma <= 2**0.5 - 1:
            raise ValueError(f"gamma must lie in [0, sqrt(2) - 1], got {gamma}")
        if not 0 <= s_min < s_max:
            raise ValueError(f"s_min and s_max need 0 <= s_min < s_max, got {s_min=} and {s_max=}")
        check_positive(s_noise=s_noise)
        self.gamma, self.s_min, self.s_max, self.s_noise = gamma, s_min, s_max, s_noise

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        schedule = denoiser.schedule
        alpha_t, sigma_t = schedule(t)
        level = sigma_t / alpha_t
        raised = schedule.inverse(-2 * (level * (1 + self.gamma)).log())  # at most 1, where the schedule ends
        if raised > t and self.s_min <= level <= self.s_max:
            alpha_r, sigma_r = schedule(raised)
            added = ((sigma_r / alpha_r) ** 2 - level**2).sqrt()
            t, x_t = raised, alpha_r * (x_t / alpha_t + self.s_noise * added * draw())
        return HeunSampler().step(denoiser, x_t, t, s, history, draw)
