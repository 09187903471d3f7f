"""Exact denoisers of Gaussian mixtures."""

import torch
from torch import Tensor

from diffusion.denoisers.base import Condition, Denoiser, Prediction
from diffusion.schedules import Schedule, float64


class GaussianMixtureDenoiser(Denoiser):
    """The exact denoiser of a Gaussian mixture `sum_k w_k N(m_k, C_k)` in d dimensions; tests compare with it.

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
