"""Guidance: wrappers that steer a denoiser. They are denoisers, so every sampler and likelihood can use them.

With `score = (alpha_t D - x_t) / sigma_t^2`, adding `grad log p(y | x_t)` to the score is adding
`sigma_t^2 / alpha_t grad log p(y | x_t)` to D. A scale w tilts each noise level's density to `p(x_t) p(y | x_t)^w`:
w = 0 ignores y, w = 1 is p(x_t | y), and for w > 1 samples are more typical of y and less varied.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diffusion.denoisers import NOTHING, Condition, Denoiser, Prediction, Wrapper, dropped
from diffusion.forward import log_variances
from diffusion.schedules import Schedule, expand, float64

# log p(y | x), (B,) in nats up to a constant, of x (B, *S), t () or (B,), and the condition.
LogProb = Callable[[Tensor, Tensor, Condition], Tensor]


class Guidance(Wrapper, ABC):
    """A wrapper that steers a denoiser. The inner denoiser is not clipped: put `ClippedDenoiser` outside."""


class Extrapolation(Guidance):
    """`D = D_weak + w (D_strong - D_weak)`: from a weaker D through a stronger one, and beyond it for w > 1.

    w = 1 is no guidance: D_strong itself, without further calls. The model's other outputs, such as its variance, are
    those of D_strong.

    Args:
        denoiser: gives D_strong.
        scale: w.
        interval: levels sigma / alpha between which it acts, both included; elsewhere w is 1 (Kynkäänniemi et al. 2024,
            arXiv 2404.07724, eq. 5). A log-SNR of l is the level `exp(-l / 2)`.
        rescale: in [0, 1], how far each sample's standard deviation is brought back to that of D_strong (Lin et al.
            2023, arXiv 2305.08891, eq. 15 and 16, here on D whatever the network predicts).
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, interval: Sequence[float] | None = None, rescale: float = 0.0
    ) -> None:
        super().__init__(denoiser)
        if not math.isfinite(scale):
            raise ValueError(f"guidance must be a finite number, got {scale}")
        low, high = (0.0, math.inf) if interval is None else interval
        if not 0 <= low < high:
            raise ValueError(
                f"guidance_interval must be two rising levels of sigma / alpha, like [0.3,5], got {interval}"
            )
        if not 0 <= rescale <= 1:
            raise ValueError(f"guidance_rescale must lie in [0, 1], got {rescale}")
        self.scale, self.low, self.high, self.rescale = scale, low, high, rescale

    keeps_prior = True  # as an interval of low noise does

    @abstractmethod
    def answers(self, x_t: Tensor, t: Tensor, cond: Condition) -> tuple[Prediction, Tensor]:
        """The denoiser's prediction, and D_weak."""

    def acts(self, t: Tensor) -> Tensor:
        """Where in t the level lies in the interval, shaped like t."""
        level = torch.exp(-self.schedule.log_snr(float64(t)) / 2)
        return (level >= self.low) & (level <= self.high)

    def check_times(self, times: Tensor) -> None:
        super().check_times(times)
        if self.acts(times[times > 0]).any():
            return
        levels = torch.exp(-self.schedule.log_snr(times[times > 0]) / 2)
        near = [levels[levels < self.low].max().item()] if (levels < self.low).any() else []
        near += [levels[levels > self.high].min().item()] if (levels > self.high).any() else []
        raise ValueError(
            f"guidance_interval=[{self.low:g},{self.high:g}] has no noise level of the sampler: the nearest sigma / "
            f"alpha {'are' if len(near) > 1 else 'is'} {' and '.join(f'{level:.3g}' for level in near)}"
        )

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        weight = torch.where(self.acts(t), torch.full_like(float64(t), self.scale), 1.0)
        everywhere = self.low == 0 and self.high == math.inf
        # Where it acts everywhere the device is not asked, so that a CUDA graph can hold it.
        if self.scale == 1 or not (everywhere or (weight != 1).any()):
            return self.denoiser.predict(x_t, t, cond)
        prediction, weak = self.answers(x_t, t, cond)
        guided = weak.lerp(prediction.x0, expand(weight.to(x_t), x_t))
        if self.rescale:
            spread = guided.flatten(1).std(1)
            # A constant D has no spread to rescale; the inner `where` keeps its gradient finite.
            ratio = prediction.x0.flatten(1).std(1) / spread.where(spread > 0, 1)
            ratio = ratio.where(spread > 0, 1)
            guided = expand(1 + self.rescale * (ratio - 1), x_t) * guided
        return prediction._replace(x0=guided)


