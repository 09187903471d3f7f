"""The U-Net of the library diffusers, `UNet2DModel`: what the public DDPM models of CIFAR-10, CelebA and LSUN are.

Layers, names of weights and names of settings are those of diffusers (https://huggingface.co/docs/diffusers), so that
its `config.json` describes this network and its weights load as they are. What it computes is tested against diffusers.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.networks.embedding import LabelEmbedding
from diffusion.networks.unet import check_levels

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}
# Whether a block attends, and whether it changes the resolution by a residual block; None: as the settings say.
_DOWN: dict[str, tuple[bool, bool | None]] = {
    "DownBlock2D": (False, False),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, True),
}
_UP: dict[str, tuple[bool, bool | None]] = {
    "UpBlock2D": (False, False),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, True),
}


class _Style(NamedTuple):
    """What all residual blocks of a network share."""

    emb: int
    groups: int
    eps: float
    activation: Callable[[Tensor], Tensor]
    dropout: float
    scale_shift: bool


class _Resnet(nn.Module):
    """`(skip(x) + conv2(dropout(act(h)))) / scale` with `h = norm2(conv1(act(norm1(x))))`.

    The noise level is added to the input of norm2, or scales and shifts its output. `resample` acts on x and on act(.).
    """

    def __init__(
        self, c_in: int, c_out: int, style: _Style, resample: nn.Module | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.style, self.scale, self.resample = style, scale, resample or nn.Identity()
        self.norm1 = nn.GroupNorm(style.groups, c_in, style.eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(style.emb, 2 * c_out if style.scale_shift else c_out)
        self.norm2 = nn.GroupNorm(style.groups, c_out, style.eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        act = self.style.activation
        h = self.conv1(self.resample(act(self.norm1(x))))
        emb = self.time_emb_proj(act(emb))[:, :, None, None]
        if self.style.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + emb)
        h = self.conv2(F.dropout(act(h), self.style.dropout, self.training))
        return (self.conv_shortcut(self.resample(x)) + h) / self.scale


class _Attention(nn.Module):
    """`(x + out(attention(norm(x)))) / scale` over positions, in heads of `head` channels; 0 groups is no norm."""

    def __init__(self, channels: int, head: int, groups: int, eps: float, scale: float = 1.0) -> None:
        super().__init__()
        self.heads, self.scale = channels // head, scale
        inner = self.heads * head
        self.group_norm = nn.GroupNorm(groups, channels, eps) if groups else nn.Identity()
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, inner) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        q, k, v = (
            project(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, HW, head)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (x + self.to_out[0](attended).transpose(1, 2).reshape(x.shape)) / self.scale


class _Downsample(nn.Module):
    """A convolution of stride 2. Without padding it sees one more row and column, of zeros, at the end alone."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    """Each pixel four times, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """The layers of one level: residual blocks, each with attention after it if there is any."""

    def __init__(self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module]) -> None:
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)

    def layer(self, i: int, h: Tensor, emb: Tensor) -> Tensor:
        """Residual block i and its attention."""
        h = self.resnets[i](h, emb)
        return self.attentions[i](h) if self.attentions else h


class _Down(_Level):
    def __init__(
        self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module], downsamplers: Sequence[nn.Module]
    ) -> None:
        super().__init__(resnets, attentions)
        self.downsamplers = nn.ModuleList(downsamplers)

    def forward(self, h: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for i in range(len(self.resnets)):
            h = self.layer(i, h, emb)
            skips.append(h)
        for downsample in self.downsamplers:
            h = downsample(h, emb)
            skips.append(h)
        return h


class _Up(_Level):
    def __init__(
        self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module], upsamplers: Sequence[nn.Module]
    ) -> None:
        super().__init__(resnets, attentions)
        self.upsamplers = nn.ModuleList(upsamplers)

    def forward(self, h: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for i in range(len(self.resnets)):
            h = self.layer(i, torch.cat((h, skips.pop()), dim=1), emb)
        for upsample in self.upsamplers:
            h = upsample(h, emb)
        return h


class _Middle(_Level):
    """A residual block, attention if there is any, and a residual block."""

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return self.resnets[1](self.layer(0, h, emb), emb)


class _TimeEmbedding(nn.Module):
    def __init__(self, width: int, emb: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width, emb), nn.Linear(emb, emb)

    def forward(self, sinusoids: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoids)))


