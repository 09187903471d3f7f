"""Data that nobody plans for: hardly differing images, names that are no text."""

import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import cli
from data import prepare
from data.folder import Folder
from data.images import Digits
from data.module import DataModule
from data.stream import Images, Splits
from diffusion.media import quantised
from diffusion.training.data import warn_of_likeness, warn_of_mirrors
from diffusion.training.logger import RunLogger


@pytest.mark.parametrize(("level", "warns"), [(0, True), (9, False)])
def test_training_data_that_hardly_differ_are_warned_of(level: int, warns: bool) -> None:
    pixels = torch.full((4, 1, 4, 4), 100, dtype=torch.uint8)
    pixels[2:] += level
    given = Images(pixels)
    datamodule = DataModule(SimpleNamespace(shape=(1, 4, 4), load=lambda: Splits(given, given, given)), 2, 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_likeness(datamodule)
    assert [str(w.message).startswith("the training data are nearly all alike") for w in caught] == [True] * warns


@pytest.mark.parametrize(
    ("source", "flip", "warns"), [("digits", True, True), ("digits", False, False), ("even", True, False)]
)
def test_flips_that_give_images_unlike_the_data_are_warned_of(source: str, flip: bool, warns: bool) -> None:
    train = Digits().load().train
    if source == "even":  # as many digits are mirrored
        x = quantised(train.get(torch.arange(400)))
        train = Images(torch.cat((x[:200], x[200:].flip(3)))[torch.randperm(400)])
    datamodule = DataModule(SimpleNamespace(shape=(1, 8, 8), load=lambda: Splits(train, train, train)), 2, 0, flip=flip)
    datamodule.setup()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_mirrors(datamodule)
    assert ["dataset.flip=false trains on the images as they are" in str(w.message) for w in caught] == [True] * warns


def test_a_name_that_is_no_text_does_not_end_a_run(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, None)
    logger.log_result({"dataset": {"path": "caf\udce9"}}, {}, 1)
    logger.experiment.close()
    (events,) = tmp_path.glob("events*")
    assert b"caf\\udce9" in events.read_bytes()


def pictures(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
    return folder


def test_folders_without_images_beside_classes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        pictures(tmp_path / name)
    (tmp_path / "c").mkdir()
    (tmp_path / ".hidden").mkdir()
    Folder(tmp_path, 8).load()
    assert capsys.readouterr().out == f"{tmp_path}: 6 images in 2 classes; no images in c\n"


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, scandir = pictures(tmp_path / "a" / "closed"), os.scandir

    def refusing(path: str) -> object:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(OSError, match="closed cannot be listed: Permission denied; change its permissions, or move"):
        Folder(tmp_path, 8).load()


def test_links_that_lead_to_nothing_are_named(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(FileNotFoundError, match="one is a symbolic link that leads to nothing"):
        Folder(tmp_path / "one", 8).load()


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines", b"a: b", b"[x, y]", b"${x}", "\u00e9".encode()])
def test_data_prepare_takes_a_folder_of_any_name(
    tmp_path: Path, name: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / os.fsdecode(name))
    assert prepare.main(["dataset=folder", f"dataset.path={folder}"]) == 0
    assert capsys.readouterr().out.count("\n") == 2
    (folder / os.fsdecode(b"bad\xff\n.png")).write_bytes(b"none")
    assert prepare.main(["dataset=folder", f"dataset.path={folder}"]) == 1
    assert r"cannot be read: bad\udcff\n.png (not an image)" in capsys.readouterr().err


def test_the_home_folder_is_meant_in_lists_of_paths_too() -> None:
    home = str(Path("~").expanduser())
    assert cli.plain_path("ckpt=[~/a b, last,~/c]") == f'ckpt=["{home}/a b", last,"{home}/c"]'
    assert cli.plain_path("ckpt=[base,sr]") == "ckpt=[base,sr]"
