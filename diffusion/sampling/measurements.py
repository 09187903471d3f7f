"""Linear measurements of images, by which an unconditional model restores them: `MeasurementGuidance` with these."""

import torch.nn.functional as F
from torch import Tensor, nn

from data.conditions import blurred, luminance

# Of rounding to 8 bits: a uniform distribution over one grey level, 2 / 255, has this standard deviation.
ROUNDING = 2 / 255 / 12**0.5


class Blur(nn.Module):
    """Images blurred by a Gaussian, see `data.conditions.blurred`.

    Args:
        width: its standard deviation in pixels.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of images of this shape."""
        return blurred(x, x.new_full((len(x),), self.width))


class Downsample(nn.Module):
    """The mean of each square of pixels.

    Args:
        factor: side of the squares.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H / factor, W / factor) of images (B, C, H, W)."""
        return F.avg_pool2d(x, self.factor)


class Known(nn.Module):
    """The pixels that are known, and zero where none is.

    Args:
        known: (1, H, W), 1 where a pixel is known, else 0.
    """

    known: Tensor

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.register_buffer("known", known)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of images of this shape."""
        return self.known.to(x) * x


class Grey(nn.Module):
    """The luminance of colour images."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) of images (B, 3, H, W)."""
        return luminance(x)
