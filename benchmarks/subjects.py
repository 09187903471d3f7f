"""Networks that are timed side by side: this project's, and those of other libraries behind the same interface."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.networks.tutorial import TutorialUNet
from diffusion.networks.unet import UNet

Shape = tuple[int, int, int]


class Peer(nn.Module):
    """Another library's network as one of ours.

    Args:
        network: the other.
        call: (network, x, c_noise) -> what it predicts, shaped like x.
    """

    ends = ("network.conv_in", "network.conv_out")  # of diffusers' U-Net, for Muon

    def __init__(self, network: nn.Module, call: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.call(self.network, x, c_noise)


def call_sample(network: Any, x: Tensor, c_noise: Tensor) -> Tensor:
    found: Tensor = network(x, c_noise, return_dict=False)[0]
    return found


def call_plain(network: Any, x: Tensor, c_noise: Tensor) -> Tensor:
    found: Tensor = network(x, c_noise)
    return found


def fast(shape: Shape) -> nn.Module:
    """That of `experiment=fast_fashion`."""
    return UNet(shape, widths=(32, 64, 64), blocks=1, attention=(2,), patch=2)


def default(shape: Shape, widths: Sequence[int] = (64, 128, 128)) -> nn.Module:
    """The default for MNIST and Fashion-MNIST."""
    return UNet(shape, widths=widths, attention=(1, 2))


def diffusers(shape: Shape) -> nn.Module:
    """diffusers' UNet2DModel with the default's widths, blocks and attention."""
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=shape[1:],
        in_channels=shape[0],
        out_channels=shape[0],
        layers_per_block=2,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    return Peer(network, call_sample)


def lucidrains(shape: Shape) -> nn.Module:
    """The Unet of denoising-diffusion-pytorch with its own defaults, 64 channels in three levels."""
    from denoising_diffusion_pytorch import Unet

    return Peer(Unet(dim=64, dim_mults=(1, 2, 4), channels=shape[0]), call_plain)


# By name, each with the package that it comes from; "" is this project's.
NETWORKS: dict[str, tuple[str, Callable[[Shape], nn.Module]]] = {
    "ours, default": ("", default),
    "ours, fast": ("", fast),
    "tutorial": ("", TutorialUNet),
    "diffusers": ("diffusers", diffusers),
    "lucidrains": ("denoising_diffusion_pytorch", lucidrains),
}


LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}


def there() -> dict[str, Callable[[Shape], nn.Module]]:
    """The networks whose package is installed."""
    return {name: make for name, (package, make) in NETWORKS.items() if not package or find_spec(package)}


def missing() -> list[str]:
    """The names of the others."""
    return [name for name in NETWORKS if name not in there()]
