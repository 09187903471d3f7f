"""Distances between two sets of feature vectors, each with an interval.

Features are (N, d), one row an image, and are computed with in float64. An interval is `value +- 1.96 s` with s from a
delete-d jackknife (Shao and Wu 1989, Ann. Stat. 17, 1176): the score is computed again from random parts of both sets,
drawn without replacement, as a row that occurs twice would be its own nearest neighbour. It covers what other sets
*of the same sizes* would give, not the limit of infinite sets, from which a finite set's Frechet distance is biased
upward. How often it does was measured: docs/evaluation.md.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

REPLICATES = 200
HALF = 0.5  # of the rows are kept in a replicate
# Where two sets are alike a Frechet distance is a quadratic form of their small differences, and parts that keep the
# share k find 1 + 1/k times its variance: 3 times with halves, 2.1 with these. Scores that are not smooth need halves.
NEARLY_ALL = 0.9
_CHUNK = 2**22  # distances or kernel values held at a time
_WIDE = 512  # features beyond which a Frechet distance takes seconds, so that there are a tenth of the replicates
_INSIDE = 1 - 1e-9  # of a radius: a distance that equals it but for rounding is not within
_NEAREST = 6  # rows that a fifth neighbour needs
_Z95 = 1.959964


@dataclass(frozen=True)
class Score:
    """A value and an interval around it; how often that covers the truth, docs/evaluation.md says."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def from_replicates(values: Tensor, kept: float = HALF, lowest: float = -math.inf, highest: float = math.inf) -> Score:
    """The score whose value is values[0] and whose replicates are the others, (1 + replicates,).

    `s^2 = k / (1 - k) * var(replicates)`, each of them from the share k of the rows. Value and bounds stay between the
    least and the greatest value that the score can have. Without replicates the bounds are NaN.
    """
    value = min(max(values[0].item(), lowest), highest)  # rounding can leave -1e-15 of a distance
    if len(values) <= 2:
        return Score(value, math.nan, math.nan)
    half = _Z95 * math.sqrt(kept / (1 - kept)) * values[1:].std().item()
    return Score(value, max(lowest, value - half), min(highest, value + half))