class DiffusersUNet(nn.Module):
    """`UNet2DModel` of diffusers, from the settings of its `config.json` with their names and defaults there.

    Args:
        shape: (C, H, W) of its input.
        block_out_channels: channels of each level; each level but the last halves the resolution.
        down_block_types: of each level, DownBlock2D, AttnDownBlock2D (with attention) or ResnetDownsampleBlock2D (a
            residual block halves the resolution).
        up_block_types: of each level from the last to the first, likewise.
        mid_block_type: UNetMidBlock2D, or None for nothing between down and up.
        layers_per_block: residual blocks a level on the way down; one more on the way up.
        mid_block_scale_factor: divides the output of each layer of the middle.
        downsample_padding: 1; or 0, which pads with zeros at the right and the bottom alone, as DDPM's code does.
        downsample_type: of levels with attention, conv or resnet.
        upsample_type: likewise.
        dropout: in the residual blocks.
        act_fn: silu, swish, mish, gelu or relu.
        attention_head_dim: channels of an attention head; None is one head.
        norm_num_groups: groups of every normalisation.
        attn_norm_num_groups: of that before the attention in the middle; None is norm_num_groups, or none at all with
            resnet_time_scale_shift=scale_shift.
        norm_eps: added to variances.
        resnet_time_scale_shift: default (the noise level is added) or scale_shift.
        add_attention: whether the middle attends.
        center_input_sample: whether x is in [0, 1] and becomes 2 x - 1.
        time_embedding_dim: length of the noise level's embedding; None is 4 times the first width.
        freq_shift: the lowest frequency of the sinusoids is 10000^(-(n - 1) / (n - freq_shift)), n being their number.
        flip_sin_to_cos: whether cosines come before sines.
        num_class_embeds: labels in cond["label"], -1 being none; None for a network without classes.
        in_channels: channels of its input; None is C.
        out_channels: channels of its output; None is C.
    """

    ends = ("conv_in", "conv_out")

    def __init__(
        self,
        shape: Sequence[int],
        block_out_channels: Sequence[int] = (224, 448, 672, 896),
        down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types: Sequence[str] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1.0,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        center_input_sample: bool = False,
        time_embedding_dim: int | None = None,
        freq_shift: float = 0.0,
        flip_sin_to_cos: bool = True,
        num_class_embeds: int | None = None,
        in_channels: int | None = None,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_levels("diffusers", shape, block_out_channels, layers_per_block, (), 1)
        channels = shape[0]
        widths, levels = list(block_out_channels), len(block_out_channels)
        _check_choices(
            down_block_types=(down_block_types, _DOWN),
            up_block_types=(up_block_types, _UP),
            mid_block_type=([mid_block_type], ["UNetMidBlock2D", None]),
            downsample_type=([downsample_type], ["conv", "resnet"]),
            upsample_type=([upsample_type], ["conv", "resnet"]),
            downsample_padding=([downsample_padding], [0, 1]),
            act_fn=([act_fn], _ACTIVATIONS),
            resnet_time_scale_shift=([resnet_time_scale_shift], ["default", "scale_shift"]),
        )
        if not len(down_block_types) == len(up_block_types) == levels:
            raise ValueError(
                f"block_out_channels has {levels} levels, down_block_types {len(down_block_types)} and up_block_types "
                f"{len(up_block_types)}: give each the same number"
            )
        _check_groups("norm_num_groups", norm_num_groups, widths)
        attended = [width for width, kind in zip(widths, down_block_types, strict=True) if _DOWN[kind][0]]
        attended += [width for width, kind in zip(reversed(widths), up_block_types, strict=True) if _UP[kind][0]]
        attended += widths[-1:] if add_attention and mid_block_type else []
        if attention_head_dim is not None and attended and not 1 <= attention_head_dim <= min(attended):
            raise ValueError(f"attention_head_dim must be from 1 to {min(attended)}, got {attention_head_dim}")
        emb = 4 * widths[0] if time_embedding_dim is None else time_embedding_dim
        if min([emb, *(size for size in (num_class_embeds, in_channels, out_channels) if size is not None)]) < 1:
            raise ValueError(
                f"time_embedding_dim, num_class_embeds, in_channels and out_channels must be at least 1, got "
                f"{time_embedding_dim=}, {num_class_embeds=}, {in_channels=} and {out_channels=}"
            )
        if not 0 <= dropout < 1 or not 0 <= freq_shift < widths[0] // 2:
            raise ValueError(
                f"dropout must be in [0, 1) and freq_shift in [0, {widths[0] // 2}), got {dropout=} and {freq_shift=}"
            )
        if not (0 < norm_eps < math.inf and 0 < mid_block_scale_factor < math.inf):
            raise ValueError(
                f"norm_eps and mid_block_scale_factor must be positive and finite, got {norm_eps=} and "
                f"{mid_block_scale_factor=}"
            )
        self.num_classes = num_class_embeds or 0
        self.width, self.freq_shift, self.cosines_first = widths[0], freq_shift, flip_sin_to_cos
        self.center_input_sample = center_input_sample
        scale_shift = resnet_time_scale_shift == "scale_shift"
        style = _Style(emb, norm_num_groups, norm_eps, _ACTIVATIONS[act_fn], dropout, scale_shift)

        def attention(width: int, groups: int = norm_num_groups, scale: float = 1.0) -> _Attention:
            return _Attention(width, attention_head_dim or width, groups, norm_eps, scale)

        self.conv_in = nn.Conv2d(channels if in_channels is None else in_channels, widths[0], 3, padding=1)
        self.time_embedding = _TimeEmbedding(widths[0], emb)
        self.class_embedding = LabelEmbedding(num_class_embeds, emb) if num_class_embeds else None

        self.down_blocks = nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for level, kind in enumerate(down_block_types):
            attends, by_resnet = _DOWN[kind]
            by_resnet = downsample_type == "resnet" if by_resnet is None else by_resnet
            resnets = [
                _Resnet(width if i == 0 else widths[level], widths[level], style) for i in range(layers_per_block)
            ]
            width = widths[level]
            skips += [width] * layers_per_block
            downsamplers: list[nn.Module] = []
            if level < levels - 1:
                downsamplers.append(
                    _Resnet(width, width, style, nn.AvgPool2d(2))
                    if by_resnet
                    else _Downsample(width, downsample_padding)
                )
                skips.append(width)
            attentions = [attention(width) for _ in resnets] if attends else []
            self.down_blocks.append(_Down(resnets, attentions, downsamplers))

        self.mid_block = None
        if mid_block_type is not None:
            scale = mid_block_scale_factor
            groups = attn_norm_num_groups
            if groups is None:
                groups = 0 if scale_shift else norm_num_groups
            elif add_attention:
                _check_groups("attn_norm_num_groups", groups, widths[-1:])
            self.mid_block = _Middle(
                [_Resnet(width, width, style, scale=scale) for _ in range(2)],
                [attention(width, groups, scale)] if add_attention else [],
            )

        self.up_blocks = nn.ModuleList()
        for level, kind in zip(reversed(range(levels)), up_block_types, strict=True):
            attends, by_resnet = _UP[kind]
            by_resnet = upsample_type == "resnet" if by_resnet is None else by_resnet
            resnets = []
            for _ in range(layers_per_block + 1):
                resnets.append(_Resnet(width + skips.pop(), widths[level], style))
                width = widths[level]
            upsamplers: list[nn.Module] = []
            if level:
                upsamplers.append(
                    _Resnet(width, width, style, nn.Upsample(scale_factor=2.0)) if by_resnet else _Upsample(width)
                )
            attentions = [attention(width) for _ in resnets] if attends else []
            self.up_blocks.append(_Up(resnets, attentions, upsamplers))

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, width, norm_eps)
        self.conv_out = nn.Conv2d(width, channels if out_channels is None else out_channels, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """F, (B, out_channels, H, W), from x (B, in_channels, H, W); c_noise (B,); cond["label"] (B,) with classes."""
        emb = self.time_embedding(self._sinusoids(c_noise).to(x.dtype))
        if self.class_embedding is not None:
            emb = emb + self.class_embedding(cond["label"])
        h = self.conv_in(2 * x - 1 if self.center_input_sample else x)
        skips = [h]
        for down in self.down_blocks:
            h = down(h, emb, skips)
        if self.mid_block is not None:
            h = self.mid_block(h, emb)
        for up in self.up_blocks:
            h = up(h, emb, skips)
        return self.conv_out(F.silu(self.conv_norm_out(h)))

    def _sinusoids(self, position: Tensor) -> Tensor:
        """(B, width), in the order of operations of diffusers: angles reach 1000, where another rounds by 2e-5."""
        half = self.width // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=position.device)
        angle = position.float()[:, None] * torch.exp(exponent / (half - self.freq_shift))
        waves = (angle.cos(), angle.sin()) if self.cosines_first else (angle.sin(), angle.cos())
        return torch.cat(waves, dim=-1)


def _check_choices(**settings: tuple[Sequence[Any], Collection[Any]]) -> None:
    """Of each setting the values and what they may be."""
    for name, (values, allowed) in settings.items():
        for value in values:
            if value not in allowed:
                raise ValueError(f"{name}: {value!r} is not supported; it may be {', '.join(map(str, allowed))}")


def _check_groups(name: str, groups: int, widths: Sequence[int]) -> None:
    """Normalisations see these widths, and sums of two of them."""
    if groups < 1 or any(width % groups for width in widths):
        raise ValueError(f"{name}={groups} must be at least 1 and divide the widths {list(widths)}")
