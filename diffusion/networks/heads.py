"""A network for points with one head for each noise level, as the first diffusion models had."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Heads(nn.Module):
    """A trunk that all noise levels share, and a head of its own for each (Sohl-Dickstein et al. 2015, arXiv
    1503.03585, appendix D.1).

    The trunk is d-width-width and a head width-width-out_channels, with ReLU after each layer but the last. c_noise
    is the number of the head, a whole one counted from zero. The last layers begin at zero.

    Args:
        shape: (d,), of its input.
        heads: how many noise levels there are; None, of a continuous schedule, is refused.
        width: of the hidden layers.
        out_channels: length of its output; None is d.
    """

    num_classes = 0

    def __init__(
        self, shape: Sequence[int], heads: int | None, width: int = 128, out_channels: int | None = None
    ) -> None:
        super().__init__()
        if len(shape) != 1:
            raise ValueError(f"heads need vectors of shape (d,), got shape {tuple(shape)}")
        if heads is None:
            raise ValueError("there is a head for each noising step, and this schedule is continuous")
        self.steps = heads
        if heads < 1 or width < 1:
            raise ValueError(f"heads and width must be at least 1, got {heads=} and {width=}")
        if out_channels is not None and out_channels < 1:
            raise ValueError(f"out_channels must be at least 1, got {out_channels}")
        out = shape[0] if out_channels is None else out_channels
        self.trunk = nn.Sequential(nn.Linear(shape[0], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        # Head k's layers are row k of each, begun as nn.Linear begins.
        bound = width**-0.5
        self.hidden_weight = nn.Parameter(torch.empty(heads, width, width).uniform_(-bound, bound))
        self.hidden_bias = nn.Parameter(torch.empty(heads, 1, width).uniform_(-bound, bound))
        self.out_weight = nn.Parameter(torch.zeros(heads, width, out))
        self.out_bias = nn.Parameter(torch.zeros(heads, 1, out))

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """F, (B, out_channels), from x (B, d); c_noise (B,)."""
        head = c_noise.round()
        wrong = ((c_noise - head).abs() > 1e-3) | (head < 0) | (head >= self.steps)
        if wrong.any():
            raise ValueError(
                f"of {self.steps} heads, one a noising step, none is number {c_noise[wrong][0].item() + 1:g}"
            )
        rows, which, counts = head.long().unique(return_inverse=True, return_counts=True)
        # The samples of one head side by side, padded to the most that a head has: a matrix product for each.
        order = which.argsort(stable=True)
        place = torch.arange(len(x), device=x.device) - (counts.cumsum(0) - counts)[which[order]]
        h = self.trunk(x)
        padded = h.new_zeros(len(rows), int(counts.max()), h.shape[1])
        padded = padded.index_put((which[order], place), h[order])
        hidden = torch.baddbmm(self.hidden_bias[rows], padded, self.hidden_weight[rows]).relu()
        out = torch.baddbmm(self.out_bias[rows], hidden, self.out_weight[rows])
        return out[which[order], place][order.argsort()]
