"""Augmentation that conditions the network: the vector states the transformation, and samples are drawn with none."""

import math
from pathlib import Path

import pytest
import torch
from support.scripts import TINY, assert_refused, call
from torch import Tensor

import sample
import train
from data.augmentation import LENGTH, Augmentation, augmentation, warped
from data.images import Digits
from data.module import DataModule
from data.stream import Batches, Images, Request
from data.toy import Toy2d
from diffusion.networks.dit import DiT
from diffusion.networks.unet import UNet
from diffusion.runs.checkpoints import find
from diffusion.runs.trained import load_model

NOTHING = torch.zeros(LENGTH)


def stated(**changes: float) -> Tensor:
    """The vector (1, 9) of a transformation: a scaling, angle, stretch and direction, shifts."""
    angle, along = changes.get("angle", 0.0), changes.get("direction", 0.0)
    stretch = changes.get("stretch", 0.0)
    moved = (changes.get("right", 0.0), changes.get("down", 0.0))
    values = (0, 0, changes.get("scale", 0.0), math.cos(angle) - 1, math.sin(angle))
    return torch.tensor([[*values, stretch * math.cos(along), stretch * math.sin(along), *moved]])


X = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_nothing_stated_changes_nothing_but_rounding() -> None:
    torch.testing.assert_close(warped(X, stated()), X, rtol=0, atol=1e-5)


def test_a_quarter_turn_is_a_quarter_turn_clockwise() -> None:
    torch.testing.assert_close(warped(X, stated(angle=math.pi / 2)), X.rot90(-1, (2, 3)), rtol=0, atol=1e-5)


def test_an_image_moves_right_and_down_by_an_eighth_of_its_side_a_unit() -> None:
    found = warped(X, stated(right=1.0, down=2.0))
    torch.testing.assert_close(found[..., 2:, 1:], X[..., :-2, :-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[..., 2:, 0], X[..., :-2, 0], rtol=0, atol=1e-5)  # as in a mirror


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 2.0},
        {"scale": -1.0, "angle": 0.7},
        {"stretch": 2.0, "direction": 0.4},
        {"stretch": 1.0, "direction": -2.0, "angle": -2.5, "scale": 1.0, "right": 0.5, "down": -0.3},
    ],
)
def test_the_vector_states_the_affine_map(changes: dict[str, float]) -> None:
    # What stood at p is then at M p + shift. PyTorch's bicubic kernel is right about planes to a tenth of a pixel.
    height, width = 24, 32
    at = torch.stack(
        torch.meshgrid(torch.arange(width) - (width - 1) / 2, torch.arange(height) - (height - 1) / 2, indexing="xy"),
        -1,
    )  # (H, W, 2), x and y from the centre
    slope = torch.tensor([0.02, -0.03])
    found = warped((at @ slope)[None, None], stated(**changes))[0, 0]
    angle, d = changes.get("angle", 0.0), changes.get("direction", 0.0)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    along = torch.tensor([[math.cos(d), -math.sin(d)], [math.sin(d), math.cos(d)]])
    s = 2 ** (0.2 * changes.get("stretch", 0.0))
    forward = 2 ** (0.2 * changes.get("scale", 0.0)) * along @ torch.diag(torch.tensor([s, 1 / s])) @ along.T @ turn
    shift = torch.tensor([changes.get("right", 0.0) * width / 8, changes.get("down", 0.0) * height / 8])
    source = (at - shift) @ torch.linalg.inv(forward).T
    inside = (source.abs() < torch.tensor([width / 2 - 3, height / 2 - 3])).all(-1)
    assert inside.sum() > 100
    torch.testing.assert_close(found[inside], (source @ slope)[inside], rtol=0, atol=0.004)


def test_mirrored_images_are_exact_and_stated() -> None:
    x = X.expand(400, -1, -1, -1)
    found, vectors = Augmentation(1.0)(x, 0, torch.arange(400))
    # With each transformation certain, only the coins of the mirrorings are left to chance.
    for column in (0, 1):
        assert set(vectors[:, column].tolist()) == {0, 1}
        assert abs(vectors[:, column].mean() - 0.5) < 4 * (0.25 / 400) ** 0.5
    only = vectors.clone()
    only[:, 2:] = 0
    mirrored = torch.where(vectors[:, 0, None, None, None] == 1, x.flip(3), x)
    mirrored = torch.where(vectors[:, 1, None, None, None] == 1, mirrored.flip(2), mirrored)
    torch.testing.assert_close(found, warped(mirrored, vectors))


def test_each_transformation_has_the_probability_and_untouched_images_stay_to_the_bit() -> None:
    n, p = 3000, 0.12
    vectors = Augmentation(p).vectors(3, torch.arange(n))
    done = torch.stack(
        (vectors[:, 0] * 2, vectors[:, 1] * 2, *(vectors[:, k] != 0 for k in (2, 4, 5, 7))), dim=1
    ).float()  # a mirroring happens in half of its cases
    assert ((done.mean(0) - p).abs() < 5 * (2 * p / n) ** 0.5).all()
    assert (vectors[:, 2:][vectors[:, 2:] != 0].abs() < 6).all()
    x = torch.rand(64, 1, 8, 8) * 2 - 1
    found, vectors = Augmentation(p)(x, 3, torch.arange(64))
    still = (vectors == 0).all(1)
    assert 10 < still.sum() < 60
    assert torch.equal(found[still], x[still])
    assert (found[~still] != x[~still]).flatten(1).any(1).all()
    assert (found.abs() <= 1).all()


