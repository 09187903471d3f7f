"""Autoencoders: a variational one, its bound, and how a diffusion model lives in its latents.

A variational autoencoder is `p(x) = int p(x | z) N(z; 0, I) dz`. Its prior is a diffusion model too, one whose denoiser
is known, `PriorDenoiser`; a latent diffusion model replaces it by a trained denoiser.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from diffusion.likelihood import bits, discretised_nll, gaussian_kl, gaussian_nll
from diffusion.noise import PREVIEW, Noise
from diffusion.objectives import NOISE, Objective
from diffusion.ranges import check_positive
from diffusion.trainable import Curve, Trainable


class EncodesAndDecodes(Protocol):
    """The networks of an autoencoder: x (B, *shape) to moments (B, 2 C, ...), z (B, *latent_shape) to the mean of x.

    The moments are the means of the latents' C channels and then their log-variances; `log_var`, a scalar, is the
    log-variance of a value of x given z.
    """

    shape: tuple[int, ...]
    latent_shape: tuple[int, ...]

    @property
    def log_var(self) -> Tensor: ...
    def encode(self, x: Tensor) -> Tensor: ...
    def decode(self, z: Tensor) -> Tensor: ...


class Autoencoder(Trainable):
    """`q(z | x) = N(mu(x), diag s^2(x))` and `p(x | z) = N(mean(z), v I)` with one learned variance v for all values
    (Kingma & Welling 2014, arXiv 1312.6114; v as in Rybkin et al. 2021, arXiv 2006.13202).

    Args:
        network: see `EncodesAndDecodes`.

    Raises:
        ValueError: the network is another kind.
    """

    kind = "autoencoder"
    forwards = ("encode", "decode")

    network: Any  # a module that is `EncodesAndDecodes`
    shape: tuple[int, ...]
    latent_shape: tuple[int, ...]

    def __init__(self, network: Any) -> None:
        super().__init__()
        # Not by isinstance, which from Python 3.12 on does not see a module's parameters, buffers and submodules.
        needed = ("shape", "latent_shape", "log_var", "encode", "decode")
        if any(getattr(network, name, None) is None for name in needed):
            raise ValueError("an autoencoder needs a network that encodes and decodes")
        self.network = network
        self.shape, self.latent_shape = network.shape, network.latent_shape

    def moments(self, x: Tensor) -> Tensor:
        """mu and log s^2, one after the other, (B, 2 C, ...), of x (B, *shape)."""
        return self.network.encode(x.to(self.network.log_var.dtype)).to(x)

    def decode(self, z: Tensor) -> Tensor:
        """The mean of x given z, (B, *shape)."""
        return self.network.decode(z.to(self.network.log_var.dtype)).to(z)

    @torch.no_grad()
    def shown(self, x: Tensor, label: Tensor, noise: Noise) -> dict[str, Tensor | Curve]:
        """The first eight data above what is decoded of their latents' means; and what is decoded of N(0, I)."""
        x = x[:8]
        mean = self.moments(x).chunk(2, dim=1)[0]
        z = Noise(0, torch.arange(64, device=x.device), PREVIEW).normal(self.latent_shape)
        return {
            "reconstructions": torch.stack((x, self.decode(mean))),
            "prior": self.decode(z).unflatten(0, (8, 8)),
        }


class ELBOObjective(Objective):
    """Minus the evidence lower bound, `KL(q(z | x) || N(0, I)) - E_q log p(x | z)`, in bits per dimension of x.

    The KL is exact, the expectation the mean over K draws `z = mu + s eps` (Kingma & Welling 2014, eq. 10). For pixels
    log p(x | z) is the log-probability of the 8-bit value, the Gaussian's mass in its bin; else it is a density.

    Args:
        samples: K.
        beta: weight of the KL in the loss; 1 is the bound. Below, z keeps more of x, and looks less like N(0, I).
        eight_bit: whether the data are pixels, see `diffusion.likelihood`.
    """

    trains = Autoencoder

    def __init__(self, samples: int = 1, beta: float = 1.0, eight_bit: bool = True) -> None:
        super().__init__()
        check_positive(beta=beta)
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self.samples, self.beta = samples, beta
        self.nll = discretised_nll if eight_bit else gaussian_nll

    def forward(self, model: Autoencoder, batch: Mapping[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The loss of each sample, the bound and its two terms: "loss", "elbo_bpd", "reconstruction_bpd" and "kl_bpd",
        (B,) each."""
        self.check(model)
        x = batch["x"]
        mean, log_var = model.moments(x).chunk(2, dim=1)
        eps = [noise.normal(mean.shape[1:], step=k, draw=NOISE) for k in range(self.samples)]
        decoded = model.decode(torch.cat([reparameterized(mean, log_var, e) for e in eps]))
        nll = self.nll(x.repeat(self.samples, *[1] * (x.ndim - 1)), decoded, model.network.log_var.to(x))
        reconstruction = bits(nll.unflatten(0, (self.samples, len(x))).mean(0).flatten(1).mean(1))
        nothing = torch.zeros_like(mean)
        kl = bits(gaussian_kl(mean, log_var, nothing, nothing).flatten(1).sum(1)) / x[0].numel()
        terms = {"elbo_bpd": reconstruction + kl, "reconstruction_bpd": reconstruction, "kl_bpd": kl}
        return {"loss": reconstruction + self.beta * kl, **terms}


def reparameterized(mean: Tensor, log_var: Tensor, eps: Tensor) -> Tensor:
    """`mean + e^(log_var / 2) eps`."""
    return mean + torch.exp(log_var / 2) * eps.to(mean)
