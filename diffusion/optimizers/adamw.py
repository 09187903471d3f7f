"""AdamW."""

import math
from collections.abc import Sequence

import torch
from torch import nn


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
