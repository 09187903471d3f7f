"""Scores of points in the plane, which need no features."""

import math

import numpy as np
import torch
from torch import Tensor

from diffusion.evaluation.metrics import REPLICATES, Score, from_replicates, random_parts, share

ANGLES = 32
LEAST = 8  # points that a two-sample test needs


def sliced_wasserstein(x: Tensor, y: Tensor, seed: int = 0, replicates: int | None = None) -> Score:
    """The sliced 2-Wasserstein distance of two equally large sets of points (N, 2), in the points' own unit.

    `(mean over directions and ranks (x_(i) - y_(i))^2)^(1/2)`, the projections on a direction being sorted (Bonneel et
    al. 2015, J. Math. Imaging Vis. 51, 22). In the plane 32 directions, evenly spread over the half circle, take the
    place of random ones.

    Raises:
        ValueError: unequal numbers of points, or points that are not in the plane.
    """
    if x.shape != y.shape or x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"two sets of as many points (N, 2) are needed, got {tuple(x.shape)} and {tuple(y.shape)}")
    angles = torch.arange(ANGLES, dtype=torch.float64) * (math.pi / ANGLES)
    directions = torch.stack((angles.cos(), angles.sin()))
    (x_sorted, x_order), (y_sorted, y_order) = (
        (points.double() @ directions).T.contiguous().sort(dim=1) for points in (x, y)
    )
    n, count = len(x), REPLICATES if replicates is None else replicates
    chosen = [random_parts(n, count, 2 * seed + side).bool() for side in (0, 1)]
    values = []
    for in_x, in_y in zip(*chosen, strict=True):
        # The sorted ones without those left out are still sorted.
        some_x, some_y = x_sorted[in_x[x_order]], y_sorted[in_y[y_order]]
        values.append((some_x - some_y).square().mean().sqrt())
    return from_replicates(torch.stack(values), lowest=0)


def two_sample_test(x: Tensor, y: Tensor, seed: int = 0) -> Score:
    """How often a classifier tells which of two sets (N, d) a point it has not seen is from: 0.5 for equal ones.

    The k-nearest-neighbour test of Lopez-Paz and Oquab 2017, arXiv 1610.06545: half of the points vote, k being the
    root of their number made odd, and the accuracy on the other half has a binomial interval.

    Raises:
        ValueError: unequal numbers of points, by which guessing alone would succeed, or fewer than 8.
    """
    if x.shape != y.shape or len(x) < LEAST:
        raise ValueError(f"two sets of as many points, at least {LEAST}, are needed, got {len(x)} and {len(y)}")
    points = torch.cat((x, y)).double()
    is_y = torch.arange(2 * len(x)) >= len(x)
    shuffle = np.random.RandomState(seed)
    halves = [torch.from_numpy(shuffle.permutation(len(x))) + offset for offset in (0, len(x))]
    voters, tested = (torch.cat([half[part::2] for half in halves]) for part in (0, 1))
    k = int(math.sqrt(len(voters))) // 2 * 2 + 1
    neighbours = torch.cdist(points[tested], points[voters]).topk(k, largest=False).indices
    said_y = is_y[voters][neighbours].sum(1) * 2 > k
    return share((said_y == is_y[tested]).sum().item(), len(tested))
