"""Denoisers: `D(x_t, t, cond) = E[x0 | x_t, cond]`, the one thing that samplers, losses and guidance know of a model.

A network becomes a denoiser by a preconditioner, `D = c_skip x_t + c_out F(c_in x_t, c_noise)` (Karras et al. 2022,
arXiv 2206.00364, eq. 7); predicting eps, x0, v or a flow is a choice of these coefficients. Other forms follow from D:
`eps = (x_t - alpha_t D) / sigma_t`, `score = (alpha_t D - x_t) / sigma_t^2`, `v = alpha_t eps - sigma_t D`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.forward import log_variances, posterior
from diffusion.ranges import check_positive
from diffusion.schedules import Schedule, expand, float64

Condition = dict[str, Tensor]

# What stands in a condition where nothing is said. Grey images are told from none by their last channel, which is 1.
NO_LABEL = -1
NOTHING: dict[str, float] = {"label": NO_LABEL, "embedding": 0.0, "image": 0.0}


def dropped(cond: Condition, where: Tensor) -> Condition:
    """The condition with nothing said of the samples at `where`, a bool tensor (B,).

    A label becomes `NO_LABEL`, an embedding or an image zero; whatever else there is stays.
    """
    return {
        name: value.masked_fill(expand(where, value), NOTHING[name]) if name in NOTHING else value
        for name, value in cond.items()
    }


class Coefficients(NamedTuple):
    """The preconditioner's coefficients at one t, or at (B,) of them."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


class Preconditioner(ABC):
    """`(alpha_t, sigma_t) -> (c_skip, c_out, c_in)`: how a raw network output F becomes D."""

    @abstractmethod
    def __call__(self, alpha_t: Tensor, sigma_t: Tensor) -> Coefficients: ...

    def c_noise(self, schedule: Schedule, t: Tensor) -> Tensor:
        """The noise level as the network is told it."""
        return schedule.c_noise(t)


class EpsPreconditioner(Preconditioner):
    """F is the noise: `D = (x_t - sigma_t F) / alpha_t` (Ho et al. 2020, arXiv 2006.11239, eq. 15)."""

    def __call__(self, alpha_t: Tensor, sigma_t: Tensor) -> Coefficients:
        return Coefficients(1 / alpha_t, -sigma_t / alpha_t, (alpha_t**2 + sigma_t**2).rsqrt())


class X0Preconditioner(Preconditioner):
    """F is the data: `D = F`."""

    def __call__(self, alpha_t: Tensor, sigma_t: Tensor) -> Coefficients:
        return Coefficients(torch.zeros_like(alpha_t), torch.ones_like(alpha_t), (alpha_t**2 + sigma_t**2).rsqrt())


class VPreconditioner(Preconditioner):
    """F is the velocity `alpha_t eps - sigma_t x0` (Salimans & Ho 2022, arXiv 2202.00512, section 4 and appendix D).

    `D = (alpha_t x_t - sigma_t F) / (alpha_t^2 + sigma_t^2)`, which holds whether or not the denominator is one.
    """

    def __call__(self, alpha_t: Tensor, sigma_t: Tensor) -> Coefficients:
        power = alpha_t**2 + sigma_t**2
        return Coefficients(alpha_t / power, -sigma_t / power, power.rsqrt())


class ScorePreconditioner(Preconditioner):
    """F is the score times sigma_t, `sigma_t grad log p_t(x_t)`, which is -eps: `D = (x_t + sigma_t F) / alpha_t`.

    Simple weighting on F is then denoising score matching weighted by sigma_t^2 (Song & Ermon 2019, arXiv 1907.05600,
    eq. 6).
    """

    def __call__(self, alpha_t: Tensor, sigma_t: Tensor) -> Coefficients:
        return Coefficients(1 / alpha_t, sigma_t / alpha_t, (alpha_t**2 + sigma_t**2).rsqrt())


class FlowPreconditioner(Preconditioner):
    """F is flow matching's velocity `eps - x0` (Liu et al. 2022, arXiv 2209.03003, eq. 1, time running to noise).

    `D = (x_t - sigma_t F) / (alpha_t + sigma_t)`, on any schedule; the denominator is one on `FlowSchedule`.
    """

    def __call__(self, alpha_t: Tensor, sigma_t: Tensor) -> Coefficients:
        total = alpha_t + sigma_t
        return Coefficients(1 / total, -sigma_t / total, (alpha_t**2 + sigma_t**2).rsqrt())


