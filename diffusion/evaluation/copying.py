"""Whether samples are copies of training images: their nearest neighbours, pixel by pixel."""

from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.evaluation.cache import Cache, fingerprint
from diffusion.evaluation.metrics import Score, copying_share
from diffusion.evaluation.table import Row

_CHUNK = 5000  # training images compared with at a time


def neighbours(images: Tensor, training: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest training images of each image, by root mean square difference of their bytes.

    Args:
        images: bytes (n, C, H, W).
        training: bytes (N, C, H, W), N >= k.
        k: how many.

    Returns:
        Distances (n, k) in grey levels, 0 for a copy, rising; indices (n, k) into `training`.
    """
    k = min(k, len(training))
    x = images.flatten(1).float()
    found: list[tuple[Tensor, Tensor]] = []
    for first in range(0, len(training), _CHUNK):
        y = training[first : first + _CHUNK].flatten(1).float()
        squares = (y**2).sum(1) - 2 * x @ y.T  # but for |x|^2, which is the same for all y
        best = squares.topk(min(k, len(y)), largest=False)
        found.append((best.values, best.indices + first))
    values, indices = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    nearest = indices.gather(1, values.topk(k, largest=False).indices)
    # Differences of large numbers above: a copy's distance is exactly 0 only when taken directly.
    exact = torch.stack([_difference(x, training[nearest[:, i]].flatten(1).float()) for i in range(k)], dim=1)
    order = exact.argsort(dim=1, stable=True)
    return exact.gather(1, order), nearest.gather(1, order)


def _difference(x: Tensor, y: Tensor) -> Tensor:
    return ((x - y) ** 2).mean(1).sqrt()


def copying_row(distances: Tensor, real: Tensor, training: Tensor, cache: Cache, seed: int = 0) -> Row:
    """The share of pairs of a sample and a real test image in which the sample is nearer to the training set.

    Args:
        distances: of the samples to their nearest training images, (n,).
        real: bytes (n, C, H, W), no training images.
        training: bytes (N, C, H, W).
        cache: keeps the distances of the real images.
        seed: of the intervals.
    """
    key = {"real": fingerprint(real), "training": fingerprint(training)}
    made = cache.get("nearest", key, lambda: {"distances": neighbours(real, training, 1)[0][:, 0].numpy()})
    return Row(f"copying_pixels_n{len(distances)}", copying_share(distances, torch.from_numpy(made["distances"]), seed))


class Copying(NamedTuple):
    """Two shares of the pairs of a sample and a held-out image, each 0.5 without copying and 1 for a copycat.

    Blurred samples come near to many training images at once, copies to one alone: the first share is high for both,
    the second for copies.
    """

    nearer: Score  # in which the sample is nearer to the training set
    single: Score  # in which the sample's nearest training image stands out more from its second nearest

    @property
    def found(self) -> bool:
        """Whether both shares are above 0.5 with their whole intervals."""
        return min(self.nearer.low, self.single.low) > 0.5


class Watch:
    """Compares samples with training images as held-out images compare with them.

    Args:
        real: bytes (n, C, H, W), no training images.
        training: bytes (N, C, H, W), at least two.
    """

    def __init__(self, real: Tensor, training: Tensor) -> None:
        self.training, self._real = training, neighbours(real, training, 2)[0]

    def __call__(self, fake: Tensor) -> Copying:
        """The shares of samples, bytes (m, C, H, W)."""
        found = neighbours(fake, self.training, 2)[0]
        return Copying(
            copying_share(found[:, 0], self._real[:, 0]), copying_share(_isolated(found), _isolated(self._real))
        )


def _isolated(distances: Tensor) -> Tensor:
    """The nearest distance over the second nearest, (n,) of (n, 2); 1 where both are 0."""
    return torch.where(distances[:, 1] > 0, distances[:, 0] / distances[:, 1].clamp(min=1e-9), 1)
