"""A network that corrects the best linear denoiser of its data, which is known before training begins."""

from typing import Any

import torch
from torch import Tensor, nn

from diffusion.denoisers import Condition, RegressionDenoiser
from diffusion.schedules import Schedule, expand, float64


class PrincipalComponents(nn.Module):
    """The Gaussian `N(m, C)` fitted to data, `C = V diag(lambda) V^T + rest (I - V V^T)`.

    V holds the k leading principal components and `rest` is the mean of the remaining variances: the most likely
    covariance of this form (Tipping & Bishop 1999, "Probabilistic principal component analysis", eqs. 7 and 8). Before
    `fit` it is N(0, I).

    Args:
        d: numbers of one sample.
        k: components kept.
    """

    mean: Tensor
    components: Tensor
    variances: Tensor

    def __init__(self, d: int, k: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("components", torch.eye(d, k))
        self.register_buffer("variances", torch.ones(k + 1))  # lambda, and rest
        self.multiplicities = torch.tensor([1.0] * k + [d - k], dtype=torch.float64)

    def fit(self, x: Tensor) -> None:
        """Estimates mean and covariance from data (n, d)."""
        k, smallest = self.components.shape[1], 1e-6  # the variance of a pixel that never changes is not quite zero
        centred = x - x.mean(0)
        # A randomised decomposition: the same one each time, and torch's own generator is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, s, v = torch.svd_lowrank(centred, q=min(k + 32, *x.shape), niter=4)
        found = min(k, len(s))
        leading = torch.zeros(k, dtype=torch.float64)
        leading[:found] = s[:found].double() ** 2 / len(x)
        remaining = (centred.double().square().mean(0).sum() - leading.sum()) / max(len(self.mean) - found, 1)
        leading[found:] = remaining
        self.mean.copy_(x.mean(0))
        # Fewer data than components: the missing ones are directions like all the rest.
        basis, _ = torch.linalg.qr(torch.cat((v[:, :found], self.components), dim=1))
        self.components.copy_(torch.cat((v[:, :found], basis[:, found:k]), dim=1))
        self.variances.copy_(torch.cat((leading, remaining[None])).clamp(min=smallest))

    def trace(self, gains: Tensor) -> Tensor:
        """The mean of gains (B, k + 1) on the d dimensions, (B,): a matrix's trace over d."""
        return gains @ self.multiplicities.to(gains) / len(self.mean)

    def filter(self, y: Tensor, gains: Tensor) -> Tensor:
        """`V diag(gains) V^T y + gains_rest (I - V V^T) y` for y (B, d) and gains (B, k + 1)."""
        gains = gains.to(y.dtype)
        inside, rest = gains[:, :-1], gains[:, -1:]
        basis = self.components.to(y.dtype)
        return rest * y + ((inside - rest) * (y @ basis)) @ basis.T


class ResidualDenoiser(RegressionDenoiser):
    """`D = L(x_t, t) + c_out F(c_in (x_t - alpha_t m), (L - m) / s, c_noise)`: a network behind the exact denoiser of
    the Gaussian with the data's mean m and covariance C.

    `L = m + alpha_t C (alpha_t^2 C + sigma_t^2 I)^-1 (x_t - alpha_t m)` is the best linear denoiser (Wiener's filter).
    c_out, its root mean square error per dimension, gives the network targets of unit variance, and c_in and s inputs
    of unit variance, so that with m = 0 and `C = sigma_data^2 I` this is EDM's preconditioning (Karras et al. 2022,
    arXiv 2206.00364, eq. 8), and on Gaussian data F = 0 is exact. Wang & Vastola 2023 (arXiv 2311.10892) measured that
    trained denoisers are nearly linear at high noise; here the network need not learn it.

    Args:
        network: with `in_channels` twice those of x; F is shaped like x.
        schedule: see `Denoiser`.
        shape: of one sample.
        components: principal components kept of C, at most the dimensions.
        variance: "beta" or "beta_tilde", see `Denoiser`.
    """

    inputs = 2

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        shape: list[int],
        components: int = 256,
        variance: str = "beta_tilde",
    ) -> None:
        if variance == "learned":
            raise ValueError("variance=learned needs denoiser=learned; denoiser=residual has beta or beta_tilde")
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        super().__init__(network, schedule, variance)
        d = torch.Size(shape).numel()
        self.gaussian = PrincipalComponents(d, min(components, d))

    def prepare(self, x: Tensor) -> None:
        """Fits mean and covariance to data (n, *S), before training begins."""
        self.gaussian.fit(x.flatten(1))

    def c_noise(self, t: Tensor) -> Tensor:
        return -125 * self.schedule.log_snr(t)  # as EDM's

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha and sigma (B or 1, 1), the data's variances and those of x_t along the components (B or 1, k + 1)."""
        alpha, sigma = (c.reshape(-1, 1) for c in self.schedule(float64(t)))
        variances = self.gaussian.variances.to(alpha)
        return alpha, sigma, variances, alpha**2 * variances + sigma**2

    def _c_out(self, sigma: Tensor, variances: Tensor, power: Tensor) -> Tensor:
        return self.gaussian.trace(variances * sigma**2 / power).sqrt()

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, variances, power = self._levels(t)
        c_out = self._c_out(sigma, variances, power)
        # (x0 - L) / c_out with x_t written out: free of cancellation where sigma_t is small.
        on_x0, on_eps = sigma**2 / power / c_out[:, None], -sigma * alpha * variances / power / c_out[:, None]
        centred = x0.flatten(1) - self.gaussian.mean.to(x0.dtype)
        found = self.gaussian.filter(centred, on_x0) + self.gaussian.filter(eps.flatten(1), on_eps)
        return found.view_as(x0), c_out

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, dict[str, Any]]:
        alpha, sigma, variances, power = self._levels(t)
        c_out, c_in = self._c_out(sigma, variances, power), self.gaussian.trace(power).rsqrt()
        mean = self.gaussian.mean.to(x_t.dtype)
        with torch.autocast(x_t.device.type, enabled=False):
            centred = x_t.flatten(1) - alpha.to(x_t.dtype) * mean
            linear = self.gaussian.filter(centred, alpha * variances / power).view_as(x_t)
        scale = self.gaussian.trace(variances[None]).rsqrt()
        seen = torch.cat(
            (expand(c_in.to(x_t.dtype), x_t) * centred.view_as(x_t), expand(scale.to(x_t.dtype), x_t) * linear), dim=1
        )
        raw = self.output(seen, self.c_noise(t), cond)
        denoised = mean.view(x_t.shape[1:]) + linear + expand(c_out.to(x_t.dtype), x_t) * raw
        return denoised, {"raw": raw}
