"""Two-dimensional point sets: small enough to see what a model does, and trained in seconds."""

import numpy as np
import torch
from sklearn.datasets import make_moons, make_swiss_roll

from data.stream import Points, Splits, whole

# The default noise is in the units of each set's own construction.
_NOISE = {"swissroll": 0.5, "moons": 0.05, "gaussians": 0.1, "checkerboard": 0.0}


def swissroll(n: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's roll seen from above, divided by 10 (Sohl-Dickstein et al. 2015, arXiv 1503.03585)."""
    points, _ = make_swiss_roll(n, noise=noise, random_state=seed)
    return points[:, [0, 2]] / 10, np.zeros(n)


def moons(n: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's two moons, centred and stretched to [-2, 2]; the label is the moon."""
    points, labels = make_moons(n, noise=noise, random_state=seed)
    return (points - [0.5, 0.25]) * 4 / 3, labels


def gaussians(n: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return eight Gaussians of standard deviation `noise` on a ring of radius 1.6; the label is the component."""
    random = np.random.RandomState(seed)
    labels = random.randint(8, size=n)
    angles = labels * np.pi / 4
    return 1.6 * np.stack([np.cos(angles), np.sin(angles)], 1) + noise * random.standard_normal((n, 2)), labels


def checkerboard(n: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points uniform on the eight dark unit cells of a 4x4 board on [-2, 2]^2, plus Gaussian `noise`."""
    random = np.random.RandomState(seed)
    column = random.randint(4, size=n)
    row = 2 * random.randint(2, size=n) + column % 2
    points = np.stack([column, row], 1) + random.random_sample((n, 2)) - 2
    return points + noise * random.standard_normal((n, 2)), np.zeros(n)


_KINDS = {"swissroll": swissroll, "moons": moons, "gaussians": gaussians, "checkerboard": checkerboard}


class Toy2d:
    """`n` training points of a two-dimensional distribution, and a tenth as many fresh ones each to validate and test.

    Args:
        kind: swissroll, moons, gaussians or checkerboard.
        n: number of training points.
        seed: of the training points.
        noise: standard deviation of the Gaussian noise, in the units of the set's construction; None: the set's own.

    Raises:
        ValueError: an argument is out of its range.
    """

    shape = (2,)

    def __init__(self, kind: str = "swissroll", n: int = 20_000, seed: int = 0, noise: float | None = None) -> None:
        if kind not in _KINDS:
            raise ValueError(f"kind={kind}: must be one of {', '.join(_KINDS)}")
        self.kind, self.n, self.seed = kind, whole("n", n, 1), whole("seed", seed, 0, 2**31 - 1)
        self.noise = _NOISE[kind] if noise is None else noise
        if not isinstance(self.noise, (int, float)) or not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise={noise}: must be a number of at least 0")

    def load(self) -> Splits:
        """Draw the points."""
        fewer = max(1, self.n // 10)
        # Far apart, so that the validation points of one seed are not the training points of the next.
        return Splits(
            self._draw(self.n, self.seed),
            self._draw(fewer, self.seed + 2**31),
            self._draw(fewer, 2**32 - 1 - self.seed),
        )

    def _draw(self, n: int, seed: int) -> Points:
        points, labels = _KINDS[self.kind](n, self.noise, seed)
        return Points(torch.from_numpy(points), torch.from_numpy(labels))
