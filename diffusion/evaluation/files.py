"""Samples that were written by whatever program: an .npz of arrays, or a folder of images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.pictures import UnreadableImage, images_in, read_pixels
from diffusion.evaluation.cache import UNREADABLE, read_arrays


def check_samples(path: Path) -> None:
    """Raises ValueError unless a path is a folder or an .npz file."""
    if not path.exists():
        raise ValueError(f"samples={path}: there is no such file or folder")
    if not path.is_dir() and not path.is_file():
        raise ValueError(f"samples={path} is no regular file: give an .npz file or a folder of images")
    if path.is_file() and path.suffix.lower() != ".npz":
        raise ValueError(f"samples={path} is neither an .npz file nor a folder of images")


def read_samples(path: Path, shape: Sequence[int], n: int, classes: int = 0) -> tuple[Tensor, Tensor | None]:
    """The first n samples of a file or folder: bytes (n, C, H, W) or points (n, 2), and labels (n,) if there are any.

    An .npz has `arr_0`, uint8 (n, H, W, C) or floats (n, 2), and perhaps `arr_1`, labels (n,), as `sample.py` and ADM's
    evaluation suite write it. A folder's images are taken in the order of their names.

    Args:
        path: of the .npz or the folder.
        shape: of one sample as the data have it, (C, H, W) or (2,).
        n: how many at most.
        classes: that labels tell apart; 0 where the data have none.

    Raises:
        ValueError: it is not there, cannot be read without unpickling, or holds something else.
    """
    check_samples(path)
    if path.is_dir():
        return _folder(path, shape, n), None
    try:
        arrays = read_arrays(path)
    except UNREADABLE as error:
        raise ValueError(f"samples={path} cannot be read ({' '.join(str(error).split())[:100]})") from error
    samples = arrays.get("arr_0")
    if samples is None:
        raise ValueError(
            f"samples={path} has no arr_0 but {', '.join(arrays) or 'nothing'}: write it by sample.py out=x.npz"
        )
    images = len(shape) == 3
    wanted = (shape[1], shape[2], shape[0]) if images else tuple(shape)
    kind = "uint8" if images else "floats"
    right = samples.dtype == np.uint8 if images else np.issubdtype(samples.dtype, np.floating)
    if not right or samples.ndim != len(wanted) + 1 or samples.shape[1:] != wanted:
        has = f"{samples.dtype} of shape {samples.shape}"
        raise ValueError(f"samples={path}: arr_0 is {has}, and these data are {kind} of shape (n, {str(wanted)[1:]}")
    found = torch.from_numpy(samples[:n])
    labels = arrays.get("arr_1")
    if labels is not None and (labels.shape != samples.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(
            f"samples={path}: arr_1 is no label for each sample but {labels.dtype} of shape {labels.shape}"
        )
    if labels is not None and classes and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"samples={path}: arr_1 has labels from {labels.min()} to {labels.max()}, and these data have 0 to "
            f"{classes - 1}"
        )
    tags = None if labels is None else torch.from_numpy(labels[:n]).long()
    if not images:
        if not np.isfinite(samples).all():
            raise ValueError(f"samples={path} holds numbers that are not finite")
        return found.float(), tags
    return found.permute(0, 3, 1, 2).contiguous(), tags


def _folder(path: Path, shape: Sequence[int], n: int) -> Tensor:
    if len(shape) != 3:
        raise ValueError(f"samples={path} is a folder of images, but these data are points: give an .npz")
    try:
        files = images_in(path)[:n]
    except ValueError as error:
        raise ValueError(f"samples={path}: {error}") from error
    channels, height, width = shape
    pixels = torch.empty((len(files), channels, height, width), dtype=torch.uint8)
    for row, file in enumerate(files):
        try:
            image = read_pixels(file, channels)
        except UnreadableImage as error:
            raise ValueError(f"samples={path}: cannot read {file.name} ({error})") from error
        if image.shape[:2] != (height, width):
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise ValueError(f"samples={path}: {file.name} is {size} pixels, and these data are {width}x{height}")
        pixels[row] = torch.from_numpy(image).permute(2, 0, 1)
    return pixels
