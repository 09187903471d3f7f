"""An average of the weights whose length is chosen after training (Karras et al. 2024, EDM2, arXiv 2312.02696, section
3 and appendix C).

A power-function average at step T weighs the weights of step tau by a profile `p(tau) = (gamma + 1) tau^gamma /
T^(gamma + 1)`. Its width sigma_rel is the profile's standard deviation over T. From snapshots of two such averages,
taken now and then during training, any other is put together by least squares on the profiles.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

WIDEST = 0.28  # of sigma_rel; gamma = 0, the mean of all steps, has 12^-0.5 = 0.2887


def exponent(sigma_rel: float) -> float:
    """gamma of the profile of this width, the root of `sigma_rel^2 (gamma + 2)^2 (gamma + 3) = gamma + 1`.

    Raises:
        ValueError: sigma_rel does not lie in (0, 0.28].
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"sigma_rel must lie in (0, {WIDEST}], got {sigma_rel}")
    return float(np.roots([1, 7, 16 - sigma_rel**-2, 12 - sigma_rel**-2]).real.max())


def spacing(step: int, most: int) -> int:
    """Steps between the snapshots to keep at this step: a power of two that leaves at most `most` of them.

    It depends on nothing else, so that a resumed or prolonged run has the snapshots of an uninterrupted one.
    """
    return 1 << (-(-step // most) - 1).bit_length()


def coefficients(steps: Sequence[int], gammas: Sequence[float], step: int, gamma: float) -> tuple[Tensor, float]:
    """The combination of known averages that comes nearest to a wanted one.

    Args:
        steps: at which the known averages were taken; none twice with one gamma.
        gammas: theirs.
        step: of the wanted average.
        gamma: its own.

    Returns:
        Coefficients c (n,), float64, which sum to 1 so that weights that never move stay as they are, and the distance
        `||sum_i c_i p_i - p|| / ||p||` of the profiles that remains.
    """
    t = torch.tensor([*steps, step], dtype=torch.float64) / step
    g = torch.tensor([*gammas, gamma], dtype=torch.float64)
    # <p_i, p_j>, an integral over the shorter profile, in ratios of steps: powers of steps would overflow
    ratio = torch.where(t[:, None] <= t, t[:, None] / t, t / t[:, None]) ** torch.where(t[:, None] <= t, g, g[:, None])
    products = (g[:, None] + 1) * (g + 1) * ratio / ((g[:, None] + g + 1) * torch.maximum(t[:, None], t))
    gram, wanted = products[:-1, :-1], products[:-1, -1]
    # Least squares with a Lagrange multiplier for the sum, of profiles scaled to length 1.
    length = gram.diagonal().sqrt()
    n = len(gram)
    system = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    system[:n, :n] = gram / length / length[:, None]
    system[n, :n] = system[:n, n] = 1 / length
    right = torch.cat((wanted / length, torch.ones(1, dtype=torch.float64)))
    c = torch.linalg.solve(system, right)[:n] / length
    error = (c @ gram @ c - 2 * c @ wanted + products[-1, -1]) / products[-1, -1]
    return c, error.clamp(min=0).sqrt().item()


class EMA:
    """Exponential moving average of the weights with a warm-up.

    After k optimizer steps the decay is `min(decay, (1 + k) / (10 + k))`: early on the average spans the last tenth of
    the training so far, a power-function average (Karras et al. 2024, arXiv 2312.02696, eq. 3), later about 1 / (1 -
    decay) steps.

    Args:
        decay: per optimizer step, in [0, 1).
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay

    def weights(self, step: int) -> list[float]:
        """The weight of the current model in the average after optimizer step number `step` (from 1)."""
        return [1 - min(self.decay, (1 + step) / (10 + step))]


class PowerEMA:
    """Averages of the weights by a power function, whose length grows with the training (Karras et al. 2024, EDM2,
    arXiv 2312.02696, section 3).

    At step t an average moves towards the model by `1 - beta_t`, `beta_t = (1 - 1 / t)^(gamma + 1)`, which weighs step
    tau by tau^gamma: nothing of the initial weights is left, and no warm-up is needed.

    Args:
        sigma_rels: width of each average, the standard deviation of its weighting over t, in (0, 0.28]; the first is
            the one that is validated and sampled.
        snapshots: keep at most so many snapshots of them in the run's folder; 0 for none. See `coefficients`.
    """

    def __init__(self, sigma_rels: Sequence[float] = (0.10, 0.05), snapshots: int = 16) -> None:
        if not sigma_rels or len(set(sigma_rels)) < len(sigma_rels):
            raise ValueError(f"sigma_rels must be one or more different widths, got {list(sigma_rels)}")
        if snapshots < 0:
            raise ValueError(f"snapshots must not be negative, got {snapshots}")
        self.sigma_rels, self.snapshots = list(sigma_rels), snapshots
        self.gammas = [exponent(sigma_rel) for sigma_rel in sigma_rels]

    def weights(self, step: int) -> list[float]:
        """The weight of the current model in each average after optimizer step number `step` (from 1)."""
        return [1 - (1 - 1 / step) ** (gamma + 1) for gamma in self.gammas]
