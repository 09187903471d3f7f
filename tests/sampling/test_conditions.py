"""Labels and vectors that condition a network, and how they are kept from it in training."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.stream import Batches, Images, Points, Request
from diffusion.denoisers import NO_LABEL, EpsPreconditioner, NetworkDenoiser, dropped
from diffusion.networks.mlp import MLP
from diffusion.networks.unet import UNet
from diffusion.noise import TRAINING, Noise
from diffusion.objectives import ConditionDropout, DenoisingObjective, Objective, SimpleWeighting, UniformTimes
from diffusion.sampling.conditions import of_examples
from diffusion.schedules import LinearSchedule


def networks(**options: int) -> list[tuple[nn.Module, Tensor]]:
    """Networks with weights that are nowhere zero, each with an input."""
    torch.manual_seed(0)
    found: list[tuple[nn.Module, Tensor]] = [
        (MLP((2,), width=16, depth=1, **options), torch.randn(3, 2)),
        (UNet((1, 8, 8), widths=(8, 16), blocks=1, attention=(), **options), torch.randn(3, 1, 8, 8)),
    ]
    for network, _ in found:
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
    return found


def test_a_label_and_a_vector_change_the_answer_and_nothing_said_is_the_network_without() -> None:
    conditioned = networks(num_classes=4, embedding=5)
    for (network, x), (bare, _) in zip(conditioned, networks(), strict=True):
        rest = {key: value for key, value in network.state_dict().items() if not key.startswith("embed_")}
        bare.load_state_dict(rest)
        c_noise, vector = torch.full((3,), 7.0), torch.randn(3, 5)

        def ask(label: list[int], vector: Tensor, network: nn.Module = network, x: Tensor = x) -> Tensor:
            cond = {"label": torch.tensor(label), "embedding": vector}
            return network(x, torch.full((3,), 7.0), cond)

        full = ask([0, 1, 2], vector)
        assert ((full - ask([3, 3, 3], vector)).flatten(1).norm(dim=1) > 1e-3).all()
        assert ((full - ask([0, 1, 2], -vector)).flatten(1).norm(dim=1) > 1e-3).all()
        nothing = ask([NO_LABEL] * 3, torch.zeros(3, 5))
        torch.testing.assert_close(nothing, bare(x, c_noise, {}))
        mixed = ask([0, NO_LABEL, 2], torch.stack((vector[0], 0 * vector[1], vector[2])))
        torch.testing.assert_close(mixed, torch.stack((full[0], nothing[1], full[2])))


def test_dropping_is_per_sample_and_leaves_other_conditions() -> None:
    cond = {"label": torch.tensor([2, 0, 1]), "embedding": torch.ones(3, 2), "level": torch.tensor([1.0, 2.0, 3.0])}
    found = dropped(cond, torch.tensor([False, True, False]))
    assert found["label"].tolist() == [2, NO_LABEL, 1]
    assert found["embedding"].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert found["level"].tolist() == [1, 2, 3]


class Seen(Objective):
    """An objective that only looks at the labels it is given."""

    def check(self, model: nn.Module) -> None:
        pass

    def forward(self, model: nn.Module, batch: dict[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        return {"loss": batch["label"].float(), "serial": batch["serial"]}


def conditional() -> NetworkDenoiser:
    return NetworkDenoiser(networks(num_classes=4)[0][0], LinearSchedule(), EpsPreconditioner())


def labels(objective: nn.Module, serials: Tensor, seed: int = 0) -> Tensor:
    batch = {"x": torch.zeros(len(serials), 2), "label": serials % 4, "serial": serials}
    out: dict[str, Any] = objective(conditional(), batch, Noise(seed, serials, TRAINING))
    assert torch.equal(out["serial"], serials)
    return out["loss"]


def test_the_share_is_dropped_and_which_depends_on_the_sample_alone() -> None:
    objective, serials = ConditionDropout(Seen(), 0.2), torch.arange(5000)
    found = labels(objective, serials)
    gone = found == NO_LABEL
    assert abs(gone.double().mean() - 0.2) < 4 * (0.2 * 0.8 / 5000) ** 0.5
    assert torch.equal(found[~gone], (serials % 4)[~gone].float())
    # In any batch, in any order: as after a resume, or on another number of devices.
    part = torch.tensor([4000, 17, 3, 999])
    assert torch.equal(labels(objective, part), found[part])
    assert not torch.equal(labels(objective, serials, seed=1), found)
    # Which labels go has nothing to do with the noise level, which is the sample's first number.
    early = Noise(0, serials, TRAINING).uniform() < 0.5
    assert abs(gone[early].double().mean() - gone[~early].double().mean()) < 0.05
    assert torch.equal(labels(objective.eval(), serials), (serials % 4).float())


def test_dropping_trains_the_network_without_labels_too() -> None:
    serials = torch.arange(400)
    batch = {"x": torch.randn(400, 2), "label": serials % 4, "serial": serials}
    plain = DenoisingObjective(UniformTimes(), SimpleWeighting())
    noise = Noise(0, serials, TRAINING)
    model = conditional()
    with torch.no_grad():
        conditioned = plain(model, batch, noise)["loss"]
        some = ConditionDropout(plain, 0.3)(model, batch, noise)["loss"]
        none = plain(model, batch | {"label": torch.full((400,), NO_LABEL)}, noise)["loss"]
    gone = noise.uniform(draw=2) < 0.3
    torch.testing.assert_close(some, torch.where(gone, none, conditioned))
    assert (some != conditioned).sum() == gone.sum()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_that_cannot_be_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="condition_dropout must be at least 0 and below 1"):
        ConditionDropout(Seen(), share)


def test_an_unconditional_network_cannot_have_anything_dropped() -> None:
    model = NetworkDenoiser(networks()[0][0], LinearSchedule(), EpsPreconditioner())
    with pytest.raises(
        ValueError, match="condition dropout of 0.1: this network has no condition that could be withheld"
    ):
        ConditionDropout(Seen(), 0.1)(model, {}, Noise(0, torch.arange(1)))


def test_vectors_of_a_dataset_are_served_beside_its_labels() -> None:
    points = Points(torch.randn(6, 2))
    request = Request(torch.tensor([4, 1]), torch.tensor([0, 1]), None)
    assert "embedding" not in Batches(points)[request]
    points.embeddings = torch.arange(18.0).reshape(6, 3)
    assert Batches(points)[request]["embedding"].tolist() == [[12, 13, 14], [3, 4, 5]]


def test_all_that_a_model_takes_of_an_example_belongs_to_it() -> None:
    pixels = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
    examples, rows = Images(pixels, torch.tensor([3, 2, 1, 0])), torch.tensor([2, 0])
    examples.embeddings = torch.arange(8.0).reshape(4, 2)
    for num_classes, embedding, taken in ((4, 2, {"label", "embedding"}), (4, 0, {"label"}), (0, 0, set())):
        model: Any = SimpleNamespace(num_classes=num_classes, embedding=embedding)
        conditioned = of_examples(model, None, examples, rows)
        assert set(conditioned) == taken
        assert all(
            conditioned[name].tolist() == {"label": [1, 3], "embedding": [[4, 5], [0, 1]]}[name] for name in taken
        )
