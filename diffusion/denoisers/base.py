"""Denoisers: `D(x_t, t, cond) = E[x0 | x_t, cond]`, the only interface of samplers, losses and guidance to a model.

Other forms follow from D: `eps = (x_t - alpha_t D) / sigma_t`, `score = (alpha_t D - x_t) / sigma_t^2`,
`v = alpha_t eps - sigma_t D`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.forward import at_equal_log_snr, log_variances, posterior
from diffusion.noise import Noise
from diffusion.schedules import Schedule, expand

Condition = dict[str, Tensor]


# The values of a condition that is withheld. An image has a last channel of 1, so a grey image differs from none.
NO_LABEL = -1


NOTHING: dict[str, float] = {"label": NO_LABEL, "embedding": 0.0, "image": 0.0}


def dropped(cond: Condition, where: Tensor) -> Condition:
    """The condition, withheld from the samples at `where`, a bool tensor (B,).

    A label becomes `NO_LABEL`, an embedding or an image zero; other entries stay.
    """
    return {
        name: value.masked_fill(expand(where, value), NOTHING[name]) if name in NOTHING else value
        for name, value in cond.items()
    }


class Prediction(NamedTuple):
    """What a denoiser returns for x_t: tensors shaped like x_t, or None if it has no such output."""

    x0: Tensor  # D
    raw: Tensor | None = None  # the network's output F, which regression trains
    extra: Tensor | None = None  # a learned variance, see `Denoiser`
    prior: Tensor | None = None  # what the network corrects, see `ResidualDenoiser`
    slope: Tensor | None = None  # gradient by which guidance moves the mean of a step, see `MeanShiftGuidance`

    def map(self, change: Callable[[Tensor], Tensor]) -> "Prediction":
        """Applies the same change to each tensor that is not None."""
        return Prediction(change(self.x0), *(None if value is None else change(value) for value in self[1:]))


class Denoiser(nn.Module, ABC):
    """`denoiser(x_t, t, cond) -> D`, an estimate of `E[x0 | x_t, cond]`.

    x_t is (B, *S); t is () or (B,), in [t_min, 1]; cond is a dict of tensors with B rows, empty for an unconditional
    model: "label" (B,) int64, "embedding" (B, d), "image" (B, C', H, W) and its noise's "level" (B,).

    Args:
        schedule: alpha and sigma at each t.
        variance: that of the step `p(x_s | x_t)`: "beta", `sigma_t^2 - (alpha_t sigma_s / alpha_s)^2`, right when x0 is
            N(0, I), or "beta_tilde", that of `q(x_s | x_t, x0)`, right when x0 is one point (Ho et al. 2020, section
            3.2), or "learned", an interpolation of the two by `Prediction.extra`: -1 is beta-tilde, 1 is beta.
    """

    num_classes: int = 0  # labels that cond["label"] may hold; 0 for a model without
    embedding: int = 0  # length of the vectors cond["embedding"]; 0 for a model without
    condition_channels: int = 0  # of cond["image"]; 0 for a model without
    acts_in_step: bool = False  # whether it acts in `step` alone, so that a sampler that uses only D would ignore it
    of_pixels: bool = False  # whether it relies on data that are pixels in [-1, 1], not latents or points
    has_prior: bool = False  # whether `draw_prior` is there, so that sampling can begin at any noise level

    def __init__(self, schedule: Schedule, variance: str = "beta") -> None:
        super().__init__()
        if variance not in ("beta", "beta_tilde", "learned"):
            raise ValueError(f"variance must be beta, beta_tilde or learned, got {variance!r}")
        self.schedule, self.variance = schedule, variance

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        """D and the model's other outputs."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """D, shaped like x_t."""
        return self.predict(x_t, t, cond or {}).x0

    def check_times(self, times: Tensor) -> None:
        """Raises ValueError, with what to do, if the model cannot be evaluated at these times; most accept all."""

    def draw_prior(self, noise: Noise, shape: tuple[int, ...], cond: Condition | None = None) -> Tensor:
        """Data (B, *shape) that resemble the model's, drawn without its network.

        Noised to a level at which they cannot be told from the model's own, they are where sampling may begin, which
        leaves out the calls above it (Zheng et al. 2022, arXiv 2202.09671, "Truncated diffusion probabilistic models",
        whose generator is learned). Only for a denoiser with `has_prior`.
        """
        raise ValueError(f"{type(self).__name__} has no distribution that resembles the data's")

    def transition(
        self, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log-variance of the model's step `p(x_s | x_t)`, s < t, and the D that they follow from.

        The log-variance is a scalar or broadcasts against x_t. At s = 0 the mean is D.
        """
        prediction = self.predict(x_t, t, cond or {})
        return *self.step(x_t, t, s, prediction), prediction.x0

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of `p(x_s | x_t)` from what `predict` returned at (x_t, t).

        With "learned" the log-variance is `frac log beta + (1 - frac) log beta_tilde`, `frac = (extra + 1) / 2`
        (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15; the range of their code).
        """
        mean, _ = posterior(self.schedule, x_t, prediction.x0, t, s)
        beta, beta_tilde = (expand(v, x_t) for v in log_variances(self.schedule, t, s))
        if self.variance == "learned":
            if prediction.extra is None:
                raise ValueError("a learned variance needs a denoiser with further outputs, such as a network's")
            return mean, torch.lerp(beta_tilde.to(x_t), beta.to(x_t), (prediction.extra + 1) / 2)
        return mean, beta if self.variance == "beta" else beta_tilde


class Wrapper(Denoiser, ABC):
    """A denoiser around another: its schedule, variance, conditions, prior and step are the inner one's.

    Args:
        denoiser: the inner one.
    """

    # Whether at high noise it draws what the inner one draws, so that its sampling may begin with that one's prior.
    keeps_prior: bool = False

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser.schedule, denoiser.variance)
        self.denoiser = denoiser
        self.num_classes, self.embedding = denoiser.num_classes, denoiser.embedding
        self.condition_channels, self.acts_in_step = denoiser.condition_channels, denoiser.acts_in_step
        self.has_prior = self.keeps_prior and denoiser.has_prior

    def draw_prior(self, noise: Noise, shape: tuple[int, ...], cond: Condition | None = None) -> Tensor:
        if not self.has_prior:
            return super().draw_prior(noise, shape, cond)
        return self.denoiser.draw_prior(noise, shape, cond)

    def check_times(self, times: Tensor) -> None:
        self.denoiser.check_times(times)

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        return self.denoiser.step(x_t, t, s, prediction)


class Conditioned(Wrapper):
    """A denoiser with a fixed condition, for samplers, the ODE and likelihoods, which pass no condition.

    Args:
        denoiser: the inner one.
        cond: its condition at every call, a row for each sample.
    """

    keeps_prior = True

    def __init__(self, denoiser: Denoiser, cond: Condition) -> None:
        super().__init__(denoiser)
        self.cond = cond

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        return self.denoiser.predict(x_t, t, self.cond | cond)

    def draw_prior(self, noise: Noise, shape: tuple[int, ...], cond: Condition | None = None) -> Tensor:
        return super().draw_prior(noise, shape, self.cond | (cond or {}))


class ClippedDenoiser(Wrapper):
    """D clamped to [low, high], the range of 8-bit images; samplers that use eps derive it from the clamped D.

    The outermost wrapper: guidance and masks go inside. Not for 2-D data, latents or training.
    """

    keeps_prior = True

    def __init__(self, denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> None:
        if not low < high:
            raise ValueError(f"low and high need low < high, got {low=} and {high=}")
        super().__init__(denoiser)
        self.low, self.high = low, high

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        prediction = self.denoiser.predict(x_t, t, cond)
        return prediction._replace(x0=prediction.x0.clamp(self.low, self.high))


class DynamicThreshold(Wrapper):
    """D clamped to [-s, s] and divided by s: a given share of a sample's values lies in [-s, s], and s is at least 1
    (Saharia et al. 2022, arXiv 2205.11487, section 2.3).

    Strong guidance drives values beyond 1, and a clamp at 1 saturates them; this scales the whole sample back into
    [-1, 1]. The outermost wrapper, in the place of `ClippedDenoiser`.

    Args:
        denoiser: the inner one.
        share: of a sample's values whose absolute value is at most s, in (0, 1]; 1 divides by the largest.
    """

    of_pixels, keeps_prior = True, True

    def __init__(self, denoiser: Denoiser, share: float = 0.995) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        super().__init__(denoiser)
        self.share = share

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        prediction = self.denoiser.predict(x_t, t, cond)
        sizes = prediction.x0.abs().flatten(1)
        k = math.ceil(self.share * sizes.shape[1])
        bound = expand(sizes.kthvalue(k, dim=1).values.clamp(min=1), x_t)
        return prediction._replace(x0=prediction.x0.clamp(-bound, bound) / bound)


class Rescheduled(Denoiser):
    """A denoiser on another schedule: the inner one is called at equal log-SNR, with x_t rescaled.

    `check_times` raises ValueError for noise levels that its own schedule does not have.

    Args:
        denoiser: on its own schedule.
        schedule: the other.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.denoiser = denoiser
        self.num_classes, self.embedding = denoiser.num_classes, denoiser.embedding
        self.condition_channels = denoiser.condition_channels

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        return Prediction(self.denoiser(*at_equal_log_snr(self.schedule, self.denoiser.schedule, x_t, t), cond))

    def check_times(self, times: Tensor) -> None:
        theirs = self.denoiser.schedule
        noisy = times[times > 0]
        log_snr, ends = self.schedule.log_snr(noisy), theirs.log_snr(noisy.new_tensor([theirs.t_min, 1.0]))
        # A schedule's own ends may differ in their last digits.
        beyond = (log_snr > ends[0] + 1e-6) | (log_snr < ends[1] - 1e-6) | ~log_snr.isfinite()
        if beyond.any():
            low, high = (-ends / 2).exp().tolist()
            raise ValueError(
                f"its noise levels sigma / alpha go from {low:.3g} to {high:.3g}, and it would be asked at "
                f"{math.exp(-log_snr[beyond][0].item() / 2):.3g}"
            )
        self.denoiser.check_times(theirs.inverse(log_snr))
