"""Embeddings of the noise level."""

import math

import torch
from torch import Tensor


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
