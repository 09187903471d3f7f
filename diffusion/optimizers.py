"""Optimizers, the learning rate's course, averages of the weights."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from diffusion.muon import MuonAdamW
from diffusion.posthoc import exponent


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101); Adam when weight_decay is 0.

    Args:
        lr: peak learning rate.
        betas: decay rates of the two moments.
        weight_decay: decoupled, applied to all weights.
    """

    def __init__(self, lr: float = 2e-4, betas: Sequence[float] = (0.9, 0.999), weight_decay: float = 0.0) -> None:
        if not 0 < lr < math.inf:
            raise ValueError(f"lr must be positive, got {lr}")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {list(betas)}")
        self.lr, self.betas, self.weight_decay = lr, (float(betas[0]), float(betas[1])), weight_decay

    def __call__(self, network: nn.Module, fused: bool) -> torch.optim.Optimizer:
        """The optimizer of a network's weights; `fused` in one kernel."""
        parameters = [p for p in network.parameters() if p.requires_grad]
        return torch.optim.AdamW(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=fused)


class Muon:
    """Muon on the hidden matrices of a network, AdamW on the rest; see `diffusion.muon.MuonAdamW`.

    Hidden matrices are the weights of two or more dimensions, convolutions' among them, but for embeddings of labels
    and the layers that the network names in `ends`.

    Args:
        lr: peak learning rate of AdamW.
        matrix_lr: peak learning rate of Muon; both follow the same course.
        momentum: of Muon.
        betas: decay rates of AdamW's two moments.
        weight_decay: decoupled, applied to all weights.
    """

    def __init__(
        self,
        lr: float = 2e-3,
        matrix_lr: float = 0.01,
        momentum: float = 0.95,
        betas: Sequence[float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 < matrix_lr < math.inf:
            raise ValueError(f"matrix_lr must be positive, got {matrix_lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        self.rest = AdamW(lr, betas, weight_decay)
        self.matrix_lr, self.momentum = matrix_lr, momentum

    def __call__(self, network: nn.Module, fused: bool) -> torch.optim.Optimizer:
        """The optimizer of a network's weights, the group of the rest first; `fused` AdamW in one kernel.

        Raises:
            ValueError: the network does not say which layers are its ends.
        """
        ends: Sequence[str] | None = getattr(network, "ends", None)
        if ends is None:
            raise ValueError(
                f"optimizer=muon has to know which layers of {type(network).__name__} read x and write the output: "
                f"name them in its attribute `ends`, or use optimizer=adamw"
            )
        outer = [network.get_submodule(name) for name in ends]
        outer += [module for module in network.modules() if isinstance(module, nn.Embedding)]
        outside = {id(p) for module in outer for p in module.parameters()}
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for p in network.parameters():
            if p.requires_grad:
                (matrices if p.ndim >= 2 and id(p) not in outside else rest).append(p)
        return MuonAdamW(
            matrices, rest, self.matrix_lr, self.rest.lr, self.momentum, self.rest.betas, self.rest.weight_decay, fused
        )


class LearningRate:
    """The factor on the peak learning rate, a function of the images seen, so that it does not depend on the batch
    size.

    Linear warm-up over `warmup_images`, then constant, or falling to zero at the end of training along a line or half a
    cosine (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5).

    Args:
        warmup_images: length of the warm-up.
        decay: "none", "linear" or "cosine".
    """

    def __init__(self, warmup_images: int = 0, decay: str = "none") -> None:
        if decay not in ("none", "linear", "cosine"):
            raise ValueError(f"decay must be none, linear or cosine, got {decay!r}")
        if warmup_images < 0:
            raise ValueError(f"warmup_images must not be negative, got {warmup_images}")
        self.warmup_images, self.decay = warmup_images, decay

    def __call__(self, images: int, total_images: int | None) -> float:
        """The factor for the step that begins after so many images, of so many in all (None: no end is known)."""
        if images < self.warmup_images:
            return (images + 1) / (self.warmup_images + 1)
        if self.decay == "none" or total_images is None:
            return 1.0
        progress = min((images - self.warmup_images) / max(total_images - self.warmup_images, 1), 1.0)
        return 1 - progress if self.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2


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
        """What the model weighs in the average after optimizer step number `step` (from 1)."""
        return [1 - min(self.decay, (1 + step) / (10 + step))]


class PowerEMA:
    """Averages of the weights by a power function, whose length grows with the training (Karras et al. 2024, EDM2,
    arXiv 2312.02696, section 3).

    At step t an average moves towards the model by `1 - beta_t`, `beta_t = (1 - 1 / t)^(gamma + 1)`, which weighs step
    tau by tau^gamma: nothing of the initial weights is left, and no warm-up is needed.

    Args:
        sigma_rels: width of each average, the standard deviation of its weighting over t, in (0, 0.28]; the first is
            the one that is validated and sampled.
        snapshots: keep at most so many snapshots of them in the run's folder; 0 for none. See `diffusion.posthoc`.
    """

    def __init__(self, sigma_rels: Sequence[float] = (0.10, 0.05), snapshots: int = 16) -> None:
        if not sigma_rels or len(set(sigma_rels)) < len(sigma_rels):
            raise ValueError(f"sigma_rels must be one or more different widths, got {list(sigma_rels)}")
        if snapshots < 0:
            raise ValueError(f"snapshots must not be negative, got {snapshots}")
        self.sigma_rels, self.snapshots = list(sigma_rels), snapshots
        self.gammas = [exponent(sigma_rel) for sigma_rel in sigma_rels]

    def weights(self, step: int) -> list[float]:
        """What the model weighs in each average after optimizer step number `step` (from 1)."""
        return [1 - (1 - 1 / step) ** (gamma + 1) for gamma in self.gammas]
