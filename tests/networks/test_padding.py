"""Images of sizes that a network does not divide: padded by zeros, and cropped; and residual blocks by level."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_networks import perturbed
from torch import Tensor, nn

from diffusion.build import ConfigError, build, canonical
from diffusion.exchange import unet2d
from diffusion.models import Autoencoder
from diffusion.networks.autoencoder import AutoencoderNetwork
from diffusion.networks.encoder import Encoder
from diffusion.networks.image import cropped, margins, padded
from diffusion.networks.tutorial import TutorialUNet
from diffusion.networks.unet import ResBlock, UNet

SMALL: dict[str, Any] = {"widths": (8, 16), "attention": (-1,), "patch": 2, "blocks": 1}
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": lambda shape, pad: UNet(shape, **SMALL, head_channels=8, pad=pad),
    "tutorial": lambda shape, pad: TutorialUNet(shape, pad=pad),
}
C_NOISE = torch.tensor([3.0, 700.0])


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 12), (30, 33)])
@pytest.mark.parametrize("multiple", [1, 2, 8])
def test_a_padded_image_has_multiples_of_the_sides_its_own_pixels_in_the_middle_and_is_cropped_to_itself(
    size: tuple[int, int], multiple: int
) -> None:
    x, around = draw(2, 3, *size), margins(size, multiple)
    wide = padded(x, around)
    assert [side % multiple for side in wide.shape[2:]] == [0, 0]
    assert all(0 <= larger - side < multiple for larger, side in zip(wide.shape[2:], size, strict=True))
    assert 0 <= around[1] - around[0] <= 1
    assert 0 <= around[3] - around[2] <= 1
    assert torch.equal(cropped(wide, around), x)
    torch.testing.assert_close(wide.square().sum(), x.square().sum())  # the rest is zero


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_pads_is_the_same_network_on_the_padded_image(name: str) -> None:
    network = perturbed(NETWORKS[name]((1, 26, 31), pad=True))
    larger = perturbed(NETWORKS[name]((1, 32, 32), pad=False))
    larger.load_state_dict(network.state_dict())
    x = draw(2, 1, 26, 31)
    around = margins((26, 31), network.multiple)
    expected = cropped(larger(padded(x, around), C_NOISE, {}), around)
    assert torch.equal(network(x, C_NOISE, {}), expected)
    assert expected.shape == x.shape


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_changes_nothing_where_the_size_divides(name: str) -> None:
    network, plain = (perturbed(NETWORKS[name]((1, 16, 24), pad=pad)) for pad in (True, False))
    plain.load_state_dict(network.state_dict())
    x = draw(2, 1, 16, 24)
    assert torch.equal(network(x, C_NOISE, {}), plain(x, C_NOISE, {}))


def test_images_that_condition_a_network_are_padded_with_its_input() -> None:
    conditions = {"condition_channels": 2, "condition_level": True, "out_channels": 2, "pad": True}
    network = perturbed(UNet((1, 6, 9), **SMALL, head_channels=8, **conditions))
    larger = perturbed(UNet((1, 8, 12), **SMALL, head_channels=8, **conditions))
    larger.load_state_dict(network.state_dict())
    cond = {"image": draw(2, 2, 6, 9), "level": torch.tensor([0.1, 0.4])}
    around = margins((6, 9), 4)
    result = network(draw(2, 1, 6, 9), C_NOISE, cond)
    assert result.shape == (2, 2, 6, 9)
    wide = larger(padded(draw(2, 1, 6, 9), around), C_NOISE, cond | {"image": padded(cond["image"], around)})
    assert torch.equal(result, cropped(wide, around))


def test_a_classifier_pads_what_it_sees() -> None:
    network = perturbed(Encoder((1, 7, 10), 3, **SMALL | {"attention": ()}, pad=True))
    larger = perturbed(Encoder((1, 8, 12), 3, **SMALL | {"attention": ()}))
    larger.load_state_dict(network.state_dict())
    x = draw(2, 1, 7, 10)
    assert torch.equal(network(x, C_NOISE, {}), larger(padded(x, margins((7, 10), 4)), C_NOISE, {}))


def test_an_autoencoder_pads_what_it_encodes_and_crops_what_it_decodes() -> None:
    settings: dict[str, Any] = {"widths": (8, 8), "patch": 2}
    network = perturbed(AutoencoderNetwork((1, 7, 10), **settings, pad=True))
    larger = perturbed(AutoencoderNetwork((1, 8, 12), **settings))
    larger.load_state_dict(network.state_dict())
    x, around = draw(2, 1, 7, 10), margins((7, 10), 4)
    assert network.latent_shape == larger.latent_shape == (4, 2, 3)
    assert torch.equal(network.encode(x), larger.encode(padded(x, around)))
    z = draw(2, *network.latent_shape)
    assert torch.equal(network.decode(z), cropped(larger.decode(z), around))
    assert Autoencoder(network).decode(z).shape == x.shape


@pytest.mark.parametrize("name", ["unet", "tutorial"])
def test_a_size_that_does_not_divide_is_refused_with_the_setting_that_pads_it(name: str) -> None:
    with pytest.raises(ValueError, match=r"30x31 .* multiples of .*; pad them \(pad=true\), change the image size"):
        NETWORKS[name]((1, 30, 31), pad=False)


def test_blocks_are_counted_by_level() -> None:
    def blocks(network: nn.Module) -> list[int]:
        """Residual blocks by width, which stands for the level here."""
        outs = [module.conv_out.out_channels for module in network.modules() if isinstance(module, ResBlock)]
        return [outs.count(width) for width in (8, 12, 16)]

    widths, counts = (8, 12, 16), (1, 3, 2)
    settings: dict[str, Any] = {"widths": widths, "attention": ()}
    unet = UNet((1, 8, 8), **settings, blocks=counts)
    assert blocks(unet) == [2 * n + 1 + (width == 16) for n, width in zip(counts, widths, strict=True)]  # the middle
    assert unet(draw(2, 1, 8, 8), C_NOISE, {}).shape == (2, 1, 8, 8)
    assert blocks(Encoder((1, 8, 8), 2, **settings, blocks=counts)) == list(counts)
    assert blocks(AutoencoderNetwork((1, 8, 8), widths=widths, patch=1, blocks=counts)) == [2 * n for n in counts]


def test_one_number_of_blocks_is_that_number_in_each_level() -> None:
    one, several = (perturbed(UNet((1, 8, 8), widths=(8, 8), attention=(), blocks=blocks)) for blocks in (2, (2, 2)))
    several.load_state_dict(one.state_dict())
    x = draw(2, 1, 8, 8)
    assert one(x, C_NOISE, {}).abs().max() > 0.01
    assert torch.equal(one(x, C_NOISE, {}), several(x, C_NOISE, {}))


def test_a_stored_configuration_without_a_later_argument_is_the_one_with_its_default() -> None:
    older = {"_target_": "diffusion.networks.unet.UNet", "shape": [1, 8, 8], "widths": [8, 8], "attention": [1]}
    assert canonical({"network": older}) == canonical({"network": older | {"pad": False, "blocks": 2}})
    assert canonical(older) != canonical(older | {"pad": True})
    assert build(older | {"blocks": [1, 2]}).multiple == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": [1, 2]}, r"same number of blocks in each level, and this network has \[1, 2\]"),
        ({"pad": True}, "no counterpart of network.pad=True"),
    ],
)
def test_diffusers_unet_has_one_number_of_blocks_and_pads_nothing(settings: dict[str, Any], message: str) -> None:
    common: dict[str, Any] = {"shape": (1, 8, 8), "widths": [8, 8], "attention": [], "blocks": 1, "groups": 2}
    with pytest.raises(ConfigError, match=message):
        unet2d.settings(common | settings, UNet(**common | settings))
