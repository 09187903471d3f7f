"""The way down of the U-Net with a linear layer at its end, for classifying images."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.networks.embedding import sinusoidal
from diffusion.networks.image import margins, padded
from diffusion.networks.unet import ResBlock, SelfAttention, blocks_by_level, check_levels, normalisation


class Encoder(nn.Module):
    """Residual blocks and self-attention at falling resolutions, then the mean over positions (Dhariwal & Nichol 2021,
    arXiv 2105.05233, section 4.1, with their attention pooling left out).

    Args:
        shape: (C, H, W) of its input.
        classes: length of its output.
        widths: channels of each level; each level but the last halves the resolution.
        blocks: residual blocks a level, or a number for each level.
        attention: levels with self-attention, counted from 0 at full resolution; -1 is the last.
        patch: side of the squares that are folded into channels first (1 for none).
        dropout: in the residual blocks.
        pad: images whose height or width the levels do not divide are padded by zeros.
    """

    num_classes = 0  # takes no labels
    not_for_denoising = "this network tells classes apart, and does not denoise"
    ends = ("conv_in", "out")

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        widths: Sequence[int] = (32, 64),
        blocks: int | Sequence[int] = 2,
        attention: Sequence[int] = (-1,),
        patch: int = 1,
        dropout: float = 0.0,
        pad: bool = False,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"an encoder tells two or more classes apart, and the data have {classes}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.multiple = check_levels("encoder", shape, widths, blocks, attention, patch, pad)
        self.classes, self.width_in = classes, widths[0]
        emb = 4 * widths[0]
        attended = {level % len(widths) for level in attention}
        self.embed = nn.Sequential(nn.Linear(self.width_in, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.fold = nn.PixelUnshuffle(patch)
        self.conv_in = nn.Conv2d(shape[0] * patch**2, widths[0], 3, padding=1)
        self.layers = nn.ModuleList()
        before = widths[0]
        counts = blocks_by_level(blocks, widths)
        for level, width in enumerate(widths):
            for _ in range(counts[level]):
                self.layers.append(ResBlock(before, width, emb, dropout))
                before = width
            if level in attended:
                self.layers.append(SelfAttention(width))
            if level < len(widths) - 1:
                self.layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
        self.norm_out = normalisation(before)
        self.out = nn.Linear(before, classes)

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Logits, (B, classes), from x (B, C, H, W) and c_noise (B,)."""
        emb = F.silu(self.embed(sinusoidal(c_noise, self.width_in).to(x.dtype)))
        h = self.conv_in(self.fold(padded(x, margins(x.shape[-2:], self.multiple))))
        for layer in self.layers:
            h = layer(h, emb) if isinstance(layer, ResBlock) else layer(h)
        return self.out(F.silu(self.norm_out(h)).mean((2, 3)))
