"""Data that are not those of the checkpoint, and learning rates and runs that resuming chooses."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from support.scripts import TINY, call
from torch import Tensor

import train
from data.changes import DataChanged, compared, identities
from data.folder import Folder
from data.stream import Images, Points
from diffusion.optimizers import LearningRate
from diffusion.runs import resume
from diffusion.runs.checkpoints import Checkpoint, newest_good
from diffusion.runs.resume import rate_lift


def splits(train: list[int], val: list[int], test: list[int]) -> dict[str, Tensor]:
    return {"train": torch.tensor(train), "val": torch.tensor(val), "test": torch.tensor(test)}


def noise(folder: Path, count: int) -> None:
    """Pictures 000.png, 001.png, ... of random pixels, the same at each call."""
    folder.mkdir(exist_ok=True)
    chance = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i:03}.png")


BEFORE = splits([1, 2, 3, 4], [5], [6])


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (BEFORE, None),
        (splits([7, 8], [5], [6]), "examples of train: 4 then, 2 now, 0 the same"),
        (
            splits([1, 2, 3, 7], [8], [6]),
            "train: 4 then, 4 now, 3 the same; examples of val: 1 then, 1 now, 0 the same",
        ),
        (splits([2, 1, 3, 4], [5], [6]), "4 the same, in another order"),
    ],
)
def test_changes_are_described_by_numbers(now: dict[str, Tensor], said: str | None) -> None:
    found = compared(BEFORE, now)
    assert found is None if said is None else said in str(found)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (splits([1, 2, 3, 5], [4], [6]), "1 example held out for validation or test would now be trained on and 1 ex"),
        (splits([1, 2, 3, 4, 5, 6], [7], [8]), "2 examples held out for validation or test would now be trained on"),
        (splits([1, 2], [5], [6, 3]), "1 example trained on would now be held out for validation or test"),
    ],
)
def test_an_example_that_changes_sides_is_refused(now: dict[str, Tensor], said: str) -> None:
    with pytest.raises(DataChanged, match=said):
        compared(BEFORE, now)


def test_splits_that_always_shared_examples_leak_nothing() -> None:
    same = splits([1, 2], [1, 2], [1, 2])
    assert "2 then, 3 now" in str(compared(same, splits([1, 2, 3], [1, 2, 3], [1, 2, 3])))


def test_identities_follow_content_or_the_names_and_sizes_of_files(tmp_path: Path) -> None:
    pixels = torch.arange(2 * 16, dtype=torch.uint8).view(2, 1, 4, 4)
    a, b = identities(Images(pixels)).tolist()
    assert a != b
    assert identities(Images(pixels.flip(0))).tolist() == [b, a]
    assert len(set(identities(Points(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))).tolist())) == 2
    noise(tmp_path, 4)
    in_memory, lazy = (Folder(tmp_path, 8, holdout=0.0, memory_gib=gib).load().train for gib in (4.0, 0.0))
    assert identities(in_memory).tolist() == identities(lazy).tolist()
    with next(tmp_path.glob("*.png")).open("ab") as file:
        file.write(b"0")
    grown = identities(Folder(tmp_path, 8, holdout=0.0).load().train)
    assert (grown != identities(in_memory)).sum() == 1


SETTINGS = ("dataset=folder", "dataset.image_size=8", "network=unet", "network.attention=[]", *TINY[1:])


def test_a_resumed_run_warns_of_other_images_and_refuses_those_that_change_sides(tmp_path: Path) -> None:
    noise(tmp_path / "photos", 8)
    assert call(train, tmp_path, *SETTINGS, "dataset.path=photos").code == 0
    noise(tmp_path / "photos", 12)
    refused = call(train, tmp_path, "resume=last", "trainer.max_steps=5")
    assert refused.code == 1
    assert refused.err.startswith("error: the data have changed since step 4")
    assert "would now be trained on" in refused.err
    (tmp_path / "black").mkdir()
    for i in range(40):
        Image.new("RGB", (8, 8)).save(tmp_path / "black" / f"{i:03}.png")
    with pytest.warns(UserWarning, match="changed since step 4 of .*: examples of train: 6 then, 36 now, 0 the same"):
        outcome = call(train, tmp_path, "resume=last", "trainer.max_steps=5", "dataset=folder", "dataset.path=black")
    assert outcome.code == 0, outcome.err


def test_a_lengthened_decay_says_where_the_learning_rate_goes() -> None:
    path, config = Path("runs/version_0/checkpoints/last.ckpt"), {"trainer": {"max_steps": 100}}
    begun, cosine = Checkpoint(path, 100, config, {}, None), LearningRate(decay="cosine")
    said = rate_lift(begun, cosine, 1e-3, 8, 200)
    assert said is not None
    assert "rises from 2.5e-07 to 0.0005" in said
    assert "init_from=runs/version_0 lr=0.0001" in said
    assert rate_lift(begun, cosine, 1e-3, 8, 100) is None
    assert rate_lift(begun, LearningRate(), 1e-3, 8, 200) is None
    warming = replace(begun, step=10)
    assert rate_lift(warming, LearningRate(warmup_images=1000, decay="cosine"), 1e-3, 8, 200) is None


@pytest.mark.slow
def test_auto_takes_the_run_with_these_limits_else_one_that_is_not_too_far(tmp_path: Path) -> None:
    def auto(steps: int) -> str:
        outcome = call(train, tmp_path, *TINY, f"trainer.max_steps={steps}", "resume=auto")
        assert outcome.code == 0, outcome.err
        return outcome.out

    runs = Path("lightning_logs", "digits")
    assert "resume=auto begins a new run: none was begun with these settings" in auto(4)
    said = auto(2)
    assert f"resume=auto begins a new run: {runs / 'version_0'} has come further, to step 4" in said
    assert f"run folder: {runs / 'version_1'}" in said
    assert f"resume=auto goes on with {runs / 'version_0'}, step 4: the newest run with these settings\n" in auto(4)
    assert f"{runs / 'version_1'}, step 2: the newest run with these settings, now with trainer.max_steps=3" in auto(3)
    # A budget has no steps of its own to compare, also in a sweep.
    config = dict(newest_good(tmp_path / runs / "version_1").config)
    asked = config | {"budget_minutes": 1.0, "trainer": config["trainer"] | {"max_steps": 50_000}}
    with mock.patch.object(resume, "essence", return_value={}):
        found = resume.find_begun(asked, tmp_path / "lightning_logs", of_sweep=True)
    assert found is not None
