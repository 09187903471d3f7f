"""Folders of images: every format decoded as a person sees it, unreadable files named, splits fixed."""

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data.collection import LazyImages
from data.folder import Folder
from data.module import DataModule

ORIENTATION = 0x0112


def write(path: Path, colour: object = (200, 100, 50), mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def fill(root: Path, n: int, folder: str = "") -> None:
    """Write n grey images of levels 0, 1, 2, ..."""
    for i in range(n):
        write(root / folder / f"{i:03}.png", (i, i, i))


def levels(pixels: Tensor) -> Tensor:
    """Return [-1, 1] as 0..255."""
    return (pixels + 1) * 127.5


def only(root: Path, **options: object) -> Tensor:
    """Return the single image of a folder as float (C, H, W) in 0..255."""
    splits = Folder(root, **{"image_size": 8, **options}).load()
    assert len(splits.train) == 1
    return levels(splits.train.get(torch.tensor([0]))[0])


@pytest.mark.parametrize("suffix", ["png", "PNG", "jpg", "jpeg", "webp", "bmp"])
def test_each_format_keeps_its_colour(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"a.{suffix}")
    x = only(tmp_path)
    assert x.shape == (3, 8, 8)
    assert (x.mean((1, 2)) - torch.tensor([200.0, 100.0, 50.0])).abs().max() < 4


def test_a_gif_shows_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert only(tmp_path)[:, 0, 0].tolist() == [255, 0, 0]


def test_grey_becomes_three_equal_channels_and_colour_becomes_luma(tmp_path: Path) -> None:
    write(tmp_path / "grey" / "a.png", 77, "L")
    assert (only(tmp_path / "grey").round() == 77).all()
    write(tmp_path / "rgb" / "a.png", (200, 100, 50))
    x = only(tmp_path / "rgb", channels=1)
    assert x.shape == (1, 8, 8)
    assert (x - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)).abs().max() < 1


@pytest.mark.parametrize("background", [255, 0, 40])
def test_transparency_shows_the_background(tmp_path: Path, background: int) -> None:
    write(tmp_path / "a.png", (200, 0, 0, 0), "RGBA")
    assert (only(tmp_path, background=background).round() == background).all()


def test_half_transparency_blends(tmp_path: Path) -> None:
    write(tmp_path / "a.png", (0, 100), "LA")
    write(tmp_path / "a.png", (0, 0, 0, 51), "RGBA")
    assert (only(tmp_path) - 0.8 * 255).abs().max() <= 1


def test_palettes_with_and_without_transparency(tmp_path: Path) -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    for name, options in (("plain", {}), ("clear", {"transparency": 1})):
        (tmp_path / name).mkdir()
        palette.save(tmp_path / name / "a.png", **options)
    assert only(tmp_path / "plain")[:, 0, 0].round().tolist() == [10, 20, 30]
    assert (only(tmp_path / "clear") == 255).all()


def test_16_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.repeat(np.array([0, 257, 300, 128 * 257, 60_000, 65_535], np.uint16)[None], 6, 0)
    Image.fromarray(values).save(tmp_path / "a.png")
    x = only(tmp_path, image_size=6)
    assert x[0, 0].round().tolist() == [0, 1, 1, 128, 233, 255]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 8, 4))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    x = only(tmp_path)
    assert x[:, :, 5:].min() > 200 and x[:, :, :3].max() < 50


def test_the_short_side_is_resized_and_the_centre_cropped(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 20), (0, 0, 255))
    image.paste((255, 0, 0), (20, 0, 40, 20))
    image.save(tmp_path / "a.png")
    x = only(tmp_path, image_size=10)
    assert (x[0, :, 1:-1] > 250).all() and (x[2, :, 1:-1] < 5).all()


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    assert (only(tmp_path, image_size=8) - 127.5).abs().max() < 12


def test_sizes_need_not_be_square(tmp_path: Path) -> None:
    write(tmp_path / "a.png", size=(30, 20))
    assert only(tmp_path, image_size=[4, 12]).shape == Folder(tmp_path, [4, 12]).shape == (3, 4, 12)


