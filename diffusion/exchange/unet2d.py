"""`config.json` and weights of diffusers' `UNet2DModel`: to a network of ours, and from our U-Net."""

from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.build import ConfigError, canonical
from diffusion.networks.diffusers import DiffusersUNet
from diffusion.networks.unet import SelfAttention, UNet, blocks_by_level

# Settings of UNet2DModel that are arguments of our network by the same name, and those that are not.
SHARED = signature(DiffusersUNet).parameters.keys() - {"shape", "in_channels", "out_channels"}
_ONLY = {"time_embedding_type": "positional", "class_embed_type": None}
_SHAPE = {"sample_size", "in_channels", "out_channels", "num_train_timesteps"}


def network_config(settings: Mapping[str, Any], learned: bool = False) -> dict[str, Any]:
    """The part `network` of a run's configuration from a `config.json` of `UNet2DModel`.

    Args:
        settings: what the file holds.
        learned: whether the network gives a variance beside its prediction.

    Raises:
        ConfigError: a setting that is unknown here, or has a value that this project does not have; by name.
    """
    if settings.get("_class_name") not in ("UNet2DModel", None):
        raise ConfigError(f"its network is {settings['_class_name']!r:.80}, and this project takes a UNet2DModel")
    own = {name: value for name, value in settings.items() if not name.startswith("_")}
    for name, value in own.items():
        if name in _ONLY and value != _ONLY[name]:
            raise ConfigError(f"its network has {name}={value!r:.80}, and this project takes {name}={_ONLY[name]!r}")
        if name not in SHARED | _ONLY.keys() | _SHAPE:
            raise ConfigError(f"its network has {name}={value!r:.80}, and this project does not know that setting")
    channels, out, size = own.get("in_channels", 3), own.get("out_channels", 3), own.get("sample_size")
    sizes = [size, size] if type(size) is int else size
    if not isinstance(sizes, list) or len(sizes) != 2 or any(type(n) is not int or n < 1 for n in (channels, *sizes)):
        raise ConfigError(
            f"its network has sample_size={size!r:.80} and in_channels={channels!r:.80}: no size of images"
        )
    if out != (2 * channels if learned else channels):
        raise ConfigError(
            f"its network has in_channels={channels} and out_channels={out!r:.80}; they have to be the same, or with "
            f"variance_type=learned_range one twice the other"
        )
    shared = {name: value for name, value in own.items() if name in SHARED}
    for name in ("down_block_types", "up_block_types"):  # as they were called at first
        if isinstance(shared.get(name), list):
            shared[name] = [kind.removeprefix("UNetRes") if isinstance(kind, str) else kind for kind in shared[name]]
    return {"_target_": f"{DiffusersUNet.__module__}.{DiffusersUNet.__name__}", "shape": [channels, *sizes], **shared}


