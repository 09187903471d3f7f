"""Autoencoders: a variational one, its bound, and how a diffusion model lives in its latents.

A variational autoencoder is `p(x) = int p(x | z) N(z; 0, I) dz`. Its prior is a diffusion model too, one whose denoiser
is known, `PriorDenoiser`; a latent diffusion model puts a trained denoiser in that one's place, and leaves the rest.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffusion.denoisers import Condition, Denoiser, Prediction, TrainableDenoiser
from diffusion.models.autoencoder import Autoencoder, reparameterized
from diffusion.noise import Noise
from diffusion.objectives import ENCODE, Objective, ObjectiveWrapper
from diffusion.schedules import Schedule, expand, float64


class PriorDenoiser(Denoiser):
    """The exact denoiser of data that are N(0, I), `D = alpha_t x_t / (alpha_t^2 + sigma_t^2)`: it draws from an
    autoencoder's prior."""

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        alpha, sigma = self.schedule(float64(t))
        return Prediction(expand((alpha / (alpha**2 + sigma**2)).to(x_t), x_t) * x_t)


class Codec(nn.Module):
    """A frozen autoencoder whose latents have mean 0 and variance 1 in each channel, `(z - mean) / std`, over the data
    that `measure` saw (a scale for each channel where Rombach et al. 2022, arXiv 2112.10752, appendix G, have one).

    It never trains, and computes in full precision. Latents are draws from q(z | x), which is what the decoder knows.

    Args:
        autoencoder: trained.
        clip: whether data are pixels, so that what is decoded is clamped to [-1, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, autoencoder: Autoencoder, clip: bool) -> None:
        super().__init__()
        # The layout decides how convolutions round: the same one, wherever the autoencoder comes from.
        autoencoder.to(memory_format=torch.channels_last)
        self.autoencoder, self.clip = autoencoder.requires_grad_(False), clip
        self.latent_shape = autoencoder.latent_shape
        each = (self.latent_shape[0], *[1] * (len(self.latent_shape) - 1))
        device = autoencoder.network.log_var.device
        self.register_buffer("mean", torch.zeros(each, device=device))
        self.register_buffer("std", torch.ones(each, device=device))
        self.train(False)

    def train(self, mode: bool = True) -> "Codec":
        """It stays in evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def moments(self, x: Tensor) -> Tensor:
        """Means and log-variances of the autoencoder's own latents, (B, 2 C, ...), of data x (B, *S); moments stay."""
        # Latents are smaller than the data, so the shape tells which they are.
        if x.shape[1:] == (2 * self.latent_shape[0], *self.latent_shape[1:]):
            return x
        with torch.autocast(x.device.type, enabled=False):
            return self.autoencoder.moments(x)

    def measure(self, moments: Tensor) -> None:
        """Takes mean and standard deviation from the moments (N, 2 C, ...) of data.

        The variance of a draw is that of its means and the mean of its variances.
        """
        mean, log_var = moments.double().transpose(0, 1).flatten(1).chunk(2)  # (C, N ...) each
        variance = mean.var(1, correction=0) + log_var.exp().mean(1)
        self.mean.copy_(mean.mean(1).view_as(self.mean))
        self.std.copy_(variance.sqrt().view_as(self.std))

    def latents(self, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """Normalised latents (B, *latent_shape) of data x (B, *S), or of their moments; eps None is the posterior's
        mean, else its draw with this noise."""
        mean, log_var = self.moments(x).chunk(2, dim=1)
        return ((mean if eps is None else reparameterized(mean, log_var, eps)) - self.mean) / self.std

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Data (B, *S) of normalised latents."""
        with torch.autocast(z.device.type, enabled=False):
            x = self.autoencoder.decode(z * self.std + self.mean)
        return x.clamp(-1, 1) if self.clip else x


class LatentObjective(ObjectiveWrapper):
    """Another objective, which sees draws of the data's latents in the place of the data.

    Args:
        objective: the loss.
        codec: makes the latents; a part of the objective, so that checkpoints hold it, and no average or optimizer.
    """

    trains = TrainableDenoiser

    def __init__(self, objective: Objective, codec: Codec) -> None:
        super().__init__(objective)
        self.codec = codec

    def forward(self, model: nn.Module, batch: Mapping[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The loss of each sample; see `DenoisingObjective`."""
        z = self.codec.latents(batch["x"], noise.normal(self.codec.latent_shape, draw=ENCODE))
        out: dict[str, Tensor] = self.objective(model, dict(batch) | {"x": z}, noise)
        return out


def encoded(codec: Codec | None, x: Tensor) -> Tensor:
    """The posterior means of data's latents; without a codec the data themselves."""
    return x if codec is None else codec.latents(x)


def decoded(codec: Codec | None, schedule: Schedule, x_t: Tensor, t: Tensor) -> Tensor:
    """What a state shows: itself without a codec; else its data after scaling it by `(alpha_t^2 + sigma_t^2)^(-1/2)`.

    So scaled, latents have unit variance at every t as they have at t = 0, whatever the schedule: the decoder sees what
    it knows, and pure noise becomes a draw from the autoencoder's prior.
    """
    if codec is None:
        return x_t
    alpha, sigma = schedule(t)
    return codec.decode(expand((alpha**2 + sigma**2).rsqrt().to(x_t.dtype), x_t) * x_t)