class EDMPreconditioner(Preconditioner):
    """Inputs and training targets of unit variance at every noise level (Karras et al. 2022, table 1).

    The paper's formulas hold for `x_t / alpha_t`, whose noise has the standard deviation `sigma_t / alpha_t`.

    Args:
        sigma_data: the data's standard deviation.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        check_positive(sigma_data=sigma_data)
        self.sigma_data = sigma_data

    def __call__(self, alpha_t: Tensor, sigma_t: Tensor) -> Coefficients:
        power = sigma_t**2 + (alpha_t * self.sigma_data) ** 2
        return Coefficients(
            alpha_t * self.sigma_data**2 / power, sigma_t * self.sigma_data * power.rsqrt(), power.rsqrt()
        )

    def c_noise(self, schedule: Schedule, t: Tensor) -> Tensor:
        """`ln(sigma_t / alpha_t) / 4`, times 1000: the sinusoidal embedding is made for steps that count to 1000."""
        return -125 * schedule.log_snr(t)


class Prediction(NamedTuple):
    """What a denoiser says of x_t, each tensor shaped like it; None where it does not say."""

    x0: Tensor  # D
    raw: Tensor | None = None  # the network's output F, which regression trains
    extra: Tensor | None = None  # a learned variance, see `Denoiser`
    prior: Tensor | None = None  # what the network corrects, see `ResidualDenoiser`
    slope: Tensor | None = None  # by which guidance moves the mean of a step, see `MeanShiftGuidance`

    def map(self, change: Callable[[Tensor], Tensor]) -> "Prediction":
        """The same change of each tensor that is there."""
        return Prediction(change(self.x0), *(None if value is None else change(value) for value in self[1:]))


class Denoiser(nn.Module, ABC):
    """`denoiser(x_t, t, cond) -> D`, an estimate of `E[x0 | x_t, cond]`.

    x_t is (B, *S); t is () or (B,), in [t_min, 1]; cond is a dict of tensors with B rows, empty if there is nothing to
    know: "label" (B,) int64, "embedding" (B, d), "image" (B, C', H, W) and its noise's "level" (B,).

    Args:
        schedule: where t stands between data and noise.
        variance: that of the step `p(x_s | x_t)`: "beta", `sigma_t^2 - (alpha_t sigma_s / alpha_s)^2`, right when x0 is
            N(0, I), or "beta_tilde", that of `q(x_s | x_t, x0)`, right when x0 is one point (Ho et al. 2020, section
            3.2), or "learned", between the two where `Prediction.extra` says: -1 is beta-tilde, 1 beta.
    """

    num_classes: int = 0  # labels that cond["label"] may hold; 0 for a model without
    embedding: int = 0  # length of the vectors cond["embedding"]; 0 for a model without
    condition_channels: int = 0  # of cond["image"]; 0 for a model without
    acts_in_step: bool = False  # whether D alone, without `step`, misses what it is for

    def __init__(self, schedule: Schedule, variance: str = "beta") -> None:
        super().__init__()
        if variance not in ("beta", "beta_tilde", "learned"):
            raise ValueError(f"variance must be beta, beta_tilde or learned, got {variance!r}")
        self.schedule, self.variance = schedule, variance

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        """D and whatever else the model says."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """D, shaped like x_t."""
        return self.predict(x_t, t, cond or {}).x0

    def check_times(self, times: Tensor) -> None:
        """Raises ValueError, saying what would do, if this model cannot go along these times; any will do for most."""

    def transition(
        self, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log-variance of the model's step `p(x_s | x_t)`, s < t, and the D that they follow from.

        The log-variance is a scalar or broadcasts against x_t. At s = 0 the mean is D.
        """
        prediction = self.predict(x_t, t, cond or {})
        return *self.step(x_t, t, s, prediction), prediction.x0

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of `p(x_s | x_t)` from what `predict` said at (x_t, t).

        With "learned" the log-variance is `frac log beta + (1 - frac) log beta_tilde`, `frac = (extra + 1) / 2`
        (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15; the range of their code).
        """
        mean, _ = posterior(self.schedule, x_t, prediction.x0, t, s)
        beta, beta_tilde = (expand(v, x_t) for v in log_variances(self.schedule, t, s))
        if self.variance == "learned":
            if prediction.extra is None:
                raise ValueError("variance=learned needs a denoiser with further outputs, such as a network's")
            return mean, torch.lerp(beta_tilde.to(x_t), beta.to(x_t), (prediction.extra + 1) / 2)
        return mean, beta if self.variance == "beta" else beta_tilde


class TrainableDenoiser(Denoiser):
    """A denoiser whose weights are those of one network, `network(x, c_noise, cond) -> F`; c_noise is (B,).

    Its `num_classes` says which labels it knows, its `steps` how many noising steps have weights of their own, or 0.

    Raises:
        ValueError: the schedule has other steps than the network.
    """

    always_told: bool = False  # whether it counts on its image condition, so that none can be kept from it
    inputs: int = 1  # of the network for each number of x
    outputs: int = 1  # of the network for each number of x, a learned variance's not counted

    def __init__(self, network: nn.Module, schedule: Schedule, variance: str) -> None:
        super().__init__(schedule, variance)
        self.network = network
        for name in ("num_classes", "embedding", "condition_channels"):  # what it does not take it need not say
            setattr(self, name, int(getattr(network, name, 0)))
        self.steps = int(getattr(network, "steps", 0))
        if self.steps and schedule.timesteps != self.steps:
            raise ValueError(
                f"network.heads={self.steps} is one head a step: use a discrete schedule with timesteps={self.steps}"
            )

    def output(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        """F in x's dtype. The network may run in reduced precision under autocast; what follows never does."""
        c_noise = c_noise.to(x.device, torch.float32).expand(len(x))
        return self.network(x.to(self.dtype), c_noise, cond).to(x.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's weights."""
        return next(self.network.parameters()).dtype


class RegressionDenoiser(TrainableDenoiser):
    """D is a known function of x_t plus c_out(t) times the output F, so there is one F that makes it exact."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, t: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """The F for which D is x0 at `x_t = alpha_t x0 + sigma_t eps`, shaped like x0, and c_out, (B,) float64.

        t is (B,), and `prediction` what `predict` said there.
        """


class NetworkDenoiser(RegressionDenoiser):
    """A network behind a preconditioner.

    Args:
        network: F is shaped like x. With variance "learned" it has twice x's channels; the second half is
            `Prediction.extra`.
        schedule: see `Denoiser`.
        precond: the parameterization.
        variance: see `Denoiser`.

    Raises:
        ValueError: the parameterization says nothing where the schedule begins.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, precond: Preconditioner, variance: str = "beta") -> None:
        super().__init__(network, schedule, variance)
        one = torch.ones((), dtype=torch.float64, device="cpu")
        if not all(c.isfinite() for c in (*precond(*schedule(one)), precond.c_noise(schedule, one))):
            raise ValueError(
                "denoiser=eps, score and edm say nothing of the data at t = 1 on a schedule with zero terminal SNR: "
                "use denoiser=v, x0 or flow, or schedule.zero_terminal_snr=false"
            )
        self.precond = precond
        if self.steps:
            self.check_times(torch.arange(self.steps, 0, -1, dtype=torch.float64) / self.steps)

    def check_times(self, times: Tensor) -> None:
        number = self.precond.c_noise(self.schedule, times[times > 0])
        if self.steps and ((number - number.round()).abs() > 1e-3).any():
            raise ValueError(
                f"network=heads has one head for each of {self.steps} steps and none between: use grid=trailing or "
                f"uniform, and any denoiser but edm"
            )

    def target(self, x0: Tensor, eps: Tensor, t: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = self.schedule(float64(t))
        c_skip, c_out, _ = self.precond(alpha_t, sigma_t)
        # (x0 - c_skip x_t) / c_out with x_t written out: free of cancellation where sigma_t is small.
        on_x0, on_eps = (1 - c_skip * alpha_t) / c_out, -c_skip * sigma_t / c_out
        return expand(on_x0.to(x0.dtype), x0) * x0 + expand(on_eps.to(x0.dtype), x0) * eps, c_out

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        c_skip, c_out, c_in = (expand(c.to(x_t.dtype), x_t) for c in self.precond(*self.schedule(float64(t))))
        out = self.output(c_in * x_t, self.precond.c_noise(self.schedule, t), cond)
        raw, extra = out, None
        if self.variance == "learned":
            if out.shape[1] != 2 * x_t.shape[1]:
                raise ValueError(
                    f"variance=learned needs a network with {2 * x_t.shape[1]} output channels, this has {out.shape[1]}"
                )
            raw, extra = out.chunk(2, dim=1)
        return Prediction(c_skip * x_t + c_out * raw, raw, extra)


class GaussianMixtureDenoiser(Denoiser):
    """The exact denoiser of a Gaussian mixture `sum_k w_k N(m_k, C_k)` in d dimensions: what tests compare with.

    x_t given the component k is `N(alpha m_k, alpha^2 C_k + sigma^2 I)`, so with responsibilities r_k(x_t)
    `D = sum_k r_k (m_k + alpha C_k (alpha^2 C_k + sigma^2 I)^-1 (x_t - alpha m_k))`.

    Args:
        schedule: see `Denoiser`.
        means: (K, d).
        covariances: (K, d, d), positive semi-definite.
        weights: (K,), positive; normalised here. Equal if not given.
        variance: see `Denoiser`.
    """

    means: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor
    log_weights: Tensor

    def __init__(
        self,
        schedule: Schedule,
        means: Tensor,
        covariances: Tensor,
        weights: Tensor | None = None,
        variance: str = "beta",
    ) -> None:
        super().__init__(schedule, variance)
        eigenvalues, eigenvectors = torch.linalg.eigh(covariances)
        weights = torch.ones(len(means), dtype=means.dtype) if weights is None else weights
        self.register_buffer("means", means)
        self.register_buffer("eigenvalues", eigenvalues.clamp(min=0))  # (K, d)
        self.register_buffer("eigenvectors", eigenvectors)  # (K, d, d), one eigenvector a column
        self.register_buffer("log_weights", (weights / weights.sum()).log())

    def _components(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Residuals in each component's eigenbasis (B, K, d), variances (B or 1, K, d), log joint (B, K), alpha."""
        alpha, sigma = (c.to(x_t).reshape(-1, 1, 1) for c in self.schedule(float64(t)))
        residual = torch.einsum("bkd,kde->bke", x_t[:, None] - alpha * self.means, self.eigenvectors)
        variance = alpha**2 * self.eigenvalues + sigma**2
        log_joint = self.log_weights - 0.5 * (residual**2 / variance + (2 * torch.pi * variance).log()).sum(-1)
        return residual, variance, log_joint, alpha

    def _posterior_means(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        residual, variance, log_joint, alpha = self._components(x_t, t)
        shift = torch.einsum("bke,kde->bkd", alpha * self.eigenvalues / variance * residual, self.eigenvectors)
        return log_joint.softmax(-1), self.means + shift

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        weights, means = self._posterior_means(x_t, t)
        return Prediction((weights[..., None] * means).sum(1))

    def posterior(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p(x0 | x_t), a mixture again: weights (B, K), means (B, K, d) and covariances (B or 1, K, d, d).

        Component k has the covariance `C_k - alpha^2 C_k (alpha^2 C_k + sigma^2 I)^-1 C_k`.
        """
        alpha, sigma = (c.to(x_t).reshape(-1, 1, 1) for c in self.schedule(float64(t)))
        left = self.eigenvalues * sigma**2 / (alpha**2 * self.eigenvalues + sigma**2)
        covariances = torch.einsum("kde,bke,kfe->bkdf", self.eigenvectors, left, self.eigenvectors)
        return *self._posterior_means(x_t, t), covariances

    def log_prob(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p_t(x_t) in nats, (B,)."""
        return self._components(x_t, t)[2].logsumexp(-1)


class Wrapper(Denoiser, ABC):
    """A denoiser around another: its schedule, variance, conditions and step are the inner one's.

    Args:
        denoiser: the inner one.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser.schedule, denoiser.variance)
        self.denoiser = denoiser
        self.num_classes, self.embedding = denoiser.num_classes, denoiser.embedding
        self.condition_channels, self.acts_in_step = denoiser.condition_channels, denoiser.acts_in_step

    def check_times(self, times: Tensor) -> None:
        self.denoiser.check_times(times)

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        return self.denoiser.step(x_t, t, s, prediction)


class Conditioned(Wrapper):
    """A denoiser with its condition: what samplers, the ODE and likelihoods go along, who need not know of conditions.

    Args:
        denoiser: the inner one.
        cond: what it is told at every call, a row for each sample.
    """

    def __init__(self, denoiser: Denoiser, cond: Condition) -> None:
        super().__init__(denoiser)
        self.cond = cond

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        return self.denoiser.predict(x_t, t, self.cond | cond)


class ClippedDenoiser(Wrapper):
    """D clamped to [low, high], the range of 8-bit images; samplers that use eps derive it from the clamped D.

    The outermost wrapper: guidance and masks go inside. Not for 2-D data, latents or training.
    """

    def __init__(self, denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> None:
        if not low < high:
            raise ValueError(f"low and high need low < high, got {low=} and {high=}")
        super().__init__(denoiser)
        self.low, self.high = low, high

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        prediction = self.denoiser.predict(x_t, t, cond)
        return prediction._replace(x0=prediction.x0.clamp(self.low, self.high))
