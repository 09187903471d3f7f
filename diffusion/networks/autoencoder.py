"""The two networks of an autoencoder: from images to the moments of their latents, and back."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion.networks.image import cropped, margins, padded
from diffusion.networks.unet import ResBlock, blocks_by_level, check_levels, normalisation


class AutoencoderNetwork(nn.Module):
    """Residual blocks at falling resolutions, and their mirror image.

    An image (C, H, W) has latents (latent, H / f, W / f), f = patch * 2^(levels - 1), 2 at least; with `pad` H / f and
    W / f are rounded up.

    Args:
        shape: (C, H, W) of the data.
        latent: channels of the latents.
        widths: channels of each level; each level but the last halves the resolution.
        blocks: residual blocks a level, or a number for each level, on either side.
        patch: side of the squares that are folded into channels first (1 for none).
        pad: images whose height or width f does not divide are padded by zeros, and cropped when they are decoded.
    """

    num_classes = 0  # takes no labels
    not_for_denoising = "this network encodes and decodes, and does not denoise"
    ends = ("encoder.1", "to_moments", "decoder.0", "to_data")

    def __init__(
        self,
        shape: Sequence[int],
        latent: int = 4,
        widths: Sequence[int] = (32, 64),
        blocks: int | Sequence[int] = 1,
        patch: int = 2,
        pad: bool = False,
    ) -> None:
        super().__init__()
        multiple = check_levels("autoencoder", shape, widths, blocks, (), patch, pad)
        factor = patch * 2 ** (len(widths) - 1)
        if latent < 1 or factor < 2:
            raise ValueError(
                f"an autoencoder needs latent of at least 1 and a lower resolution, got {latent=} and {patch=} "
                f"with {len(widths)} level: give patch=2, or two widths"
            )
        channels, height, width = self.shape = tuple(shape)
        self.margins = margins((height, width), multiple)
        self.latent_shape = (latent, -(-height // factor), -(-width // factor))
        counts = blocks_by_level(blocks, widths)
        encoder: list[nn.Module] = [nn.PixelUnshuffle(patch), _conv(channels * patch**2, widths[0])]
        decoder: list[nn.Module] = [_conv(latent, widths[-1])]
        before = widths[0]
        for level, width in enumerate(widths):
            if level:
                encoder.append(nn.Conv2d(before, before, 3, stride=2, padding=1))
            for _ in range(counts[level]):
                encoder.append(ResBlock(before, width, emb=0))
                before = width
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(counts[level]):
                decoder.append(ResBlock(before, width, emb=0))
                before = width
            if level:
                decoder += [nn.Upsample(scale_factor=2, mode="nearest"), _conv(before, before)]
        self.encoder = nn.Sequential(*encoder, normalisation(widths[-1]), nn.SiLU())
        self.decoder = nn.Sequential(*decoder, normalisation(widths[0]), nn.SiLU())
        self.to_moments = _conv(widths[-1], 2 * latent)
        self.to_data = nn.Sequential(_conv(widths[0], channels * patch**2), nn.PixelShuffle(patch))
        # Where data in [-1, 1] begin. Adam moves a weight by about its rate a step, too little for a log-variance that
        # has far to go, so the weight is a tenth of it.
        self.tenth_of_log_var = nn.Parameter(torch.tensor(2 * math.log(0.5) / 10))

    @property
    def log_var(self) -> Tensor:
        """Log-variance of a value given z, a scalar."""
        return 10 * self.tenth_of_log_var

    def encode(self, x: Tensor) -> Tensor:
        """Means and log-variances of the latents, one after the other, (B, 2 latent, h, w), from x (B, C, H, W)."""
        moments: Tensor = self.to_moments(self.encoder(padded(x, self.margins)))
        return moments

    def decode(self, z: Tensor) -> Tensor:
        """The mean of the data, (B, C, H, W), from z (B, latent, h, w)."""
        return cropped(self.to_data(self.decoder(z)), self.margins)

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Raises ValueError: it has two ways, and neither denoises."""
        raise ValueError(self.not_for_denoising)


def _conv(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)
