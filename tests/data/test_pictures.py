"""Image files: one list of suffixes and one reader for data sets, conditions, starts, masks and samples."""

import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.conditions import Edges, Grey, LowRes
from data.folder import Folder
from data.pictures import SUFFIXES, UnreadableImage, images_in, read_image, read_pixels
from diffusion.build import ConfigError
from diffusion.evaluation.files import read_samples
from diffusion.sampling.given import read_mask, read_picture, rows, start
from diffusion.settings.sampling import Steering

SHAPE = (3, 4, 4)
WRITTEN = (".tif", ".tiff", ".jfif", ".jpe", ".ppm", ".tga", ".ico", ".bmp", ".gif", ".webp", ".jpg", ".png", ".pcx")


def picture(path: Path, level: int = 200) -> Path:
    image = Image.new("RGB", (4, 4), (level, level, level))
    if path.suffix == ".ico":
        image.save(path, sizes=[(4, 4)])
    elif path.suffix == ".jfif":
        image.save(path, "JPEG")
    else:
        image.save(path)
    return path


@pytest.mark.parametrize("size", [(9, 6), (3, 2), (4, 4)])
def test_resizing_makes_of_a_picture_what_a_folder_makes_of_it(tmp_path: Path, size: tuple[int, int]) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    (x,) = Folder(tmp_path, 4, holdout=0.0).load().train.get(torch.tensor([0]))
    assert torch.equal(read_picture(str(tmp_path / "a.png"), "init", SHAPE, resize=True), x)
    conditioned = rows(Steering(condition=str(tmp_path / "a.png"), resize=True), 0, LowRes(2), SHAPE)
    torch.testing.assert_close(conditioned["image"], LowRes(2).of_picture(x, SHAPE)["image"])


def test_a_picture_of_another_size_is_refused_with_resize_as_the_way_out(tmp_path: Path) -> None:
    path = str(tmp_path / "a.png")
    Image.new("RGB", (9, 6), (255, 255, 255)).save(path)
    for read in (
        lambda: start(Steering(init=path, t_start=0.5), SHAPE),
        lambda: read_mask(path, SHAPE),
        lambda: rows(Steering(condition=path), 0, Grey(), SHAPE),
        lambda: rows(Steering(condition=path), 0, LowRes(2), SHAPE),
    ):
        with pytest.raises(ConfigError, match=r"9x6 .*add resize=true"):
            read()
    assert start(Steering(init=path, t_start=0.5, resize=True), SHAPE) is not None
    assert read_mask(path, SHAPE, resize=True).shape == (1, 4, 4)
    assert rows(Steering(condition=path, resize=True), 0, Grey(), SHAPE)["image"].shape == (1, 2, 4, 4)
    with pytest.raises(ValueError, match="resize=true is for the images of init=, mask= and condition="):
        Steering(resize=True)


def dds(path: Path, fourcc: bytes) -> Path:
    """A DDS header of a format that Pillow does not implement."""
    pixel_format = struct.pack("<II4s5I", 32, 4, fourcc, 0, 0, 0, 0, 0)
    header = struct.pack("<7I44x", 124, 0x1007, 4, 4, 0, 0, 0) + pixel_format + bytes(20)
    path.write_bytes(b"DDS " + header + bytes(64))
    return path


@pytest.mark.parametrize("suffix", WRITTEN)
def test_every_kind_of_still_image_is_read_everywhere(tmp_path: Path, suffix: str) -> None:
    path = picture(tmp_path / f"a{suffix}")
    assert suffix in SUFFIXES
    assert abs(int(Folder(tmp_path, 4).load().train.get(torch.tensor([0])).mean() * 127.5 + 127.5) - 200) < 4
    assert abs(read_samples(tmp_path, SHAPE, 1)[0].float().mean() - 200) < 4
    for what in ("init", "mask", "condition"):
        assert abs(read_picture(str(path), what, SHAPE).mean() * 127.5 + 127.5 - 200) < 4
    conditioned = rows(Steering(condition=str(tmp_path)), 0, Edges(), SHAPE)
    assert conditioned["image"].shape[0] == 1


