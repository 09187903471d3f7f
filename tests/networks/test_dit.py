"""The transformer on patches: the paper's size, what it is before training, exact formulas, and its conditions."""

import math
from typing import Any

import pytest
import torch
from test_networks import perturbed
from torch import Tensor, nn

from diffusion.denoisers import EDMPreconditioner, NetworkDenoiser
from diffusion.networks.dit import DiT, DiTBlock, places
from diffusion.optimizers import Muon
from diffusion.schedules import LinearSchedule

TINY: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2}
C_NOISE = torch.tensor([3.0, 700.0])


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_dit_s_2_has_the_papers_parameters() -> None:
    # Table 1 of the paper: DiT-S/2 has 33 M. Their code counts 32,963,360 at 32x32x4 with 1,000 classes and a learned
    # variance: with the vector of no class, which is zero here, and the places, which are fixed.
    network = DiT((4, 32, 32), patch=2, width=384, depth=12, heads=6, num_classes=1000, out_channels=8)
    assert sum(p.numel() for p in network.parameters()) == 32_963_360 - 384 - 256 * 384
    assert network.places.shape == (256, 384)


def test_a_new_transformer_is_zero_and_its_blocks_are_the_identity() -> None:
    network = DiT((3, 8, 8), num_classes=2, **TINY)
    assert not network(draw(2, 3, 8, 8), C_NOISE, {"label": torch.tensor([0, 1])}).any()
    h = draw(2, 5, 16)
    assert torch.equal(network.blocks[0](h, draw(2, 16)), h)


def test_at_the_beginning_only_the_gates_of_a_block_get_a_gradient() -> None:
    network = DiT((1, 8, 8), **TINY)
    nn.init.normal_(network.patches_out.weight)  # else nothing before it gets any
    network(draw(2, 1, 8, 8), C_NOISE, {}).square().sum().backward()
    for block in network.blocks:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = block.modulation.weight.grad.chunk(6)
        assert gate_1.any()
        assert gate_2.any()
        for part in (shift_1, scale_1, shift_2, scale_2, block.qkv.weight.grad, block.out.weight.grad):
            assert not part.any()
        assert not block.mlp[0].weight.grad.any()
    assert all(not p.grad.any() for p in network.embed.parameters())


def test_every_parameter_of_a_trained_one_gets_a_gradient() -> None:
    conditions = {"num_classes": 2, "embedding": 3, "condition_channels": 2, "condition_level": True}
    network = perturbed(DiT((1, 8, 8), **TINY, **conditions))
    cond = {"label": torch.tensor([0, 1]), "embedding": draw(2, 3), "image": draw(2, 2, 8, 8), "level": draw(2).abs()}
    network(draw(2, 1, 8, 8), C_NOISE, cond).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_block_is_the_papers_formula() -> None:
    block = perturbed(DiTBlock(8, heads=2).double())
    h, emb = draw(3, 5, 8).double(), draw(3, 8).double()
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = block.modulation(emb)[:, None].chunk(6, dim=2)

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(2, keepdim=True)) / (x.var(2, unbiased=False, keepdim=True) + 1e-6).sqrt()

    def attention(x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (2, 4)) for part in block.qkv(x).split(8, dim=2))  # (B, N, heads, 4)
        logits = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(4)
        return block.out(torch.einsum("bhij,bjhd->bihd", logits.softmax(-1), v).flatten(2))

    expected = h + gate_1 * attention(norm(h) * (1 + scale_1) + shift_1)
    expected = expected + gate_2 * block.mlp(norm(expected) * (1 + scale_2) + shift_2)
    torch.testing.assert_close(block(h, emb), expected)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_an_image_whose_tokens_pass_unchanged_comes_back(patch: int) -> None:
    channels, length = 3, 3 * patch**2
    network = DiT((channels, 8, 12), patch=patch, width=4 * length, depth=1, heads=1)
    identity = torch.eye(length)
    with torch.no_grad():
        network.patches_in.weight.copy_(torch.cat((identity, -identity, 0 * identity, 0 * identity)))
        network.places.zero_()
        network.patches_out.weight.copy_(torch.cat((identity, -identity, 0 * identity, 0 * identity), dim=1) / 2)
    network.norm_out = nn.Identity()  # the tokens' mean is zero, their scale is not one
    x = draw(2, channels, 8, 12)
    torch.testing.assert_close(network(x, C_NOISE, {}), x)


