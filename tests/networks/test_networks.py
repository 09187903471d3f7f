"""Networks: published parameter counts, exact formulas, and the shapes, conditions and errors that users meet."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffusion.networks.embedding import sinusoidal
from diffusion.networks.mlp import MLP
from diffusion.networks.tutorial import Attention, TutorialUNet
from diffusion.networks.unet import SelfAttention, UNet

SMALL = {"widths": (8, 16), "blocks": 1, "attention": (-1,), "head_channels": 8}


def perturbed(module: nn.Module) -> nn.Module:
    """The module with every weight moved, as after training: layers that start at zero no longer hide anything."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def _count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


# --- embedding and attention ------------------------------------------------------------------------------------------


def test_the_sinusoidal_embedding_is_the_formula() -> None:
    position, width = [0.0, 1.0, 37.5, 999.0], 16
    result = sinusoidal(torch.tensor(position), width)
    for row, p in zip(result.tolist(), position, strict=True):
        frequencies = [10000 ** (-2 * k / width) for k in range(width // 2)]
        expected = [math.sin(p * w) for w in frequencies] + [math.cos(p * w) for w in frequencies]
        assert row == pytest.approx(expected, abs=1e-4)
    assert result.dtype == torch.float32


def test_the_sinusoidal_embedding_refuses_an_odd_width() -> None:
    with pytest.raises(ValueError, match="even width, got 7"):
        sinusoidal(torch.zeros(1), 7)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, heads, N, d) each, with one 1 / sqrt(d)."""
    logits = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhij,bhjd->bhid", logits.softmax(-1), v)


@pytest.mark.parametrize("heads", [1, 4])
def test_unet_attention_is_the_explicit_sum(heads: int) -> None:
    layer = perturbed(SelfAttention(16, head_channels=16 // heads).double())
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    qkv = torch.einsum("oc,bchw->bohw", layer.qkv.weight[:, :, 0, 0], layer.norm(x)) + layer.qkv.bias[:, None, None]
    q, k, v = (part.reshape(2, heads, 16 // heads, 15).transpose(2, 3) for part in qkv.split(16, dim=1))
    attended = _attend(q, k, v).transpose(2, 3).reshape(2, 16, 3, 5)
    expected = x + torch.einsum("oc,bchw->bohw", layer.out.weight[:, :, 0, 0], attended) + layer.out.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected)


def test_tutorial_attention_is_the_explicit_sum_of_four_heads() -> None:
    layer = perturbed(Attention(16).double())
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    h = x.flatten(2).transpose(1, 2)
    projected = layer.norm(h) @ layer.attention.in_proj_weight.T + layer.attention.in_proj_bias
    q, k, v = (part.reshape(2, 15, 4, 4).transpose(1, 2) for part in projected.chunk(3, dim=-1))
    h = h + layer.attention.out_proj(_attend(q, k, v).transpose(1, 2).reshape(2, 15, 16))
    h = h + layer.mlp(h)
    torch.testing.assert_close(layer(x), h.transpose(1, 2).reshape(x.shape))


def test_attention_refuses_widths_that_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match="3 heads cannot share 100 channels"):
        SelfAttention(100)


# --- the tutorial's network -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tutorial() -> TutorialUNet:
    return TutorialUNet((1, 32, 32))


def test_the_tutorials_network_has_the_published_parameter_counts(tutorial: TutorialUNet) -> None:
    counts = {
        "inc": 37_696,
        "down1": 295_680,
        "sa1": 395_776,
        "down2": 1_181_184,
        "sa2": 395_776,
        "down3": 2_361_344,
        "up1": 6_195_968,
        "sa3": 99_584,
        "up2": 1_549_696,
        "up3": 406_272,
        "outc": 65,
    }
    assert {name: _count(module) for name, module in tutorial.named_children()} == counts
    assert _count(tutorial) == 12_919_041


def test_the_tutorials_network_attends_at_8x8_and_4x4_and_keeps_the_shape(tutorial: TutorialUNet) -> None:
    seen = []
    for name in ("sa1", "sa2", "sa3"):
        getattr(tutorial, name).register_forward_hook(
            lambda _, args, __, name=name: seen.append((name, *args[0].shape))
        )
    x = torch.randn(2, 1, 32, 32)
    assert tutorial(x, torch.tensor([0.0, 999.0]), {}).shape == x.shape
    assert seen == [("sa1", 2, 256, 8, 8), ("sa2", 2, 256, 4, 4), ("sa3", 2, 128, 8, 8)]


def test_the_tutorials_network_sees_the_step_and_trains_every_parameter(tutorial: TutorialUNet) -> None:
    x = torch.randn(1, 1, 16, 24)
    early = tutorial(x, torch.tensor([3.0]), {})
    late = tutorial(x, torch.tensor([800.0]), {})
    assert (early - late).abs().max() > 1e-3
    early.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in tutorial.parameters())
    tutorial.zero_grad()


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 28, 28), "multiples of 8"), ((3, 32, 36), "multiples of 8"), ((2,), "needs images")]
)
def test_the_tutorials_network_refuses_other_sizes(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TutorialUNet(shape)


# --- the U-Net --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 8), (3, 12, 20)])
def test_the_unet_keeps_the_shape(shape: tuple[int, int, int], patch: int) -> None:
    x = torch.randn(2, *shape)
    network = perturbed(UNet(shape, patch=patch, **SMALL))
    result = network(x, torch.tensor([1.0, 500.0]), {})
    assert result.shape == x.shape
    assert result.std() > 0


@pytest.mark.parametrize("attention", [(), (0,), (1, 2), (-1, 0)])
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_unet_takes_any_depth_and_attention_levels(attention: tuple[int, ...], blocks: int) -> None:
    network = UNet((1, 8, 8), widths=(8, 16, 8), blocks=blocks, attention=attention, head_channels=8)
    assert network(torch.randn(1, 1, 8, 8), torch.zeros(1), {}).shape == (1, 1, 8, 8)
    count = sum(isinstance(module, SelfAttention) for module in network.modules())
    levels = {level % 3 for level in attention}
    assert count == len(levels) * (2 * blocks + 1) + (2 in levels)  # one in the middle, at the last level


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_single_level_works(blocks: int) -> None:
    network = UNet((1, 5, 7), widths=(8,), blocks=blocks, attention=())
    assert network(torch.randn(2, 1, 5, 7), torch.zeros(2), {}).shape == (2, 1, 5, 7)


def test_a_new_unet_outputs_zero_and_its_residual_branches_are_the_identity() -> None:
    network = UNet((3, 8, 8), **SMALL).eval()
    assert not network(torch.randn(2, 3, 8, 8), torch.tensor([0.0, 9.0]), {}).any()
    attention = SelfAttention(8, 8)
    h = torch.randn(2, 8, 4, 4)
    assert torch.equal(attention(h), h)


def test_every_parameter_of_the_unet_gets_a_gradient() -> None:
    network = perturbed(UNet((3, 8, 8), num_classes=2, **SMALL))
    result = network(
        torch.randn(4, 3, 8, 8), torch.tensor([1.0, 50.0, 300.0, 900.0]), {"label": torch.tensor([0, 1, 1, 0])}
    )
    result.square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("patch", [1, 2])
def test_samples_in_a_batch_do_not_see_each_other(patch: int) -> None:
    network = perturbed(UNet((1, 8, 8), num_classes=3, patch=patch, **SMALL)).double()
    x, c_noise, label = torch.randn(4, 1, 8, 8).double(), torch.rand(4) * 1000, torch.tensor([0, 2, 1, 1])
    together = network(x, c_noise, {"label": label})
    for b in range(4):
        alone = network(x[b : b + 1], c_noise[b : b + 1], {"label": label[b : b + 1]})
        torch.testing.assert_close(alone[0], together[b])


def test_the_class_and_the_noise_level_change_the_output() -> None:
    network = perturbed(UNet((1, 8, 8), num_classes=2, **SMALL))
    x = torch.randn(1, 1, 8, 8)

    def run(c_noise: float, label: int) -> Tensor:
        return network(x, torch.tensor([c_noise]), {"label": torch.tensor([label])})

    assert (run(10, 0) - run(10, 1)).abs().max() > 1e-3
    assert (run(10, 0) - run(600, 0)).abs().max() > 1e-3


def test_dropout_acts_in_training_only() -> None:
    network = perturbed(UNet((1, 8, 8), dropout=0.5, **SMALL))
    x, c_noise = torch.randn(1, 1, 8, 8), torch.zeros(1)
    assert torch.equal(network(x, c_noise, {}), network(x, c_noise, {}))
    network.train()
    assert not torch.equal(network(x, c_noise, {}), network(x, c_noise, {}))


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((1, 28, 28), {"widths": (8, 8, 8, 8)}, "28x28 .* multiples of 8"),
        ((1, 32, 30), {"widths": (8, 8), "patch": 2, "attention": ()}, "32x30 .* multiples of 4"),
        ((2,), {}, r"shape \(2,\)"),
        ((1, 8, 8), {"widths": (8, 8), "attention": (2,)}, r"attention level 2 does not exist.*levels 0\.\.1"),
        ((1, 8, 8), {"widths": (8, 8), "attention": (-3,)}, "attention level -3 does not exist"),
        ((1, 8, 8), {"widths": ()}, "widths"),
        ((1, 8, 8), {"widths": (7, 8), "attention": ()}, "the first of them even"),
        ((1, 8, 8), {"widths": (8,), "blocks": 0, "attention": ()}, "blocks"),
        ((1, 8, 8), {"widths": (8, 8), "blocks": (1,)}, "blocks=.* one for each of 2"),
        ((1, 8, 8), {"widths": (8, 8), "blocks": (1, 0)}, "blocks=.* at least one in each level"),
        ((1, 8, 8), {"widths": (8, 8), "blocks": ()}, "blocks="),
        ((1, 8, 8), {"widths": (8,), "patch": 0, "attention": ()}, "patch"),
    ],
)
def test_the_unet_says_what_it_cannot_take(shape: tuple[int, ...], settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        UNet(shape, **settings)
    assert "\n" not in str(error.value)


# --- the perceptron ---------------------------------------------------------------------------------------------------


def test_the_mlp_keeps_the_shape_and_starts_at_zero() -> None:
    network = MLP((2,), width=16, depth=2)
    assert torch.equal(network(torch.randn(5, 2), torch.rand(5), {}), torch.zeros(5, 2))
    assert perturbed(network)(torch.randn(5, 2), torch.rand(5), {}).shape == (5, 2)


def test_the_mlp_sees_the_class_and_the_noise_level_and_trains_every_parameter() -> None:
    network = perturbed(MLP((2,), width=16, depth=2, num_classes=3))
    x, label = torch.randn(1, 2), torch.tensor([0])
    result = network(x, torch.tensor([5.0]), {"label": label})
    assert not torch.allclose(result, network(x, torch.tensor([5.0]), {"label": label + 2}))
    assert not torch.allclose(result, network(x, torch.tensor([500.0]), {"label": label}))
    result.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((1, 8, 8), {}, "an mlp needs vectors"),
        ((2,), {"width": 7}, "even width"),
        ((2,), {"depth": 0}, "depth of at least 1"),
    ],
)
def test_the_mlp_says_what_it_cannot_take(shape: tuple[int, ...], settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(shape, **settings)


@pytest.mark.parametrize("out_channels", [1, 6])
def test_the_output_can_have_other_channels_than_the_input(out_channels: int) -> None:
    unet = perturbed(UNet((3, 8, 8), **SMALL, patch=2, out_channels=out_channels))
    assert unet(torch.zeros(2, 3, 8, 8), torch.zeros(2), {}).shape == (2, out_channels, 8, 8)
    mlp = perturbed(MLP((2,), width=8, depth=1, out_channels=out_channels))
    assert mlp(torch.zeros(3, 2), torch.zeros(3), {}).shape == (3, out_channels)


@pytest.mark.parametrize(
    "network", [lambda: UNet((3, 8, 8), **SMALL, out_channels=0), lambda: MLP((2,), out_channels=0)]
)
def test_an_output_without_channels_is_refused(network: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="out_channels"):
        network()
