"""The network of the Lightning DDPM tutorial: max-pooled down, bilinear up, attention at 8x8 and 4x4, 12.9 M
parameters."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.networks.embedding import sinusoidal
from diffusion.networks.image import check_size, cropped, margins, padded


class Double(nn.Module):
    """Two 3x3 convolutions without bias, each with one-group normalisation, a GELU between: f, or `gelu(x + f(x))`."""

    def __init__(self, c_in: int, c_mid: int, c_out: int, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.Sequential(
            nn.Conv2d(c_in, c_mid, 3, padding=1, bias=False),
            nn.GroupNorm(1, c_mid),
            nn.GELU(),
            nn.Conv2d(c_mid, c_out, 3, padding=1, bias=False),
            nn.GroupNorm(1, c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.layers(x)) if self.residual else self.layers(x)


class Down(nn.Module):
    """Halves the resolution; the step's sinusoidal encoding, as wide as the map, is added at the end."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.MaxPool2d(2), Double(c_in, c_in, c_in, residual=True), Double(c_in, c_out, c_out)
        )

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return _add_step(self.layers(x), c_noise)


class Up(nn.Module):
    """Doubles the resolution, joins the skip connection (c_in channels together) and adds the step's encoding."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.layers = nn.Sequential(Double(c_in, c_in, c_in, residual=True), Double(c_in, c_in // 2, c_out))

    def forward(self, x: Tensor, skip: Tensor, c_noise: Tensor) -> Tensor:
        return _add_step(self.layers(torch.cat((skip, self.upsample(x)), dim=1)), c_noise)


class Attention(nn.Module):
    """Self-attention over positions, then a two-layer perceptron; layer-normalised and residual both."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(2).transpose(1, 2)  # (B, HW, C)
        normed = self.norm(h)
        h = h + self.attention(normed, normed, normed, need_weights=False)[0]
        h = h + self.mlp(h)
        return h.transpose(1, 2).reshape(x.shape)


class TutorialUNet(nn.Module):
    """The published network, layer for layer and parameter for parameter.

    Args:
        shape: (C, H, W).
        pad: images whose height or width 8 does not divide are padded by zeros, and the output is cropped.
    """

    num_classes = 0
    ends = ("inc.layers.0", "outc")

    def __init__(self, shape: Sequence[int], pad: bool = False) -> None:
        super().__init__()
        self.multiple = check_size("tutorial", shape, 8, "three halvings", pad)
        channels = shape[0]
        self.inc = Double(channels, 64, 64)
        self.down1, self.down2, self.down3 = Down(64, 128), Down(128, 256), Down(256, 256)
        self.sa1, self.sa2 = Attention(256), Attention(256)
        self.up1, self.up2, self.up3 = Up(512, 128), Up(256, 64), Up(128, 64)
        self.sa3 = Attention(128)
        self.outc = nn.Conv2d(64, channels, 1)

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """F, shaped like x (B, C, H, W); c_noise (B,) is the step."""
        around = margins(x.shape[-2:], self.multiple)
        x1 = self.inc(padded(x, around))
        x2 = self.down1(x1, c_noise)
        x3 = self.sa1(self.down2(x2, c_noise))
        x4 = self.sa2(self.down3(x3, c_noise))
        h = self.sa3(self.up1(x4, x3, c_noise))
        h = self.up2(h, x2, c_noise)
        return cropped(self.outc(self.up3(h, x1, c_noise)), around)


def _add_step(x: Tensor, c_noise: Tensor) -> Tensor:
    return x + sinusoidal(c_noise, x.shape[1]).to(x.dtype)[:, :, None, None]
