"""Augmentation that does not leak into samples: the network is conditioned on what was done to each image, and
samples with nothing done (Karras et al. 2022, arXiv 2206.00364, appendix F.2)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from data.stream import random_numbers

# A sample's random numbers are those of this purpose; `data.stream` and `data.conditions` have those below.
_GATES, _SIZES = 7, 8
LENGTH = 9  # of the vector that states what was done
SCALE, SHIFT = 0.2, 0.125  # powers of two a unit of scaling and of anisotropy, and image sides a unit of translation


class Augmentation:
    """Six transformations, each with the same probability, and the vector that states them.

    In this order an image is mirrored left-right (in half of the cases) and upside down (likewise), scaled by `2^(0.2
    a)`, turned by an angle b, stretched by `2^(0.2 c)` along the direction d and squeezed by as much across it, and
    moved by (e, f) / 8 of its width and height; a, e and f are from N(0, 1), c is the absolute value of such a number,
    b and d are uniform in (-pi, pi). Beyond its edges an image goes on as in a mirror. All but the mirrorings are one
    bicubic interpolation.

    The vector is `(left-right, upside down, a, cos b - 1, sin b, c cos d, c sin d, e, f)`, zero for what was not done.
    The paper's c has both signs, and one vector then states two transformations.

    Args:
        probability: of each transformation, in (0, 1].

    Raises:
        ValueError: the probability is out of its range.
    """

    def __init__(self, probability: float) -> None:
        if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 < probability <= 1:
            raise ValueError(f"dataset.augment must be a probability, from 0 (off) to 1, got {probability!r}")
        self.probability = probability

    def __call__(self, x: Tensor, seed: int, serials: Tensor) -> tuple[Tensor, Tensor]:
        """Images (b, C, H, W) in [-1, 1], transformed, and the vectors (b, 9); a function of (seed, serial) each."""
        vectors = self.vectors(seed, serials)
        for column, side in ((0, 3), (1, 2)):
            x = torch.where(vectors[:, column, None, None, None] == 1, x.flip(side), x)
        moved = (vectors[:, 2:] != 0).any(1)
        if moved.any():
            x = x.clone()
            x[moved] = warped(x[moved], vectors[moved])
        return x, vectors

    def vectors(self, seed: int, serials: Tensor) -> Tensor:
        """What is done to the images with these serials (b,), (b, 9)."""
        u = random_numbers(torch.rand, (10,), seed, serials, _GATES)
        mirror, upside, scaled, turned, stretched, shifted = (u[:, :6] < self.probability).float().unbind(1)
        a, c, e, f = random_numbers(torch.randn, (4,), seed, serials, _SIZES).unbind(1)
        b, d = (math.pi * (2 * u[:, 8:] - 1)).unbind(1)
        b = turned * b
        return torch.stack(
            [
                *(mirror * (u[:, 6] < 0.5), upside * (u[:, 7] < 0.5), scaled * a),
                *(
                    b.cos() - 1,
                    b.sin(),
                    stretched * c.abs() * d.cos(),
                    stretched * c.abs() * d.sin(),
                    shifted * e,
                    shifted * f,
                ),
            ],
            dim=1,
        )


def warped(x: Tensor, vectors: Tensor) -> Tensor:
    """Images (b, C, H, W) scaled, turned, stretched and moved as their vectors (b, 9) state, in [-1, 1].

    `grid_sample` asks where each pixel comes from, so the inverses of rotation R, stretch Q and scale s are multiplied:
    `x_in = R^-1 Q^-1 (x_out - shift) / s`, in pixels from the centre, y pointing down.
    """
    height, width = x.shape[2:]
    scale, cosine, sine = (SCALE * vectors[:, 2]).exp2(), vectors[:, 3] + 1, vectors[:, 4]
    size = vectors[:, 5:7].norm(dim=1)
    along = vectors[:, 5:7] / torch.where(size > 0, size, 1)[:, None]  # (cos d, sin d)
    turn = torch.stack((cosine, sine, -sine, cosine), dim=1).view(-1, 2, 2)  # by -b
    stretch = (-SCALE * size).exp2()
    # By 1 / s along the direction and by s across it: s I + (1 / s - s) d d^T, with 1 / s = `stretch`.
    identity, outer = torch.eye(2), along[:, :, None] * along[:, None]
    squeeze = identity / stretch[:, None, None] + (stretch - 1 / stretch)[:, None, None] * outer
    inverse = turn @ squeeze / scale[:, None, None]
    side = torch.tensor([width, height]) / 2
    shift = 2 * SHIFT * vectors[:, 7:] * side
    # From pixels to the coordinates of grid_sample, in which each side is 2.
    linear = inverse * side / side[:, None]
    offset = -(inverse @ shift[:, :, None])[:, :, 0] / side
    grid = F.affine_grid(torch.cat((linear, offset[:, :, None]), dim=2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(-1, 1)


def augmentation(probability: float, shape: Sequence[int]) -> Augmentation | None:
    """The augmentation of data of this shape, None with the probability 0; ValueError for data that are no images."""
    if probability == 0 and not isinstance(probability, bool):
        return None
    if len(shape) != 3:
        raise ValueError(f"dataset.augment={probability}: only images can be augmented")
    return Augmentation(probability)
