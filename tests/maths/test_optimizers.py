"""Muon: singular values, the update against a plain one, who moves which weight, and going on bit for bit."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffusion.networks.mlp import MLP
from diffusion.networks.tutorial import TutorialUNet
from diffusion.networks.unet import UNet
from diffusion.optimizers import AdamW, Muon, MuonAdamW, orthogonalized


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12)])
def test_orthogonalizing_keeps_the_singular_vectors_and_moves_the_values_into_its_band(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(3, *shape, generator=generator, dtype=torch.float64), full_matrices=False)
    values = torch.logspace(2, 0.1, min(shape), dtype=torch.float64).expand(3, -1)  # down to 0.004 of the norm
    result = u.mT @ orthogonalized(u * values[:, None] @ vh) @ vh.mT
    diagonal = result.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(result, diagonal.diag_embed(), atol=1e-10, rtol=0)
    assert diagonal.min() >= 0.68 and diagonal.max() <= 1.21
    # Each is the quintic, five times over, of what it was.
    s = values / values.norm(dim=1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(diagonal, s, atol=1e-10, rtol=0)


def test_orthogonalizing_holds_in_single_precision_for_nearly_singular_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 32, 288, generator=generator) * torch.logspace(0, -12, 32)[:, None]
    torch.testing.assert_close(orthogonalized(x), orthogonalized(x.double()).float(), atol=1e-3, rtol=0)
    assert torch.equal(orthogonalized(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


def test_a_step_is_muon_on_matrices_and_adamw_on_the_rest() -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList((nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3), nn.Linear(6, 9))).double()
    matrices, rest = [layer.weight for layer in layers], [layer.bias for layer in layers]
    optimizer = MuonAdamW(matrices, rest, matrix_lr=0.02, lr=0.003, momentum=0.9, betas=(0.9, 0.99), weight_decay=0.1,
                          fused=False)  # fmt: skip
    expected = [p.detach().clone() for p in matrices]
    twins = [p.detach().clone().requires_grad_() for p in rest]
    reference = torch.optim.AdamW(twins, lr=0.003, betas=(0.9, 0.99), weight_decay=0.1)
    averages = [torch.zeros_like(p) for p in expected]
    for _ in range(3):
        for p in layers.parameters():
            p.grad = torch.randn_like(p)
        for i, p in enumerate(matrices):
            assert p.grad is not None
            averages[i] = 0.9 * averages[i] + 0.1 * p.grad
            ahead = (0.9 * averages[i] + 0.1 * p.grad).flatten(1)
            x = ahead / ahead.norm()
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            scale = max(1, ahead.shape[0] / ahead.shape[1]) ** 0.5
            expected[i] = expected[i] * (1 - 0.02 * 0.1) - 0.02 * scale * x.view_as(p)
        for twin, p in zip(twins, rest, strict=True):
            twin.grad = p.grad
        reference.step()
        optimizer.step()
    torch.testing.assert_close([p.detach() for p in matrices], expected)
    torch.testing.assert_close([p.detach() for p in rest], [p.detach() for p in twins])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "unet": (
        lambda: UNet((1, 8, 8), widths=(8, 16), attention=(1,), head_channels=8, num_classes=3),
        {"conv_in.weight", "conv_out.weight", "embed_label.weight"},
    ),
    "mlp": (lambda: MLP((2,), width=8, num_classes=3), {"first.weight", "last.weight", "embed_label.weight"}),
    "tutorial": (lambda: TutorialUNet((1, 16, 16)), {"inc.layers.0.weight", "outc.weight"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_is_in_one_group_and_every_hidden_matrix_is_muons(name: str) -> None:
    make, ends = NETWORKS[name]
    with torch.device("meta"):
        network = make()
    groups = [{id(p) for p in group["params"]} for group in Muon()(network, fused=False).param_groups]
    assert len(groups) == 2 and not groups[0] & groups[1]
    assert groups[0] | groups[1] == {id(p) for p in network.parameters()}
    outside = {n for n, p in network.named_parameters() if p.ndim >= 2 and id(p) in groups[0]}
    assert outside == ends
    assert all(p.ndim >= 2 for p in network.parameters() if id(p) in groups[1])


def test_a_network_that_does_not_name_its_ends_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^Muon .* of a Linear .* `ends`$"):
        Muon()(nn.Linear(2, 2), fused=False)


@pytest.mark.parametrize("fused", [False, True])
def test_muon_goes_on_bit_for_bit_from_its_saved_state(fused: bool) -> None:
    def steps(network: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for k in numbers:
            noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(k))

            def closure(network: nn.Module = network, noise: Tensor = noise) -> Tensor:
                optimizer.zero_grad()
                loss = (network(noise, noise[:, 0], {}) - noise).square().mean()
                loss.backward()
                return loss

            assert optimizer.step(closure).requires_grad  # the closure saw gradients enabled

    torch.manual_seed(0)
    whole = MLP((2,), width=8)
    optimizer = Muon()(whole, fused)
    steps(whole, optimizer, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    part = copy.deepcopy(whole)
    resumed = Muon()(part, fused)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    steps(whole, optimizer, range(3, 6))
    steps(part, resumed, range(3, 6))
    for a, b in zip(whole.parameters(), part.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_decay_rate_of_0_may_be_written_as_a_whole_number() -> None:
    optimizer = AdamW(betas=[0, 0.99])(torch.nn.Linear(2, 2), fused=False)
    assert optimizer.param_groups[0]["betas"] == (0.0, 0.99)
