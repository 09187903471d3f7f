"""A network that corrects a denoiser known before training begins: that of a Gaussian mixture fitted to the data."""

import torch
from torch import Tensor, nn

from diffusion.denoisers.base import Condition, Prediction
from diffusion.denoisers.fitted import LinearGuess, MixturePrior
from diffusion.denoisers.network import RegressionDenoiser
from diffusion.noise import Noise
from diffusion.schedules import Schedule, beside, expand


class ResidualDenoiser(RegressionDenoiser):
    """`D = P(x_t, t) + c_out F(c_in (x_t - alpha_t m), (P - m) / s, c_noise)`: a network behind the exact denoiser P of
    a Gaussian mixture fitted to the data, whose mean is m; of a label's mixture where the network knows labels.

    c_out, P's root mean square error per dimension, gives the network targets of unit variance, and c_in and s inputs
    of unit variance. With one cluster, m = 0 and the covariance `sigma_data^2 I` this is EDM's preconditioning (Karras
    et al. 2022, arXiv 2206.00364, eq. 7) but for the second input, and where the mixture is the data's distribution
    F = 0 is exact. Wang & Vastola 2023 (arXiv 2311.10892) measured that trained denoisers are nearly linear at high
    noise, those of one Gaussian; here the network need not learn it.

    Where the network is conditioned on images, the mixture is that of what the best linear guess G of the data from the
    image leaves over, `x0 - G(image)`, and P is G plus its denoiser at `x_t - alpha_t G(image)`. If image and data are
    Gaussian together and there are one cluster and components enough, P is exact but for the ridge of G: the covariance
    given the image is the same for all.

    Args:
        network: with `in_channels` twice those of x; F is shaped like x.
        schedule: see `Denoiser`.
        shape: of one sample.
        clusters: components of the mixture; at most one for 50 data.
        components: principal components in which clusters differ, at most the dimensions; one for ten data.
        variance: "beta" or "beta_tilde", see `Denoiser`.

    Raises:
        ValueError: a learned variance, no component, cluster or dimension, or a schedule with zero terminal SNR.
    """

    inputs = 2
    learns_from_data = True
    has_prior = True

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        shape: list[int],
        clusters: int = 32,
        components: int = 256,
        variance: str = "beta_tilde",
    ) -> None:
        if variance == "learned":
            raise ValueError("a ResidualDenoiser learns no variance: use variance beta or beta_tilde")
        if min(clusters, components) < 1:
            raise ValueError(f"clusters and components must be at least 1, got {clusters=} and {components=}")
        if not shape or min(shape) < 1:
            raise ValueError(f"shape must be that of a sample, got {shape}")
        super().__init__(network, schedule, variance)
        if schedule.log_snr(torch.ones((), device="cpu")).isinf():
            raise ValueError("a ResidualDenoiser is undefined at t = 1 on a schedule with zero terminal SNR")
        d = torch.Size(shape).numel()
        self.prior = MixturePrior(d, min(components, d), clusters, self.num_classes)
        c = self.condition_channels * d // shape[0]
        self.guess = LinearGuess(c, d, min(components, c)) if c else None
        self.always_conditioned = self.guess is not None

    def prepare(self, x: Tensor, cond: Condition) -> None:
        """Fits guess and mixture to data (n, *S) and their conditions, "label" and perhaps "image", before training.

        This is computed on the CPU, wherever data and model are, so that it gives the same on all devices.
        """
        fitted = nn.ModuleList([self.prior] if self.guess is None else [self.prior, self.guess])
        device = self.prior.mean.device
        fitted.cpu()
        x, label = x.cpu().flatten(1), cond["label"].cpu()
        if self.guess is not None:
            image = cond["image"].cpu().flatten(1)
            self.guess.fit(image, x)
            x = x - self.guess(image)
        self.prior.fit(x, label)
        fitted.to(device)

    def draw_prior(self, noise: Noise, shape: tuple[int, ...], cond: Condition | None = None) -> Tensor:
        """A sample of the mixture, of the labels' if there are labels, and around the guess from the image if there is
        one."""
        cond = cond or {}
        with torch.autocast(self.prior.mean.device.type, enabled=False):
            x = self.prior.draw(noise, cond.get("label"))
            if self.guess is not None:
                x = x + self.guess(cond["image"].to(x).flatten(1))
        return x.view(-1, *shape)

    def c_noise(self, t: Tensor) -> Tensor:
        """As EDM's."""
        return -125 * self.schedule.log_snr(t)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        assert prediction.prior is not None
        c_out = self.prior.error(*self.schedule(beside(t, x0)))
        return (x0 - prediction.prior) / expand(c_out.to(x0.dtype), x0), c_out

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        alpha, sigma = (c.reshape(-1, 1) for c in self.schedule(beside(t, x_t)))
        x, label = x_t.flatten(1), cond.get("label")
        data: MixturePrior | LinearGuess = self.prior if self.guess is None else self.guess
        with torch.autocast(x_t.device.type, enabled=False):
            if self.guess is None:
                prior = self.prior(x, alpha, sigma, label)
            else:
                guess = self.guess(cond["image"].to(x_t.dtype).flatten(1))
                prior = guess + self.prior(x - alpha.to(x_t.dtype) * guess, alpha, sigma, label)
        prior = prior.view_as(x_t)
        total, mean = data.total.to(alpha), data.mean.to(x_t.dtype).view(x_t.shape[1:])
        c_out, c_in = (
            expand(c.flatten().to(x_t.dtype), x_t)
            for c in (self.prior.error(alpha, sigma), (alpha**2 * total + sigma**2).rsqrt())
        )
        seen = torch.cat(
            (
                c_in * (x_t - expand(alpha.flatten().to(x_t.dtype), x_t) * mean),
                total.rsqrt().to(x_t.dtype) * (prior - mean),
            ),
            dim=1,
        )
        raw = self.output(seen, self.c_noise(t), cond)
        return Prediction(prior + c_out * raw, raw, prior=prior)
