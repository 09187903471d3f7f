"""Pictures and files: what is read back is what was drawn, and nothing is ever half-written."""

import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from data.pictures import read_pixels
from diffusion import media


def _pixels(*shape: int, seed: int = 0) -> media.Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _images(pixels: media.Pixels) -> torch.Tensor:
    """(n, H, W, C) bytes as (n, C, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def _read(source: Path | io.BytesIO, mode: str = "RGB") -> tuple[list[media.Pixels], list[int], int]:
    """Frames, durations in ms and the loop count of an animation."""
    frames, durations = [], []
    with Image.open(source) as image:
        for frame in ImageSequence.Iterator(image):
            frames.append(np.asarray(frame.convert(mode)))
            durations.append(int(frame.info["duration"]))
        return frames, durations, image.info["loop"]


def test_bytes_survive_the_way_to_floats_and_back() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(media.to_uint8(_images(every)), every)


def test_pixels_are_rounded_and_clamped_and_nan_is_black() -> None:
    values = torch.tensor([-9.0, -1.0, 0.9 / 127.5 - 1, 0.4 / 127.5 - 1, 1.0, 9.0, torch.inf, torch.nan])
    assert media.to_uint8(values.view(1, 1, 2, 4)).ravel().tolist() == [0, 0, 1, 0, 255, 255, 255, 0]


def test_grid_puts_each_pixel_where_it_belongs() -> None:
    images = np.arange(1, 6, dtype=np.uint8).reshape(5, 1, 1, 1)
    assert media.grid(images, gap=1, background=0)[..., 0].tolist() == [
        [1, 0, 2, 0, 3],
        [0, 0, 0, 0, 0],
        [4, 0, 5, 0, 0],
    ]
    tall = _pixels(4, 2, 3, 3)
    table = media.grid(tall, rows=2, gap=2)
    assert table.shape == (6, 8, 3)
    assert np.array_equal(table[4:, 5:], tall[3])
    assert (table[2:4] == 255).all() and (table[:, 3:5] == 255).all()


@pytest.mark.parametrize(
    ("n", "rows", "shape"), [(9, None, (3, 3)), (1, None, (1, 1)), (8, None, (3, 3)), (9, 1, (1, 9))]
)
def test_layout(n: int, rows: int | None, shape: tuple[int, int]) -> None:
    assert media.layout(n, rows) == shape


@pytest.mark.parametrize("rows", [0, 5])
def test_impossible_rows_are_named_with_the_choices(rows: int) -> None:
    with pytest.raises(ValueError, match=f"^rows={rows} .* 1 to 4$"):
        media.layout(4, rows)


def test_upscale_repeats_pixels_and_leaves_large_images_alone() -> None:
    small = _pixels(2, 8, 5, 3)
    large = media.upscale(small, 20)
    assert large.shape == (2, 24, 15, 3)
    assert np.array_equal(large[:, 1::3, 2::3], small)
    assert media.upscale(large, 20).shape == large.shape


def test_picture_shows_small_images_large_and_in_order() -> None:
    pixels = _pixels(9, 8, 8, 1)
    shown = media.picture(_images(pixels))
    assert shown.shape == (3 * 96 + 2 * 8, 3 * 96 + 2 * 8, 1)
    assert np.array_equal(shown[104 : 104 + 96 : 12, 208 : 208 + 96 : 12], pixels[5])
    assert media.picture(torch.zeros(1024, 1, 32, 32)).shape[0] < 1200
    with pytest.raises(ValueError, match="1 or 3 channels"):
        media.picture(torch.zeros(1, 4, 8, 8))


def test_cloud_has_y_up_x_right_and_ignores_what_cannot_be_drawn() -> None:
    points = torch.tensor([[0.5, 0.5], [torch.nan, 0.0], [torch.inf, 0.0], [50.0, 0.0]])
    shown = media.cloud(points, limit=1.0, size=80)
    ink = 255 - shown.min(axis=-1).astype(int)
    rows, columns = np.indices(ink.shape)
    assert (ink * rows).sum() / ink.sum() == pytest.approx(19.5, abs=0.2)
    assert (ink * columns).sum() / ink.sum() == pytest.approx(59.5, abs=0.2)
    assert ink[40:].max() == 0
    assert (media.cloud(torch.full((3, 2), torch.nan)) == 255).all()


def test_axis_limit_is_not_moved_by_one_stray_point() -> None:
    points = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    stray = points.clone()
    stray[0] = 1e6
    assert 2.5 < media.axis_limit(points) < 4.5
    assert media.axis_limit(stray) == pytest.approx(media.axis_limit(points), rel=0.05)


def test_all_clouds_of_an_animation_share_the_axes_of_the_last() -> None:
    last = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    frames = media.animation([10 * last, 0.5 * last, last])
    assert (frames[0] == 255).all()
    assert all(
        np.array_equal(frame, media.cloud(state, media.axis_limit(last)))
        for frame, state in zip(frames[1:], [0.5 * last, last], strict=True)
    )


@pytest.mark.parametrize(
    ("n_states", "frames"), [(1, 1), (1, 9), (2, 2), (10, 3), (10, 7), (10, 10), (11, 50), (1001, 30)]
)
def test_evenly_spaced_frames_have_both_ends_and_no_double(n_states: int, frames: int) -> None:
    chosen = media.evenly(range(n_states), frames)
    assert len(chosen) == min(n_states, frames)
    assert (chosen[0], chosen[-1]) == (0, n_states - 1)
    steps = np.diff(chosen)
    assert steps.size == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_animation_loops_and_holds_its_last_frame(tmp_path: Path, suffix: str, channels: int) -> None:
    # 100 pixels a frame: the colours of both frames fit one palette, so a GIF must be exact as well
    frames = [_pixels(10, 10, channels, seed=seed) for seed in (1, 2)]
    media.save_gif(tmp_path / f"a{suffix}", frames, fps=4, hold=6)
    read, durations, loop = _read(tmp_path / f"a{suffix}")
    assert (durations, loop) == ([250, 1500], 0)
    assert all(np.array_equal(a, np.broadcast_to(b, (10, 10, 3))) for a, b in zip(read, frames, strict=True))
    assert [file.name for file in tmp_path.iterdir()] == [f"a{suffix}"]


def test_equal_frames_keep_their_time() -> None:
    still = _pixels(6, 6)
    moving = _pixels(6, 6, seed=1)
    frames, durations, _ = _read(io.BytesIO(media.gif_bytes([still, still, moving], fps=10, hold=5)), "L")
    assert durations == [200, 500]
    assert np.array_equal(frames[0], still) and np.array_equal(frames[1], moving)


def test_many_colours_are_shown_by_near_ones_and_one_palette() -> None:
    ramp = np.linspace(0, 255, 64).round().astype(np.uint8)
    final = np.stack([*np.meshgrid(ramp, ramp), np.full((64, 64), 90, np.uint8)], axis=-1)
    frames, _, _ = _read(io.BytesIO(media.gif_bytes([_pixels(64, 64, 3), final])))
    assert np.abs(frames[-1].astype(int) - final).mean() < 8
    assert len(np.unique(np.concatenate(frames).reshape(-1, 3), axis=0)) <= 256


@pytest.mark.parametrize(
    ("options", "message"),
    [({"fps": 0}, "fps=0"), ({"fps": 99}, "fps=99"), ({"hold": 0}, "hold=0"), ({"frames": []}, "0 frames")],
)
def test_impossible_animations_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        media.save_gif(tmp_path / "a.gif", **({"frames": [_pixels(4, 4)]} | options))
    assert list(tmp_path.iterdir()) == []


def test_frames_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        media.gif_bytes([_pixels(4, 4), _pixels(5, 4)])


def test_tensorboard_gets_the_moving_gif() -> None:
    frames = [_pixels(12, 10, 3, seed=seed) for seed in range(3)]
    (value,) = media.tensorboard_gif("denoising", frames, fps=2).value
    assert (value.tag, value.image.height, value.image.width, value.image.colorspace) == ("denoising", 12, 10, 3)
    _, durations, loop = _read(io.BytesIO(value.image.encoded_image_string))
    assert (durations, loop) == ([500, 500, 5000], 0)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_save_animates_the_states(tmp_path: Path, suffix: str) -> None:
    states = [_images(_pixels(9, 8, 8, 1, seed=seed)) for seed in range(4)]
    media.save(tmp_path / f"a{suffix}", states[-1], states)
    frames, durations, _ = _read(tmp_path / f"a{suffix}", "L")
    assert durations == [200, 200, 200, 2000]
    for frame, expected in zip(frames, media.animation(states), strict=True):
        assert np.array_equal(frame, expected[..., 0])


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_clouds_are_animated_without_loss(tmp_path: Path, suffix: str) -> None:
    states = [torch.randn(500, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    media.save(tmp_path / f"a{suffix}", states[-1], states)
    frames, _, _ = _read(tmp_path / f"a{suffix}")
    assert all(np.array_equal(a, b) for a, b in zip(frames, media.animation(states), strict=True))


def test_png_is_the_picture(tmp_path: Path) -> None:
    samples = _images(_pixels(6, 8, 8, 3))
    media.save(tmp_path / "new" / "folder" / "a.PNG", samples, rows=2)
    with Image.open(tmp_path / "new" / "folder" / "a.PNG") as image:
        assert np.array_equal(np.asarray(image), media.picture(samples, rows=2))


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_holds_bytes_and_labels(tmp_path: Path, channels: int) -> None:
    pixels = _pixels(4, 8, 6, channels)
    media.save(tmp_path / "a.npz", _images(pixels), labels=torch.tensor([3, 1, 4, 1]))
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["arr_0"].dtype == np.uint8
        assert np.array_equal(arrays["arr_0"], pixels)
        assert arrays["arr_1"].tolist() == [3, 1, 4, 1]


def test_npz_holds_points_exactly(tmp_path: Path) -> None:
    points = torch.randn(7, 2)
    media.save(tmp_path / "a.npz", points)
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays.files == ["arr_0"]
        assert arrays["arr_0"].dtype == np.float32
        assert np.array_equal(arrays["arr_0"], points.numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_is_exact_and_goes_on_where_it_stopped(tmp_path: Path, channels: int) -> None:
    pixels = _pixels(4, 8, 6, channels)
    folder = tmp_path / "images"
    assert media.missing(folder, 4) == [0, 1, 2, 3]
    media.save_folder(folder, _images(pixels[[0, 2]]), [0, 2])
    for name, age_s in (("old", 7200), ("young", 0)):
        (folder / f".00001.png.{name}.part").write_bytes(b"cut off")
        os.utime(folder / f".00001.png.{name}.part", (time.time() - age_s,) * 2)
    (folder / "settings.json").write_text("{}")
    media.claim(folder, {})
    (folder / "settings.json").unlink()
    assert [path.name for path in folder.glob(".*")] == [".00001.png.young.part"]  # its writer may be alive
    (folder / ".00001.png.young.part").unlink()
    assert media.missing(folder, 4) == [1, 3]
    media.save_folder(folder, _images(pixels[[1, 3]]), media.missing(folder, 4))
    assert media.missing(folder, 4) == []
    assert sorted(file.name for file in folder.iterdir()) == ["00000.png", "00001.png", "00002.png", "00003.png"]
    for index, expected in enumerate(pixels):
        with Image.open(folder / media.image_name(index)) as image:
            assert np.array_equal(np.asarray(image).reshape(expected.shape), expected)


def test_save_without_suffix_fills_a_folder(tmp_path: Path) -> None:
    media.save(tmp_path / "images", torch.zeros(3, 1, 4, 4))
    assert media.missing(tmp_path / "images", 4) == [3]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.npz", "."])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(file: io.BufferedWriter, *_: object, **__: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", lambda _, file, *args, **options: full(file))
    monkeypatch.setattr(np, "savez", full)
    old = tmp_path / ("00000.png" if name == "." else name)
    old.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        media.save(tmp_path / name, torch.zeros(2, 1, 4, 4))
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("name", ["a.gif", "b/c/a.webp", "a.PNG", "a.npz", "images", "b/images"])
def test_check_out_accepts_what_save_can_write_and_creates_nothing(tmp_path: Path, name: str) -> None:
    assert media.check_out(tmp_path / name, (1, 8, 8)) == tmp_path / name
    assert list(tmp_path.iterdir()) == []


def _one_line(error: pytest.ExceptionInfo[BaseException], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_unknown_suffix_names_the_choices(tmp_path: Path) -> None:
    for refuse in (lambda path: media.check_out(path), lambda path: media.save(path, torch.zeros(1, 1, 4, 4))):
        with pytest.raises(ValueError) as error:
            refuse(tmp_path / "a.jpg")
        _one_line(error, "a.jpg", ".gif", ".webp", ".png", ".npz", "folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "shape"), [("images", (2,)), ("a.png", (4, 8, 8)), ("a.gif", (3,)), ("", (1, 8, 8))])
def test_samples_that_a_place_cannot_hold_are_refused_early(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        media.check_out(name, shape)
    _one_line(error, f"out={name}")


def test_points_in_a_folder_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"use \.npz, \.png or \.gif"):
        media.save(tmp_path / "points", torch.zeros(3, 2))
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.gif").mkdir()
    for name, kind in [
        ("file/a.gif", NotADirectoryError),
        ("file/b/images", NotADirectoryError),
        ("file", NotADirectoryError),
        ("folder.gif", IsADirectoryError),
    ]:
        with pytest.raises(kind) as error:
            media.check_out(tmp_path / name)
        _one_line(error, str(tmp_path / name))
    # root may write anywhere, so a read-only place is played
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(PermissionError) as error:
        media.check_out(tmp_path / "new" / "a.png")
    _one_line(error, str(tmp_path / "new" / "a.png"), "permission")


def test_standard_output_is_no_place_for_samples() -> None:
    with pytest.raises(ValueError, match="out=- would be the standard output, and samples are written to files"):
        media.check_out("-")


def test_a_folder_of_other_peoples_files_is_not_taken_for_samples(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "00000.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds other files .00000.png.: name a new folder, or an empty one"):
        media.claim(tmp_path / "photos", {"seed": 0})
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["00000.png"]
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "new", "new"):
        assert media.claim(tmp_path / folder, {"seed": 0}) == tmp_path / folder


def test_image_files_are_read_as_they_look_or_refused(tmp_path: Path) -> None:
    tall = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(3, 2) * 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    tall.save(tmp_path / "turned.png", exif=exif)
    assert (read_pixels(tmp_path / "turned.png", 1)[..., 0] == np.rot90(np.asarray(tall), -1)).all()
    tall.convert("RGBA").save(tmp_path / "opaque.png")
    assert (read_pixels(tmp_path / "opaque.png", 3) == np.asarray(tall)[..., None]).all()
    Image.new("I;16", (2, 2), 128 * 257).save(tmp_path / "16 bits.png")
    assert (read_pixels(tmp_path / "16 bits.png", 1) == 128).all()
    for name, image, said in (
        ("deep.tiff", Image.new("I", (2, 2), 70_000), "more than 16 bits a channel"),
        ("float.tiff", Image.new("F", (2, 2)), "fractions without a known range"),
        ("glass.png", Image.new("LA", (2, 2), (9, 254)), "parts of it are transparent"),
    ):
        image.save(tmp_path / name)
        with pytest.raises(ValueError, match=said):
            read_pixels(tmp_path / name, 1)