def settings(config: Mapping[str, Any], network: UNet) -> dict[str, Any]:
    """Our U-Net as settings of `UNet2DModel`."""
    config = canonical(config)  # with the defaults of arguments that older configurations do not have
    for name, allowed in {"patch": 1, "embedding": 0, "condition_channels": 0, "pad": False, "augmentation": 0}.items():
        if config.get(name, allowed) != allowed:
            raise ConfigError(f"UNet2DModel has no counterpart of network.{name}={config[name]}: train one without it")
    widths = list(config["widths"])
    blocks = blocks_by_level(config["blocks"], widths)
    if len(set(blocks)) > 1:
        raise ConfigError(f"UNet2DModel has the same number of blocks in each level, and this network has {blocks}")
    groups = sorted({part.num_groups for part in network.modules() if isinstance(part, nn.GroupNorm)})
    if len(groups) > 1:
        common = next(n for n in range(32, 0, -1) if all(width % n == 0 for width in widths))
        raise ConfigError(
            f"UNet2DModel has the same number of groups in every normalisation, and this network has "
            f"{', '.join(map(str, groups))}: train one with network.groups={common}"
        )
    attended = {level % len(widths) for level in config["attention"]}
    heads = sorted({widths[level] // max(widths[level] // config["head_channels"], 1) for level in attended})
    if len(heads) > 1:
        raise ConfigError(
            f"UNet2DModel has attention heads of one size, and this network has {', '.join(map(str, heads))}: train "
            f"one with network.head_channels={heads[0]} and widths that are its multiples"
        )
    kinds = ["Attn" if level in attended else "" for level in range(len(widths))]
    return {
        "block_out_channels": widths,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "layers_per_block": blocks[0],
        "dropout": config["dropout"],
        "attention_head_dim": heads[0] if heads else 8,
        "norm_num_groups": groups[0],
        "attn_norm_num_groups": groups[0],
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift",
        "add_attention": kinds[-1] == "Attn",
        "flip_sin_to_cos": False,
        "num_class_embeds": config["num_classes"] or None,
    }


def state(network: UNet) -> Iterator[tuple[str, Tensor]]:
    """The weights of our U-Net by the names of `UNet2DModel`."""
    ends = {"conv_in": "conv_in", "conv_out": "conv_out", "norm_out": "conv_norm_out", "embed_label": "class_embedding"}
    ends |= {"embed.0": "time_embedding.linear_1", "embed.2": "time_embedding.linear_2"}
    for name, value in network.state_dict().items():
        layer, _, last = name.rpartition(".")
        if layer in ends:
            yield f"{ends[layer]}.{last}", value
    downs, ups = _lists(network.down), _lists(network.up)
    levels = sum(isinstance(layers[0], nn.Conv2d) for layers in downs) + 1
    blocks = len(ups) // levels - 1
    for k, layers in enumerate(downs):
        level, i = divmod(k, blocks + 1)
        if i < blocks:
            yield from _layers(layers, f"down_blocks.{level}", i)
        else:
            yield from _prefixed(layers[0], f"down_blocks.{level}.downsamplers.0.conv")
    for k, layers in enumerate(ups):
        level, i = divmod(k, blocks + 1)
        yield from _layers(layers, f"up_blocks.{level}", i)
        if isinstance(layers[-1], nn.Conv2d):
            yield from _prefixed(layers[-1], f"up_blocks.{level}.upsamplers.0.conv")
    first, second = network.middle[0], network.middle[-1]
    yield from _layers(network.middle[:2], "mid_block", 0)
    for name, value in _resnet(second, "mid_block.resnets.1"):
        # Their middle has two residual blocks. The second one, with weights of zero, passes on its input.
        yield name, value if second is not first else torch.zeros_like(value)


def _lists(layers: nn.ModuleList) -> list[nn.ModuleList]:
    return [part for part in layers if isinstance(part, nn.ModuleList)]


def _layers(layers: nn.ModuleList, place: str, i: int) -> Iterator[tuple[str, Tensor]]:
    """A residual block, and the attention after it if there is any."""
    yield from _resnet(layers[0], f"{place}.resnets.{i}")
    for layer in layers:
        if isinstance(layer, SelfAttention):
            yield from _prefixed(layer.norm, f"{place}.attentions.{i}.group_norm")
            for name, rows in _as_linear(layer.out).items():
                yield f"{place}.attentions.{i}.to_out.0.{name}", rows
            for name, rows in _as_linear(layer.qkv).items():
                for part, own in zip("qkv", rows.chunk(3), strict=True):
                    yield f"{place}.attentions.{i}.to_{part}.{name}", own


def _as_linear(conv: nn.Conv2d) -> dict[str, Tensor]:
    """The weights of a convolution by 1x1 as those of a linear layer."""
    assert conv.bias is not None
    return {"weight": conv.weight.flatten(1), "bias": conv.bias}


def _resnet(block: nn.Module, place: str) -> Iterator[tuple[str, Tensor]]:
    names = {"norm_in": "norm1", "conv_in": "conv1", "modulation": "time_emb_proj", "norm_out": "norm2"}
    names |= {"conv_out": "conv2", "skip": "conv_shortcut"}
    for ours, theirs in names.items():
        yield from _prefixed(block.get_submodule(ours), f"{place}.{theirs}")


def _prefixed(layer: nn.Module, place: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in layer.state_dict().items():
        yield f"{place}.{name}", value