def share(successes: float, trials: int) -> Score:
    """A share of independent trials with Wilson's interval (Wilson 1927, J. Am. Stat. Assoc. 22, 209)."""
    if trials < 1:
        raise ValueError("a share needs at least one trial")
    p, z2 = successes / trials, _Z95**2 / trials
    half = math.sqrt(z2 * (p * (1 - p) + z2 / 4)) / (1 + z2)
    centre = (p + z2 / 2) / (1 + z2)
    return Score(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def _count(replicates: int | None) -> int:
    return REPLICATES if replicates is None else replicates


def random_parts(n: int, replicates: int, seed: int, kept: float = HALF) -> Tensor:
    """(1 + replicates, n) float64: 1 for each of n rows that a replicate has; the first line, all ones, is the set."""
    # RandomState's stream is frozen: the same parts whatever the version or the machine.
    draws, size = np.random.RandomState(seed), round(n * kept)
    weights = torch.zeros(1 + replicates, n, dtype=torch.float64)
    weights[0] = 1
    for line in weights[1:]:
        line[torch.from_numpy(draws.permutation(n)[:size])] = 1
    return weights


def least_rows(d: int) -> int:
    """Rows of d features from which every score has its interval: a Frechet distance's parts need more than d."""
    return max(2 * _NEAREST, math.ceil((d + 1) / NEARLY_ALL))


def gaussian_frechet(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> Tensor:
    """The squared Frechet (2-Wasserstein) distance of Gaussians, `|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))`.

    Means (*, d), covariances (*, d, d); Dowson and Landau 1982, J. Multivar. Anal. 12, 450; as a score of images
    Heusel et al. 2017, arXiv 1706.08500, eq. 6.
    """
    values, vectors = torch.linalg.eigh(cov_x)
    root = (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ cov_y @ root).clamp(min=0).sqrt().sum(-1)
    traces = (cov_x + cov_y).diagonal(dim1=-2, dim2=-1).sum(-1)
    return ((mean_x - mean_y) ** 2).sum(-1) + traces - 2 * cross


def frechet_distance(x: Tensor, y: Tensor, seed: int = 0, replicates: int | None = None) -> Score:
    """The squared Frechet distance between the Gaussians that fit x (N, d) and y (M, d); 0 replicates: no interval.

    Raises:
        ValueError: not more rows than features in one of them, so that its covariance has no full rank.
    """
    d = x.shape[1]
    if min(len(x), len(y)) <= d:
        raise ValueError(
            f"n={min(len(x), len(y))} is too small for a Frechet distance of {d} features: more than {d} are needed"
        )
    replicates = _count(replicates) if d <= _WIDE else _count(replicates) // 10
    centre = y.double().mean(0)  # keeps the digits of covariances of features far from 0
    sides: list[Sequence[Tensor]] = []
    for side, rows in enumerate((x, y)):
        centred = rows.double() - centre
        moments = [
            _moments(centred[w]) for w in random_parts(len(rows), replicates, 2 * seed + side, NEARLY_ALL).bool()
        ]
        sides += [torch.stack(values).split(_rows(d * d)) for values in zip(*moments, strict=True)]
    values = torch.cat([gaussian_frechet(*some) for some in zip(*sides, strict=True)])
    return from_replicates(values, NEARLY_ALL, lowest=0)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and unbiased covariance (d, d) of rows."""
    return x.mean(0), x.T.cov().reshape(x.shape[1], -1)  # of one feature `cov` gives a scalar


def kernel_distance(x: Tensor, y: Tensor, seed: int = 0, replicates: int | None = None) -> Score:
    """The squared maximum mean discrepancy of x (N, d) and y (M, d) with the kernel `(a.b / d + 1)^3`, unbiased.

    Binkowski et al. 2018, arXiv 1801.01401, section 4 ("KID"), over all pairs instead of random subsets, so that it
    has no subset size and no randomness. It may be negative: 0 is the expectation of equal distributions.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a kernel distance needs at least 2 samples of each, got {len(x)} and {len(y)}")
    x, y = x.double(), y.double()
    w_x, w_y = (random_parts(len(rows), _count(replicates), 2 * seed + side) for side, rows in enumerate((x, y)))
    cross = _weighted_kernel(x, y, w_x, w_y) / (w_x.sum(1) * w_y.sum(1))
    return from_replicates(_within_mean(x, w_x) + _within_mean(y, w_y) - 2 * cross)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _weighted_kernel(x: Tensor, y: Tensor, w_x: Tensor, w_y: Tensor) -> Tensor:
    """`sum_ij w_x[b, i] k(x_i, y_j) w_y[b, j]`, (B,)."""
    total = torch.zeros(len(w_x), dtype=torch.float64)
    for rows, w in zip(_chunks(x, len(y)), w_x.split(_rows(len(y)), dim=1), strict=True):
        total += (w @ _kernel(rows, y) * w_y).sum(1)
    return total


def _within_mean(x: Tensor, w: Tensor) -> Tensor:
    """The mean kernel over pairs of different rows, (B,)."""
    itself = ((x**2).sum(1) / x.shape[1] + 1) ** 3
    return (_weighted_kernel(x, x, w, w) - w @ itself) / (w.sum(1) * (w.sum(1) - 1))


def neighbour_scores(fake: Tensor, real: Tensor, seed: int = 0, replicates: int | None = None) -> dict[str, Score]:
    """Whether fake (N, d) lies where real (M, d) is, and the reverse, by the balls that reach to a k-th neighbour.

    - precision: share of fakes inside the ball of some real (k = 3); recall: of reals inside that of some fake
      (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 2).
    - density: number of reals' balls (k = 5) that a fake is in, over k, 1 where both are alike; coverage: share of
      reals whose ball has a fake in it (Naeem et al. 2020, arXiv 2002.09797, eq. 5 and 6).

    A ball is open, as in the reference code of both (prdc): what lies just at a k-th neighbour's distance is outside.
    Verbatim copies of distinct reals therefore have the density 1. Intervals of shares are at least Wilson's and end at
    0 and 1; that of a density, which may be above 1, at 0.

    Raises:
        ValueError: fewer than 6 rows in one of them, or 12 with an interval, for which halves are scored too.
    """
    replicates = _count(replicates) // 10
    needed = 2 * _NEAREST if replicates else _NEAREST
    if min(len(fake), len(real)) < needed:
        raise ValueError(
            f"n={min(len(fake), len(real))} is too small for precision and coverage: at least {needed} are needed"
        )
    chosen = [random_parts(len(rows), replicates, 2 * seed + side).bool() for side, rows in enumerate((fake, real))]
    values = [_neighbour_values(fake[of_fake], real[of_real]) for of_fake, of_real in zip(*chosen, strict=True)]
    found = {name: from_replicates(torch.stack([value[name] for value in values]), lowest=0) for name in values[0]}
    trials = {"precision": len(fake), "recall": len(real), "coverage": len(real)}
    return {
        name: at_least(score, share(score.value * trials[name], trials[name])) if name in trials else score
        for name, score in found.items()
    }


def _neighbour_values(fake: Tensor, real: Tensor) -> dict[str, Tensor]:
    fake, real = fake.double(), real.double()
    third, fifth = kth_distances(real, (3, 5))
    (third_fake,) = kth_distances(fake, (3,))
    return {
        "precision": (counts_within(fake, real, third) > 0).double().mean(),
        "recall": (counts_within(real, fake, third_fake) > 0).double().mean(),
        "density": counts_within(fake, real, fifth).double().mean() / 5,
        "coverage": (nearest(real, fake)[0] < _INSIDE * fifth).double().mean(),
    }


def at_least(score: Score, other: Score) -> Score:
    """A share's score with an interval that contains another's too, within 0 and 1."""
    return Score(score.value, max(0.0, min(score.low, other.low)), min(1.0, max(score.high, other.high)))


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances of rows of x (N, d) and y (M, d), (N, M); 0 where rounding alone tells the rows apart."""
    found = torch.cdist(x, y)  # by a matrix product, which leaves about 1e-8 of the rows' length between equal ones
    return found.where(found > 1e-7 * y.norm(dim=1), 0)


def kth_distances(x: Tensor, ks: tuple[int, ...]) -> list[Tensor]:
    """Distance from each row of x (N, d) to its k-th neighbour among the others, (N,) for each k."""
    # A row's own distance, 0, is the smallest; rows that are equal count as neighbours.
    parts = [distances(rows, x).topk(max(ks) + 1, largest=False).values for rows in _chunks(x, len(x))]
    sorted_distances = torch.cat(parts)
    return [sorted_distances[:, k] for k in ks]


def counts_within(x: Tensor, y: Tensor, radii: Tensor) -> Tensor:
    """How many open balls around the rows of y (M, d), of radii (M,), each row of x (N, d) is in: (N,)."""
    return torch.cat([(distances(rows, y) < _INSIDE * radii).sum(1) for rows in _chunks(x, len(y))])


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and index of the row of y (M, d) that is nearest to each row of x (N, d): (N,), (N,)."""
    found = [distances(rows, y).min(1) for rows in _chunks(x, len(y))]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def copying_share(fake_distances: Tensor, real_distances: Tensor, seed: int = 0) -> Score:
    """How often a fake is nearer to the training set than a real test image is, a tie being half: 0.5 without copying.

    `P(d_fake < d_real)` over all pairs, the Mann-Whitney statistic of Meehan et al. 2020, arXiv 2004.05675, section 3;
    arguments (N,) and (M,) are distances to the nearest training image.
    """
    combined = torch.cat((fake_distances, real_distances)).double()
    w_fake, w_real = (
        random_parts(len(d), REPLICATES, 2 * seed + side) for side, d in enumerate((fake_distances, real_distances))
    )
    # Reals farther away than each fake, by a cumulative sum over the sorted distances.
    _, rank = combined.unique(return_inverse=True)
    n, size = len(fake_distances), int(rank.max()) + 1
    at = torch.zeros(len(w_real), size, dtype=torch.float64).index_add_(1, rank[n:], w_real)
    beyond = at.sum(1, keepdim=True) - at.cumsum(1) + at / 2
    return from_replicates((w_fake * beyond[:, rank[:n]]).sum(1) / (w_fake.sum(1) * w_real.sum(1)), lowest=0, highest=1)


def histogram_distance(fake: Tensor, real: Tensor, classes: int, seed: int = 0) -> Score:
    """The total variation distance `sum_c |p_c - q_c| / 2` of two sets of labels (N,), (M,): 0 equal, 1 disjoint."""
    weights = [random_parts(len(labels), REPLICATES, 2 * seed + side) for side, labels in enumerate((fake, real))]
    shares = [
        w @ torch.nn.functional.one_hot(labels, classes).double() / w.sum(1, keepdim=True)
        for w, labels in zip(weights, (fake, real), strict=True)
    ]
    return from_replicates((shares[0] - shares[1]).abs().sum(1) / 2, lowest=0, highest=1)


def _rows(width: int) -> int:
    return max(1, _CHUNK // width)


def _chunks(x: Tensor, width: int) -> Iterator[Tensor]:
    """Rows of x, so many that a table of them with `width` columns stays small."""
    yield from x.split(_rows(width))