def test_hidden_and_foreign_files_are_ignored(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    for name in (".b.png", "._a.png", ".trash/c.png", "sub/.cache/d.png"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Folder(tmp_path).load().train) == 1


def test_subfolders_give_labels_in_sorted_order(tmp_path: Path) -> None:
    for name, level in (("zebra/a.png", 9), ("ant/deep/b.png", 1), ("ant/c.png", 2)):
        write(tmp_path / name, (level,) * 3)
    source = Folder(tmp_path, image_size=8, holdout=0)
    train = source.load().train
    assert source.classes == ("ant", "zebra")
    seen = levels(train.get(torch.arange(3)))[:, 0, 0, 0].round().tolist()
    assert dict(zip(seen, train.labels.tolist(), strict=True)) == {9: 1, 1: 0, 2: 0}


def test_images_beside_subfolders_mean_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "sub" / "b.png")
    source = Folder(tmp_path)
    with pytest.warns(UserWarning, match="no image has a label"):
        splits = source.load()
    assert splits.train.labels.tolist() == [0, 0]
    assert source.classes == ()


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    write(tmp_path / "sub" / "a.png")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(Folder(tmp_path).load().train) == 1


@pytest.mark.parametrize(
    ("n", "holdout", "sizes"),
    [(1, 0.05, [1, 1, 1]), (2, 0.05, [2, 2, 2]), (3, 0.05, [1, 1, 1]), (40, 0.1, [32, 4, 4]), (4, 0.49, [2, 1, 1]), (5,
    0, [5, 5, 5])],
)  # fmt: skip
def test_splits_have_their_share_and_are_disjoint(tmp_path: Path, n: int, holdout: float, sizes: list[int]) -> None:
    fill(tmp_path, n)
    splits = Folder(tmp_path, image_size=8, holdout=holdout).load()
    assert [len(part) for part in splits] == sizes
    shown = [levels(part.get(torch.arange(len(part))))[:, 0, 0, 0].round().tolist() for part in splits]
    if sum(sizes) == n:
        assert sorted(itertools.chain(*shown)) == list(range(n))
    else:
        assert all(sorted(part) == list(range(n)) for part in shown)


def test_splits_follow_the_sorted_relative_paths(tmp_path: Path) -> None:
    fill(tmp_path, 40)
    val = Folder(tmp_path, image_size=8, holdout=0.1).load().val
    expected = np.random.RandomState(0).permutation(40)[:4]
    assert levels(val.get(torch.arange(4)))[:, 0, 0, 0].round().tolist() == expected.tolist()


def spoil(kind: str, path: Path) -> None:
    if kind == "cut off":
        Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "text":
        path.write_text("hello")
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("kind", ["cut off", "text", "empty"])
def test_unreadable_files_are_named_and_skipped_up_to_the_share(tmp_path: Path, kind: str) -> None:
    fill(tmp_path, 19)
    spoil(kind, tmp_path / "broken.png")
    with pytest.warns(UserWarning, match=r"skipped 1 of 20 images .*broken\.png \("):
        splits = Folder(tmp_path, image_size=8, holdout=0, max_unreadable=0.05).load()
    assert sorted(levels(splits.train.get(torch.arange(19)))[:, 0, 0, 0].round().tolist()) == list(range(19))
    with pytest.raises(ValueError, match=r"1 of 20 images .*broken\.png.*max_unreadable=0.04 allows 0") as caught:
        Folder(tmp_path, max_unreadable=0.04).load()
    assert "\n" not in str(caught.value)


def test_nothing_readable_is_an_error_at_any_share(tmp_path: Path) -> None:
    spoil("text", tmp_path / "a.png")
    with pytest.raises(ValueError, match="1 of 1 images"):
        Folder(tmp_path, max_unreadable=0.99).load()


def test_a_decompression_bomb_counts_as_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.png", size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="decompression bomb"):
        Folder(tmp_path).load()


