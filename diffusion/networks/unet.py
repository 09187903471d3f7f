"""The default network: the U-Net of DDPM with the additions that later work kept.

Residual blocks with group normalisation and a scale and shift from the noise level's embedding in each, self-attention
at chosen levels (Ho et al. 2020, arXiv 2006.11239, appendix B; Dhariwal & Nichol 2021, arXiv 2105.05233, section 3).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.networks.embedding import LabelEmbedding, sinusoidal


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
    embedding of length `emb`; 0 is a block that is told nothing, without them."""

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
            raise ValueError(f"attention needs widths that are multiples of {head_channels}, got {channels}")
        self.norm = normalisation(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2)
        q, k, v = qkv.unbind(1)  # (B, heads, HW, C / heads) each
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(attended.transpose(-1, -2).reshape(b, c, h, w))


class UNet(nn.Module):
    """The U-Net.

    Args:
        shape: (C, H, W) of its input.
        widths: channels of each level; each level but the last halves the resolution.
        blocks: residual blocks a level on the way down; one more on the way up.
        attention: levels with self-attention, counted from 0 at full resolution; -1 is the last.
        patch: side of the squares that are folded into channels first (1 for none).
        num_classes: labels 0..num_classes-1 in cond["label"] condition the network, -1 being none; 0 for a network
            without classes.
        dropout: in the residual blocks.
        head_channels: channels of an attention head.
        embedding: length of the vectors in cond["embedding"] that condition the network; 0 for none.
        in_channels: channels of its input; None is C.
        out_channels: channels of its output; None is C.
        condition_channels: of cond["image"], which stands beside the input; 0 for none.
        condition_level: whether cond["level"] tells the noise in that image, from 0 to about 1.
        groups: of every normalisation, as diffusers' U-Net has them; None is at most 32 of at least 4 channels each.
    """

    ends = ("conv_in", "conv_out")

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 256),
        blocks: int = 2,
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
    ) -> None:
        super().__init__()
        channels = check_levels("unet", shape, widths, blocks, attention, patch)
        c_in = channels if in_channels is None else in_channels
        c_out = channels if out_channels is None else out_channels
        counts, sizes = (num_classes, embedding, condition_channels), (head_channels, c_in, c_out)
        if min(counts) < 0 or min(sizes) < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"unet needs num_classes, embedding and condition_channels >= 0, head_channels, in_channels and "
                f"out_channels >= 1 and dropout in [0, 1), got {num_classes=}, {embedding=}, {condition_channels=}, "
                f"{head_channels=}, {in_channels=}, "
                f"{out_channels=} and {dropout=}"
            )
        if groups is not None and (groups < 1 or any(width % groups for width in widths)):
            raise ValueError(f"groups must divide each of the widths {list(widths)}, got {groups}")
        self.num_classes, self.embedding, self.condition_channels = num_classes, embedding, condition_channels
        self.width_in = widths[0]
        emb = 4 * widths[0]
        attended = {level % len(widths) for level in attention}

        def embed_level() -> nn.Sequential:
            return nn.Sequential(nn.Linear(self.width_in, emb), nn.SiLU(), nn.Linear(emb, emb))

        self.embed = embed_level()
        self.embed_condition_level = embed_level() if condition_level else None
        self.embed_label = LabelEmbedding(num_classes, emb) if num_classes else None
        self.embed_vector = nn.Linear(embedding, emb, bias=False) if embedding else None  # zero says nothing
        self.fold, self.unfold = nn.PixelUnshuffle(patch), nn.PixelShuffle(patch)
        self.conv_in = nn.Conv2d((c_in + condition_channels) * patch**2, widths[0], 3, padding=1)

        def stage(c_in: int, c_out: int, level: int) -> nn.ModuleList:
            layers = [ResBlock(c_in, c_out, emb, dropout, groups)]
            return nn.ModuleList(
                [*layers, SelfAttention(c_out, head_channels, groups)] if level in attended else layers
            )

        self.down = nn.ModuleList()
        skips = [widths[0]]
        width = widths[0]
        for level, level_width in enumerate(widths):
            for _ in range(blocks):
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
            for i in range(blocks + 1):
                layers = stage(width + skips.pop(), widths[level], level)
                width = widths[level]
                if level and i == blocks:
                    upsample = nn.Upsample(scale_factor=2, mode="nearest")
                    layers.extend([upsample, nn.Conv2d(width, width, 3, padding=1)])
                self.up.append(layers)

        self.norm_out = normalisation(width, groups)
        self.conv_out = _zero(nn.Conv2d(width, c_out * patch**2, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """F, (B, out_channels, H, W), from x (B, in_channels, H, W); c_noise (B,); cond["label"] (B,),
        cond["embedding"] (B, d), cond["image"] (B, C', H, W) and cond["level"] (B,) if the network has them."""
        emb = self.embed(sinusoidal(c_noise, self.width_in).to(x.dtype))
        if self.embed_label is not None:
            emb = emb + self.embed_label(cond["label"])
        if self.embed_vector is not None:
            emb = emb + self.embed_vector(cond["embedding"].to(x.dtype))
        if self.embed_condition_level is not None:  # the sinusoids are made for numbers up to 1000
            emb = emb + self.embed_condition_level(sinusoidal(1000 * cond["level"], self.width_in).to(x.dtype))
        emb = F.silu(emb)
        if self.condition_channels:
            x = torch.cat((x, cond["image"].to(x.dtype)), dim=1)
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


def check_levels(
    name: str, shape: Sequence[int], widths: Sequence[int], blocks: int, attention: Sequence[int], patch: int
) -> int:
    """The number of channels, if the arguments make a network that such images can pass."""
    if len(shape) != 3:
        raise ValueError(f"network={name} needs images of shape (channels, height, width), got shape {tuple(shape)}")
    if not widths or min(widths) < 2 or blocks < 1 or patch < 1 or widths[0] % 2:
        raise ValueError(
            f"{name} needs widths, blocks and patch of at least 1 and an even first width, got {list(widths)}"
        )
    for level in attention:
        if not -len(widths) <= level < len(widths):
            raise ValueError(
                f"attention level {level} does not exist: widths={list(widths)} makes levels 0..{len(widths) - 1}"
            )
    channels, height, width = shape
    divisor = patch * 2 ** (len(widths) - 1)
    if height % divisor or width % divisor:
        raise ValueError(
            f"an image of {height}x{width} cannot pass network={name} with patch={patch} and widths={list(widths)}: "
            f"height and width must be multiples of {divisor}; change the image size, or use fewer network.widths"
        )
    return channels
