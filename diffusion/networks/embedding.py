"""Embeddings of the noise level and of a class."""

import math

import torch
from torch import Tensor, nn


def sinusoidal(position: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """`[sin(position w_k), cos(position w_k)]` with w_k geometric from 1 towards 1 / max_period (Vaswani et al. 2017,
    section 3.5).

    Args:
        position: (B,), for instance a time step.
        width: even.

    Returns:
        (B, width) float32.
    """
    if width % 2:
        raise ValueError(f"a sinusoidal embedding needs an even width, got {width}")
    exponent = torch.arange(width // 2, device=position.device, dtype=torch.float32) / (width // 2)
    angle = position.float()[:, None] * torch.exp(-math.log(max_period) * exponent)
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


class LabelEmbedding(nn.Embedding):
    """A vector for each class, and zero for a label of -1: no class."""

    def forward(self, label: Tensor) -> Tensor:
        """(B, width) from int64 labels (B,)."""
        return super().forward(label.clamp(min=0)) * (label >= 0)[:, None]