@pytest.mark.parametrize("channels", [1, 3])
def test_decoded_on_the_fly_equals_in_memory(tmp_path: Path, channels: int) -> None:
    for i in range(12):
        pixels = np.random.RandomState(i).randint(0, 256, (20, 30, 3)).astype(np.uint8)
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    options = {"image_size": [8, 12], "channels": channels, "holdout": 0.2}
    held, lazy = Folder(tmp_path, **options).load(), Folder(tmp_path, **options, memory_gib=0.0).load()
    for a, b in zip(held, lazy, strict=True):
        assert not a.lazy and b.lazy
        indices, flip = torch.arange(len(a)), torch.arange(len(a)) % 2 == 0
        assert torch.equal(a.get(indices, flip), b.get(indices, flip))
        assert torch.equal(a.labels, b.labels)


def test_the_memory_boundary_is_the_size_of_the_pixels(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    gib = 4 * 3 * 16 * 16 / 2**30
    assert not Folder(tmp_path, 16, memory_gib=gib).load().train.lazy
    assert Folder(tmp_path, 16, memory_gib=0.99 * gib).load().train.lazy


def test_workers_decode_lazy_sets(tmp_path: Path) -> None:
    fill(tmp_path, 6)
    source = Folder(tmp_path, image_size=8, memory_gib=0.0)
    loader = DataModule(source, batch_size=8, seed=0).train_dataloader()
    assert loader.num_workers >= 1
    batch = next(iter(loader))
    assert batch["x"].shape == (8, 3, 8, 8)
    in_memory = DataModule(Folder(tmp_path, image_size=8), batch_size=8, seed=0).train_dataloader()
    assert in_memory.num_workers == 0
    assert torch.equal(batch["x"], next(iter(in_memory))["x"])


def test_a_file_cut_off_is_replaced_by_the_next_when_decoded_on_the_fly_and_too_many_stop(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    spoil("cut off", tmp_path / "001.png")
    train = Folder(tmp_path, image_size=8, holdout=0, memory_gib=0.0, max_unreadable=0.25).load().train
    assert isinstance(train, LazyImages)
    with pytest.warns(UserWarning, match=r"cannot read .*001\.png"):
        x = train.get(torch.arange(4))
    assert levels(x)[:, 0, 0, 0].round().tolist() == [0, 2, 2, 3]
    spoil("cut off", tmp_path / "003.png")
    with pytest.raises(ValueError, match=r"003\.png.*2 unreadable images, 1 allowed"):
        train.get(torch.arange(4))


def test_the_image_that_stands_in_for_a_torn_one_is_of_its_class(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "black" / f"{i}.png", (0, 0, 0))
        write(tmp_path / "white" / f"{i}.png", (255, 255, 255))
    torn = tmp_path / "black" / "2.png"
    spoil("cut off", torn)
    train = Folder(tmp_path, image_size=8, holdout=0, memory_gib=0.0, max_unreadable=0.25).load().train
    assert isinstance(train, LazyImages)
    with pytest.warns(UserWarning, match=r"cannot read .*2\.png"):
        x = train.get(torch.arange(6))
    assert torch.equal(x.mean(dim=(1, 2, 3)) > 0, train.labels == 1)  # classes by name: black is 0, white is 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Folder(None), "dataset=folder needs dataset.path="),
        (lambda: Folder("x", image_size=0), "image_size=0"),
        (lambda: Folder("x", image_size=[8]), r"image_size=\[8\]: must be"),
        (lambda: Folder("x", image_size="big"), "image_size=big"),
        (lambda: Folder("x", channels=4), "channels=4: must be 1"),
        (lambda: Folder("x", holdout=0.5), "holdout=0.5"),
        (lambda: Folder("x", max_unreadable="few"), "max_unreadable=few"),
        (lambda: Folder("x", background=256), "background=256"),
        (lambda: Folder("x", memory_gib=-1), "memory_gib=-1"),
    ],
)
def test_bad_arguments_are_refused_at_once(build: Callable[[], Folder], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_missing_or_empty_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Folder(tmp_path / "none").load()
    with pytest.raises(ValueError, match="no images there"):
        Folder(tmp_path).load()