def test_tokens_differ_by_their_place_alone() -> None:
    network = perturbed(DiT((1, 8, 8), **TINY)).double()
    x = draw(2, 1, 8, 8).double()

    def swapped(x: Tensor) -> Tensor:
        """The squares of the image's two halves change places."""
        return torch.cat((x[..., 4:], x[..., :4]), dim=3)

    assert not torch.allclose(network(swapped(x), C_NOISE, {}), swapped(network(x, C_NOISE, {})))
    network.places.zero_()
    torch.testing.assert_close(network(swapped(x), C_NOISE, {}), swapped(network(x, C_NOISE, {})))


def test_a_place_is_the_sinusoids_of_its_row_and_column() -> None:
    grid = places(3, 5, 8)
    assert grid.shape == (15, 8)
    for row, column in ((0, 0), (2, 1), (1, 4)):
        expected = [f(p * w) for p in (row, column) for f in (math.sin, math.cos) for w in (1, 0.01)]
        assert grid[5 * row + column].tolist() == pytest.approx(expected, abs=1e-6)
    assert len(grid.unique(dim=0)) == 15
    assert "places" not in DiT((1, 8, 8), **TINY).state_dict()


def test_each_condition_changes_the_output_and_a_label_of_none_is_a_vector_of_zero() -> None:
    network = perturbed(DiT((1, 8, 8), num_classes=2, **TINY)).double()
    x = draw(1, 1, 8, 8).double()

    def run(c_noise: float, label: int) -> Tensor:
        return network(x, torch.tensor([c_noise]), {"label": torch.tensor([label])})

    none = run(10, -1)
    assert not torch.allclose(run(10, 0), run(10, 1))
    assert not torch.allclose(run(10, 0), run(600, 0))
    network.embed_label.weight.data.zero_()
    torch.testing.assert_close(run(10, 0), none)


def test_samples_in_a_batch_do_not_see_each_other() -> None:
    network = perturbed(DiT((1, 8, 8), **TINY)).double()
    x = draw(2, 1, 8, 8).double()
    together = network(x, C_NOISE, {})
    for b in range(2):
        torch.testing.assert_close(network(x[b : b + 1], C_NOISE[b : b + 1], {})[0], together[b])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 10)])
def test_it_takes_any_size_that_the_patch_divides_and_pads_others(shape: tuple[int, int, int]) -> None:
    channels, height, width = shape
    assert perturbed(DiT(shape, **TINY))(draw(2, *shape), C_NOISE, {}).shape == (2, *shape)
    odd = (channels, height - 1, width - 1)
    assert perturbed(DiT(odd, **TINY, pad=True))(draw(2, *odd), C_NOISE, {}).shape == (2, *odd)


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((1, 8, 9), {}, r"8x9 cannot pass dit with patch=2: .* multiples of 2; pad them \(pad=true\), .*patch"),
        ((1, 28, 28), {"patch": 8}, "28x28 .* multiples of 8"),
        ((2,), {}, r"dit needs images .*, got shape \(2,\)"),
        ((1, 8, 8), {"patch": 0}, "patch, depth and heads of at least 1"),
        ((1, 8, 8), {"depth": 0}, "depth=0"),
        ((1, 8, 8), {"width": 18, "heads": 1}, "multiple of 4 and of heads"),
        ((1, 8, 8), {"width": 20, "heads": 3}, "multiple of 4 and of heads"),
        ((1, 8, 8), {"out_channels": 0}, "out_channels"),
    ],
)
def test_it_says_what_it_cannot_take(shape: tuple[int, ...], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        DiT(shape, **TINY | settings)
    assert "\n" not in str(error.value)


def test_muon_takes_the_matrices_between_its_ends() -> None:
    network = DiT((1, 8, 8), num_classes=2, **TINY)
    rest, matrices = (group["params"] for group in Muon()(network, fused=False).param_groups)
    outside = (network.patches_in.weight, network.patches_out.weight, network.embed_label.weight)
    assert all(any(p is q for q in rest) for p in outside)
    assert sum(p.ndim >= 2 for p in network.parameters()) == len(matrices) + len(outside)


def test_under_autocast_it_gives_about_the_same() -> None:
    network = perturbed(DiT((1, 8, 8), **TINY))
    x = draw(2, 1, 8, 8)
    exact = network(x, C_NOISE, {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = network(x, C_NOISE, {})
    torch.testing.assert_close(result.float(), exact, rtol=0.1, atol=0.1 * exact.std().item())


def test_a_denoiser_of_it_has_a_gradient_by_its_input() -> None:
    denoiser = NetworkDenoiser(perturbed(DiT((1, 8, 8), **TINY)), LinearSchedule(), EDMPreconditioner())
    x = draw(2, 1, 8, 8).requires_grad_()
    denoiser(x, torch.tensor(0.5)).square().sum().backward()
    assert x.grad is not None
    assert x.grad.any()
