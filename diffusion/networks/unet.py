"""The default network: the U-Net of DDPM with the additions that later work kept.

Residual blocks with group normalisation and a scale and shift from the noise level's embedding in each, self-attention
at chosen levels (Ho et al. 2020, arXiv 2006.11239, appendix B; Dhariwal & Nichol 2021, arXiv 2105.05233, section 3).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.networks.image import ImageNetwork, check_size


def _zero(module: nn.Conv2d) -> nn.Conv2d:
    """Starts a residual branch at zero, so that a new network is the identity there."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def normalisation(channels: int, groups: int | None = None) -> nn.GroupNorm:
    """So many groups; None is at most 32 of at least 4 channels."""
    if groups is None:
        groups = next(g for g in range(min(32, max(channels // 4, 1)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class ResBlock(nn.Module):
    """`x + conv(dropout(silu(norm(h) (1 + scale) + shift)))`, h = conv(silu(norm(x))), scale and shift from the
    embedding of length `emb`; with emb = 0 the block has neither."""

    def __init__(self, c_in: int, c_out: int, emb: int, dropout: float = 0.0, groups: int | None = None) -> None:
        super().__init__()
        self.norm_in, self.norm_out = normalisation(c_in, groups), normalisation(c_out, groups)
        self.conv_in = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.modulation = nn.Linear(emb, 2 * c_out) if emb else None
        self.dropout = nn.Dropout(dropout)
        self.conv_out = _zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        h = self.norm_out(self.conv_in(F.silu(self.norm_in(x))))
        if self.modulation is not None:
            scale, shift = self.modulation(emb)[:, :, None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        return self.skip(x) + self.conv_out(self.dropout(F.silu(h)))


class SelfAttention(nn.Module):
    """Multi-head self-attention over positions with a residual connection (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, channels: int, head_channels: int = 32, groups: int | None = None) -> None:
        super().__init__()
        self.heads = max(channels // head_channels, 1)
        if channels % self.heads:
            raise ValueError(
                f"attention of {self.heads} heads cannot share {channels} channels evenly: choose another width, or "
                f"other head_channels"
            )
        self.norm = normalisation(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2)
        q, k, v = qkv.unbind(1)  # (B, heads, HW, C / heads) each
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(attended.transpose(-1, -2).reshape(b, c, h, w))


class UNet(ImageNetwork):
    """The U-Net.

    Args:
        shape: (C, H, W) of its input.
        widths: channels of each level; each level but the last halves the resolution.
        blocks: residual blocks a level on the way down, or a number for each level; one more on the way up.
        attention: levels with self-attention, counted from 0 at full resolution; -1 is the last.
        patch: side of the squares that are folded into channels first (1 for none).
        num_classes: see `ImageNetwork`, as for all that is not described here.
        dropout: in the residual blocks.
        head_channels: about so many channels an attention head: `width // head_channels` heads, at least one.
        groups: of every normalisation, as diffusers' U-Net has them; None is at most 32 of at least 4 channels each.
        pad: images whose height or width the levels do not divide are padded by zeros, and the output is cropped.
    """

    ends = ("conv_in", "conv_out")

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 256),
        blocks: int | Sequence[int] = 2,
        attention: Sequence[int] = (2,),
        patch: int = 1,
        num_classes: int = 0,
        dropout: float = 0.0,
        head_channels: int = 32,
        embedding: int = 0,
        in_channels: int | None = None,
        out_channels: int | None = None,
        condition_channels: int = 0,
        condition_level: bool = False,
        groups: int | None = None,
        pad: bool = False,
        augmentation: int = 0,
    ) -> None:
        multiple = check_levels("unet", shape, widths, blocks, attention, patch, pad)
        if head_channels < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"unet needs head_channels >= 1 and dropout in [0, 1), got {head_channels=} and {dropout=}"
            )
        if groups is not None and (groups < 1 or any(width % groups for width in widths)):
            raise ValueError(f"groups must divide each of the widths {list(widths)}, got {groups}")
        emb = 4 * widths[0]
        super().__init__(
            shape,
            multiple,
            widths[0],
            emb,
            num_classes,
            embedding,
            in_channels,
            out_channels,
            condition_channels,
            condition_level,
            augmentation,
        )
        attended = {level % len(widths) for level in attention}
        self.fold, self.unfold = nn.PixelUnshuffle(patch), nn.PixelShuffle(patch)
        self.conv_in = nn.Conv2d(self.c_in * patch**2, widths[0], 3, padding=1)

        def stage(c_in: int, c_out: int, level: int) -> nn.ModuleList:
            layers = [ResBlock(c_in, c_out, emb, dropout, groups)]
            return nn.ModuleList(
                [*layers, SelfAttention(c_out, head_channels, groups)] if level in attended else layers
            )

        self.down = nn.ModuleList()
        skips = [widths[0]]
        width = widths[0]
        counts = blocks_by_level(blocks, widths)
        for level, level_width in enumerate(widths):
            for _ in range(counts[level]):
                self.down.append(stage(width, level_width, level))
                width = level_width
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.ModuleList([nn.Conv2d(width, width, 3, stride=2, padding=1)]))
                skips.append(width)

        self.middle = nn.ModuleList([ResBlock(width, width, emb, dropout, groups)])
        if len(widths) - 1 in attended:
            self.middle.extend(
                [SelfAttention(width, head_channels, groups), ResBlock(width, width, emb, dropout, groups)]
            )

        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for i in range(counts[level] + 1):
                layers = stage(width + skips.pop(), widths[level], level)
                width = widths[level]
                if level and i == counts[level]:
                    upsample = nn.Upsample(scale_factor=2, mode="nearest")
                    layers.extend([upsample, nn.Conv2d(width, width, 3, padding=1)])
                self.up.append(layers)

        self.norm_out = normalisation(width, groups)
        self.conv_out = _zero(nn.Conv2d(width, self.c_out * patch**2, 3, padding=1))

    def body(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv_in(self.fold(x))
        skips = [h]
        for layers in self.down:
            h = _run(layers, h, emb)
            skips.append(h)
        h = _run(self.middle, h, emb)
        for layers in self.up:
            h = _run(layers, torch.cat((h, skips.pop()), dim=1), emb)
        return self.unfold(self.conv_out(F.silu(self.norm_out(h))))


def _run(layers: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
    for layer in layers.children():
        h = layer(h, emb) if isinstance(layer, ResBlock) else layer(h)
    return h


def blocks_by_level(blocks: int | Sequence[int], widths: Sequence[int]) -> list[int]:
    """The number of residual blocks of each level, where one number stands for all."""
    return [blocks] * len(widths) if isinstance(blocks, int) else list(blocks)


def check_levels(
    name: str,
    shape: Sequence[int],
    widths: Sequence[int],
    blocks: int | Sequence[int],
    attention: Sequence[int],
    patch: int,
    pad: bool | None = None,
) -> int:
    """What images are padded to multiples of, see `check_size`, if the arguments make a network that they can pass."""
    counts = blocks_by_level(blocks, widths)
    if not widths or min(widths) < 2 or patch < 1 or widths[0] % 2:
        raise ValueError(
            f"{name} needs widths of at least 2, the first of them even, and a patch of at least 1, got "
            f"{list(widths)} and {patch}"
        )
    if len(counts) != len(widths) or min(counts) < 1:
        raise ValueError(
            f"blocks={blocks}: {name} needs at least one in each level, a number for all or one for each of "
            f"{len(widths)} network.widths"
        )
    for level in attention:
        if not -len(widths) <= level < len(widths):
            raise ValueError(
                f"attention level {level} does not exist: widths={list(widths)} makes levels 0..{len(widths) - 1}"
            )
    settings = f"patch={patch} and widths={list(widths)}"
    return check_size(name, shape, patch * 2 ** (len(widths) - 1), settings, pad, "use fewer widths")