def test_what_is_done_depends_on_seed_and_serial_alone() -> None:
    made, x = Augmentation(0.5), X.expand(6, -1, -1, -1)
    found, vectors = made(x, 1, torch.arange(6))
    part = torch.tensor([4, 1])
    again, said = made(x[part], 1, part)
    assert torch.equal(again, found[part]) and torch.equal(said, vectors[part])
    assert not torch.equal(made.vectors(2, torch.arange(6)), vectors)


def test_training_batches_are_augmented_and_others_are_not() -> None:
    module = DataModule(Digits(), batch_size=16, seed=0, augment=0.5)
    plain = DataModule(Digits(), batch_size=16, seed=0)
    ours, theirs = next(iter(module.train_dataloader())), next(iter(plain.train_dataloader()))
    assert ours["augmentation"].shape == (16, LENGTH)
    assert torch.equal(ours["serial"], theirs["serial"]) and not torch.equal(ours["x"], theirs["x"])
    assert "augmentation" not in theirs
    for loader in (module.val_dataloader(), module.test_dataloader()):
        assert "augmentation" not in next(iter(loader))


def test_an_image_condition_is_made_of_the_image_that_is_trained() -> None:
    class Itself:
        def augmented(self, x: Tensor, seed: int, serials: Tensor) -> dict[str, Tensor]:
            return {"image": x}

    images = Images(torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8))
    request = Request(torch.arange(8), torch.arange(8), None)
    batch = Batches(images, Itself(), 0, Augmentation(1.0))[request]
    assert torch.equal(batch["image"], batch["x"])


@pytest.mark.parametrize("network", [
    lambda: UNet((1, 8, 8), widths=(8, 8), blocks=1, attention=(), augmentation=LENGTH),
    lambda: DiT((1, 8, 8), patch=4, width=8, depth=1, heads=1, augmentation=LENGTH),
], ids=["unet", "dit"])  # fmt: skip
def test_a_network_without_an_augmentation_vector_answers_as_for_the_zero_vector(network: object) -> None:
    torch.manual_seed(0)
    made = network()  # type: ignore[operator]
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, c_noise = torch.randn(2, 1, 8, 8), torch.ones(2)
    nothing = made(x, c_noise, {})
    assert torch.equal(made(x, c_noise, {"augmentation": torch.zeros(2, LENGTH)}), nothing)
    assert (made(x, c_noise, {"augmentation": torch.ones(2, LENGTH)}) - nothing).abs().max() > 1e-3


def test_a_run_is_conditioned_on_its_augmentation_and_what_it_draws_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = call(train, tmp_path, *TINY, "dataset.augment=0.5", "preview_every=0", "lr=0.05",
                   "learning_rate.warmup_images=0")  # fmt: skip
    assert outcome.code == 0, outcome.err
    monkeypatch.chdir(tmp_path)
    embedding = load_model(find("last")).network.embed_augmentation
    assert isinstance(embedding, torch.nn.Linear)
    asked: list[bool] = []
    forward = UNet.forward

    def watched(self: UNet, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        asked.append(bool(cond.get("augmentation", NOTHING).any()))
        return forward(self, x, c_noise, cond)

    monkeypatch.setattr(UNet, "forward", watched)
    assert call(sample, tmp_path, "ckpt=last", "n=2", "steps=3", "out=x.png").code == 0
    assert asked == [False] * 3


def test_without_augmentation_the_network_is_the_one_that_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for more in ((), ("dataset.augment=0",)):
        assert call(train, tmp_path, *TINY, *more, "preview_every=0").code == 0
    monkeypatch.chdir(tmp_path)
    first, second = (find(k).state for k in ("0", "1"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any("augmentation" in name for name in first)


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_one_without_augmentation_and_the_reverse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ("preview_every=0", "lr=1e-9", "trainer.max_steps=1", "val_every=1")
    for more in ((), ("dataset.augment=0.5", "init_from=0"), ("init_from=1",)):
        outcome = call(train, tmp_path, *TINY, *quick, *more)
        assert outcome.code == 0, outcome.err
    monkeypatch.chdir(tmp_path)
    bare, tuned, again = (load_model(find(k)).state_dict() for k in "012")
    assert tuned.keys() - bare.keys() == {"network.embed_augmentation.weight"}
    assert tuned["network.embed_augmentation.weight"].abs().max() < 1e-6
    assert again.keys() == bare.keys()
    for name, value in bare.items():
        torch.testing.assert_close(tuned[name], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(again[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("dataset.augment=1.5", "dataset.augment must be a probability, from 0 (off) to 1, got 1.5"),
        ("dataset.augment=-0.1", "dataset.augment must be a probability"),
        ("dataset.augment=true", "dataset.augment must be a probability"),
        ("dataset.augment=much", "dataset.augment must be a probability"),
        ("dataset=moons dataset.augment=0.1", "dataset.augment=0.1: only images can be augmented"),
        ("network=tutorial dataset.augment=0.1", "TutorialUNet takes no such condition"),
        ("experiment=classifier_digits dataset.augment=0.1", "Encoder takes no such condition"),
    ],
)
def test_what_cannot_be_augmented_gets_one_line_and_leaves_nothing(tmp_path: Path, arguments: str, said: str) -> None:
    assert_refused(call(train, tmp_path, *arguments.split()), said)
    assert list(tmp_path.iterdir()) == []


def test_points_and_impossible_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="only images"):
        DataModule(Toy2d("moons", 10), batch_size=4, seed=0, augment=0.1)
    with pytest.raises(ValueError, match="probability"):
        augmentation(False, (1, 8, 8))
    assert augmentation(0, (2,)) is None