class ClassifierFreeGuidance(Extrapolation):
    """From D without the condition to D with it, by one network that was trained with condition dropout
    (Ho & Salimans 2022, arXiv 2207.12598, eq. 6, where w is called 1 + w).

    One batch of twice the size gives both.
    """

    def answers(self, x_t: Tensor, t: Tensor, cond: Condition) -> tuple[Prediction, Tensor]:
        if not cond.keys() & NOTHING.keys():
            raise ValueError("classifier-free guidance needs a condition: a label, an embedding or an image")
        nothing = dropped(cond, torch.ones(len(x_t), dtype=torch.bool, device=x_t.device))
        both = {name: torch.cat((value, nothing[name])) for name, value in cond.items()}
        twice_t = t if t.ndim == 0 else torch.cat((t, t))
        twice = self.denoiser.predict(torch.cat((x_t, x_t)), twice_t, both)
        return twice.map(lambda value: value.chunk(2)[0]), twice.x0.chunk(2)[1]


class Autoguidance(Extrapolation):
    """From D of a worse version of the model to the model's own D (Karras et al. 2024, Guiding a Diffusion Model
    with a Bad Version of Itself, arXiv 2406.02507, eq. 3).

    Both are called with the same condition. Where they differ, the guide's error is larger than the model's and has
    about the same direction. So extrapolation from the guide's D through the model's gives fewer samples of low
    probability, with classes or without.

    Args:
        denoiser: the model.
        guide: the worse version, smaller or less trained, on the same schedule; see `Rescheduled`.
        scale: see `Extrapolation`.
        interval: see `Extrapolation`.
        rescale: see `Extrapolation`.

    Raises:
        ValueError: the guide is on another schedule.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        guide: Denoiser,
        scale: float,
        interval: Sequence[float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        super().__init__(denoiser, scale, interval, rescale)
        if guide.schedule is not denoiser.schedule:
            raise ValueError("a guide has the schedule of the model: put Rescheduled around it")
        self.guide = guide

    def answers(self, x_t: Tensor, t: Tensor, cond: Condition) -> tuple[Prediction, Tensor]:
        return self.denoiser.predict(x_t, t, cond), self.guide(x_t, t, cond)

    def check_times(self, times: Tensor) -> None:
        super().check_times(times)
        noisy = times[times > 0]
        try:
            self.guide.check_times(noisy[self.acts(noisy)])
        except ValueError as error:
            raise ValueError(f"the guide cannot answer everywhere: {error}; a narrower interval may help") from error


class EnergyGuidance(Guidance):
    """`D + w sigma_t^2 / alpha_t grad log p(y | x_t)` (Dhariwal & Nichol 2021, arXiv 2105.05233, section 4; Song et al.
    2021, arXiv 2011.13456, eq. 14).

    At w = 1, with the exact p(y | x_t), this is the exact denoiser of p(x0 | y). Any differentiable energy will do.

    Args:
        denoiser: what is steered.
        log_prob: of x and t; a classifier's or any other energy.
        scale: w; 0 is no guidance.
        of: the input of log_prob: "x_t", or "x0", the denoiser's D, through which the gradient is then taken. That
            replaces log p(y | x_t) by log p(y | E[x0 | x_t]), which is accurate at low noise (Chung et al.
            2023, arXiv 2209.14687, eq. 11).
    """

    def __init__(self, denoiser: Denoiser, log_prob: LogProb, scale: float = 1.0, of: str = "x_t") -> None:
        super().__init__(denoiser)
        if of not in ("x_t", "x0"):
            raise ValueError(f"of must be x_t or x0, got {of!r}")
        _check_energy(self.schedule, scale)
        self.log_prob, self.scale, self.of = log_prob, scale, of

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        if self.scale == 0:
            return self.denoiser.predict(x_t, t, cond)
        prediction: Prediction | None = None

        def through(x: Tensor) -> Tensor:
            nonlocal prediction
            prediction = self.denoiser.predict(x, t, cond)
            return self.log_prob(prediction.x0, t, cond)

        slope = gradient(through if self.of == "x0" else lambda x: self.log_prob(x, t, cond), x_t)
        prediction = prediction or self.denoiser.predict(x_t, t, cond)
        if not slope.requires_grad:
            prediction = prediction.map(Tensor.detach)
        alpha, sigma = self.schedule(float64(t))
        return prediction._replace(x0=prediction.x0 + expand((self.scale * sigma**2 / alpha).to(x_t), x_t) * slope)


class MeanShiftGuidance(Guidance):
    """Guidance of a DDPM step only: its mean is moved by `w Sigma grad log p(y | x_t)`, D stays the same (Dhariwal &
    Nichol 2021, arXiv 2105.05233, algorithm 1).

    With the variance beta this is alpha_t / alpha_s of what `EnergyGuidance` moves the mean by: the same at many steps,
    less at few. For ddpm alone, the sampler that uses `transition`: `Sampler.check` refuses the others.

    Args:
        denoiser: what is steered.
        log_prob: of x_t and t.
        scale: w.
    """

    def __init__(self, denoiser: Denoiser, log_prob: LogProb, scale: float = 1.0) -> None:
        super().__init__(denoiser)
        _check_energy(self.schedule, scale)
        self.log_prob, self.scale = log_prob, scale
        self.acts_in_step = True

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        slope = gradient(lambda x: self.log_prob(x, t, cond), x_t)
        return self.denoiser.predict(x_t, t, cond)._replace(slope=slope)

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        mean, log_var = self.denoiser.step(x_t, t, s, prediction)
        assert prediction.slope is not None
        return mean + self.scale * log_var.exp() * prediction.slope, log_var


class Inpainting(Guidance):
    """`D' = mask D + (1 - mask) known`: where the mask is 0 the data are known, and are reproduced exactly.

    In a `transition` the known part's step has the variance of `q(x_s | x_t, x0)`, so that under ddpm it is distributed
    as the noised data are, at every level: the replacement method (Song et al. 2021, arXiv 2011.13456, appendix I.2).

    Its bias: the rest is drawn given the *noised* known part, `E[x0 | x_t]`, not given the known part itself, so
    early steps do not see it, and later steps cannot correct them. `RePaintSampler` reduces this.

    Args:
        denoiser: what is steered.
        known: data, broadcasting against x_t.
        mask: likewise; 1 is generated, 0 is kept.
    """

    known: Tensor
    mask: Tensor

    def __init__(self, denoiser: Denoiser, known: Tensor, mask: Tensor) -> None:
        super().__init__(denoiser)
        self.register_buffer("known", known)
        self.register_buffer("mask", mask)

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        prediction = self.denoiser.predict(x_t, t, cond)
        x0 = prediction.x0
        return prediction._replace(x0=torch.lerp(self.known.to(x0), x0, self.mask.to(x0)))

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        mean, log_var = self.denoiser.step(x_t, t, s, prediction)
        exact = expand(log_variances(self.schedule, t, s)[1], x_t).to(x_t)
        return mean, torch.lerp(exact, log_var.to(x_t), self.mask.to(x_t))


class MeasurementGuidance(Guidance):
    """The denoiser of `p(x0 | y)`, given a linear measurement with noise `y = A x0 + s n`, n from N(0, I).

        D' = D + V A^T (A V A^T + s^2 I)^-1 (y - A D),  V = Cov[x0 | x_t] = sigma_t^2 / alpha_t dD/dx_t

    Where p(x0 | x_t) is the Gaussian N(D, V) this is its mean given y too, so on Gaussian data D' is exact. V is the
    second-order form of Tweedie's formula: `alpha_t D = x_t + sigma_t^2 grad log p(x_t)`, and the covariance is
    `sigma_t^2 / alpha_t^2 (I + sigma_t^2 grad^2 log p(x_t))`. Moment matching (Rozet et al. 2024, Learning Diffusion
    Priors from Observations by Expectation Maximization, arXiv 2405.13712, section 4.2) keeps V; diffusion posterior
    sampling (Chung et al. 2023, arXiv 2209.14687) puts a number in the place of the matrix and its inverse.

    No matrix is formed. `V A^T u` is a product of u with the Jacobian of A D, by backpropagation, and the system is
    solved by `minimal_residual`, each iteration of which backpropagates through the denoiser once.

    Args:
        denoiser: what is steered.
        measurement: A, linear, from x0 (B, *S) to (B, *M).
        measured: y, (*M) or (B, *M).
        noise: s, the standard deviation of y's noise, at least 0.
        iterations: of the solver; as many as y has values solve the system, and few leave out directions in which
            x_t says little of y.
    """

    measured: Tensor

    def __init__(
        self, denoiser: Denoiser, measurement: nn.Module, measured: Tensor, noise: float, iterations: int = 5
    ) -> None:
        super().__init__(denoiser)
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise must be a standard deviation, finite and at least 0, got {noise}")
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        _check_energy(self.schedule, 1.0)
        self.measurement, self.noise, self.iterations = measurement, noise, iterations
        self.register_buffer("measured", measured)

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        alpha, sigma = self.schedule(float64(t))
        scale = expand((sigma**2 / alpha).to(x_t), x_t)
        further = torch.is_grad_enabled() and x_t.requires_grad
        with torch.enable_grad():
            x = x_t if further else x_t.detach().requires_grad_()
            prediction = self.denoiser.predict(x, t, cond)
            expected = self.measurement(prediction.x0)  # A D

        def moved(u: Tensor) -> Tensor:
            """V A^T u."""
            (product,) = torch.autograd.grad(expected, x, u, retain_graph=True, create_graph=further)
            return scale * product

        def covariance(u: Tensor) -> Tensor:
            """(A V A^T + s^2 I) u, the covariance of y given x_t times u."""
            return self.measurement(moved(u)) + self.noise**2 * u

        if not further:
            prediction = prediction.map(Tensor.detach)
        missed = self.measured.to(expected) - (expected if further else expected.detach())
        shift = moved(minimal_residual(covariance, missed, self.iterations))
        return prediction._replace(x0=prediction.x0 + shift)


def minimal_residual(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """x with M x = b for each sample, by so many iterations of generalised conjugate residuals from x = 0 (Eisenstat,
    Elman & Schultz 1983, Variational iterative methods for nonsymmetric systems of linear equations, section 2).

    Of all x in the span of b, M b, M^2 b, ... each iteration takes the one whose `|b - M x|` is least, so that this
    never grows, whatever M is. A trained denoiser's Jacobian is not exactly symmetric, and the error of conjugate
    gradients, which count on that, does grow.

    Args:
        product: M v, of v shaped like b.
        b: (B, *M).
        iterations: one for each distinct eigenvalue of a symmetric, positive definite M solves the system exactly.
    """

    def inner(u: Tensor, v: Tensor) -> Tensor:
        return expand((u * v).flatten(1).sum(1), b)

    x, residual = torch.zeros_like(b), b
    before: list[tuple[Tensor, Tensor, Tensor]] = []  # directions p, their images q = M p, and q^T q
    for _ in range(iterations):
        p, q = residual, product(residual)
        whole = inner(q, q)
        for earlier_p, earlier_q, square in before:
            share = inner(q, earlier_q) / square
            p, q = p - share * earlier_p, q - share * earlier_q
        square = inner(q, q)
        new = square > torch.finfo(q.dtype).eps * whole  # else rounding is all that is left of q
        square = torch.where(new, square, 1)
        step = torch.where(new, inner(residual, q) / square, 0)
        x, residual = x + step * p, residual - step * q
        before.append((p, q, square))
    return x


def gradient(log_prob: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`d log_prob(x) / dx`, shaped like x; differentiable itself where x is part of a graph, as in a likelihood."""
    further = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        x = x if further else x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(log_prob(x).sum(), x, create_graph=further)
    return slope


def _check_energy(schedule: Schedule, scale: float) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"guidance must be a finite number, got {scale}")
    if schedule(torch.ones((), dtype=torch.float64))[0] == 0:
        raise ValueError(
            "guidance by an energy divides by alpha, which is 0 at t = 1 on a schedule with zero terminal SNR"
        )