def test_hidden_files_and_those_of_the_system_are_passed_over_everywhere(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for name in ("._a.png", ".hidden.jpg", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"no image")
    assert [path.name for path in images_in(tmp_path)] == ["a.png"]
    assert len(Folder(tmp_path, 4).load().train) == 1
    assert len(read_samples(tmp_path, SHAPE, 9)[0]) == 1
    assert len(rows(Steering(condition=str(tmp_path)), 0, Edges(), SHAPE)["image"]) == 1


def odd_files(folder: Path) -> list[Path]:
    """Files that no one can read as an image, each in its own way."""
    whole = picture(folder / "whole.png").read_bytes()
    jpeg = picture(folder / "whole.jpg").read_bytes()
    files = [dds(folder / f"{kind.decode()}.dds", kind) for kind in (b"DXT9", b"XXXX", b"ATI9")]
    for name, content in {
        "empty.png": b"",
        "text.jpg": b"hello",
        "cut.png": whole[:50],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "flipped.png": whole[:40] + bytes(byte ^ 0x5A for byte in whole[40:60]) + whole[60:],
        "huge.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    }.items():
        (folder / name).write_bytes(content)
        files.append(folder / name)
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    return [*files, folder / "pipe.png", folder / "folder.png", folder / "missing.png"]


def test_whatever_is_wrong_with_a_file_is_one_line(tmp_path: Path) -> None:
    for path in odd_files(tmp_path):
        with pytest.raises(UnreadableImage) as caught:
            read_pixels(path, 3)
        assert len(str(caught.value).splitlines()) == 1, path
        for what in ("init", "condition"):
            with pytest.raises(ConfigError, match=f"{what}=.*{path.name} cannot be read as an image: "):
                read_picture(str(path), what, SHAPE)
        with pytest.raises(ConfigError, match="mask=.* cannot be read as an image: "):
            read_mask(str(path), SHAPE)
        if path.is_file():
            (alone := tmp_path / path.stem).mkdir(exist_ok=True)
            path.rename(alone / path.name)
            with pytest.raises(ValueError, match="1 of 1 images in .* cannot be read"):
                Folder(alone, 4).load()
            with pytest.raises(ValueError, match=f"cannot read {path.name}"):
                read_samples(alone, SHAPE, 1)
            (alone / path.name).unlink()


def test_files_damaged_at_random_are_read_or_unreadable_and_nothing_else(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    wholes = {suffix: picture(tmp_path / f"a{suffix}").read_bytes() for suffix in WRITTEN}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of some that it can still read
        for suffix, whole in wholes.items():
            for _ in range(40):
                content = bytearray(whole)
                for place in random.randint(len(content), size=4):
                    content[place] = random.randint(256)
                (tmp_path / "odd").write_bytes(bytes(content[: random.randint(1, len(content) + 1)]))
                try:
                    assert read_image(tmp_path / "odd", 3, 255).mode == "RGB", suffix
                except UnreadableImage:
                    continue


def test_a_file_of_another_colour_mode_looks_as_it_should(tmp_path: Path) -> None:
    for mode, colour, level in (
        ("CMYK", (0, 0, 0, 55), 200),
        ("1", 1, 255),
        ("P", 0, 0),
    ):
        Image.new(mode, (4, 4), colour).save(tmp_path / "a.tiff")
        assert abs(int(read_pixels(tmp_path / "a.tiff", 1)[0, 0, 0]) - level) < 12, mode


def test_transparent_parts_lie_over_a_folders_background_and_are_refused_where_there_is_none(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (Folder(tmp_path, 4, background=9).load().train.get(torch.tensor([0])) * 127.5 + 127.5).round().unique() == 9
    for read in (
        lambda: read_samples(tmp_path, SHAPE, 1),
        lambda: read_picture(str(tmp_path / "a.png"), "init", SHAPE),
    ):
        with pytest.raises(ValueError, match="parts of it are transparent: save it on a background"):
            read()


def test_a_folder_says_what_it_holds_and_what_was_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cats/a.png", "cats/b.TIF", "dogs/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(tmp_path / "x.png").rename(tmp_path / name)
    for name in ("cats/d.HEIC", "dogs/e.heic", "list.txt", "README", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_text("")
    Folder(tmp_path, 4).load()
    assert capsys.readouterr().out == (
        f"{tmp_path}: 3 images in 2 classes; passed over 2 .heic, 1 .txt, 1 no suffix (to use these photos, "
        f"convert them: magick mogrify -format png *.heic)\n"
    )


def test_a_stray_picture_beside_class_folders_is_named(tmp_path: Path) -> None:
    for name in ("cats/a.png", "dogs/b.png", "stray.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(tmp_path / name)
    with pytest.warns(UserWarning, match=r"no image has a label, because of stray\.png beside the folders cats, dogs"):
        Folder(tmp_path, 4).load()


@pytest.mark.parametrize(
    ("name", "said"),
    [("photos.tar", "is an archive: unpack it first"), ("a.png", "is a file: give a folder of images")],
)
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(NotADirectoryError, match=said):
        Folder(tmp_path / name).load()
