"""Digits, MNIST, Fashion-MNIST and CIFAR-10, whole in memory as uint8.

The last three are torchvision's: its folder layout, its checks, its downloads. A download goes to a folder beside its
destination and is moved in place when complete, so a run that is cut off leaves nothing that looks like data.
"""

import gzip
import http.client
import math
import os
import pickle
import shutil
import socket
import tarfile
import tempfile
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from data.stream import Images, Splits, whole

USUAL = "data/raw"  # where the data sets are unless data_dir says otherwise
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the four original .gz files."""

_TIMEOUT_S = 30.0
_IDX_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
# All that torchvision and the decoders below it raise on files that are missing, cut off or not what they seem.
_UNUSABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    AssertionError,
    LookupError,
    pickle.UnpicklingError,
    tarfile.TarError,
    zlib.error,
    http.client.HTTPException,
)


class DataUnavailable(OSError):
    """A data set is in none of the places where it was looked for; its text is one line."""


def smaller(shape: tuple[int, int, int], factor: int) -> tuple[int, int, int]:
    """The shape (C, H, W) at 1 / factor of the resolution; raises a one-line ValueError where that is no whole."""
    channels, height, width = shape
    if height % whole("downsample", factor, 1) or width % factor:
        raise ValueError(f"downsample={factor}: must divide the images' {height} rows and {width} columns")
    return channels, height // factor, width // factor


def downsampled(pixels: Tensor, factor: int) -> Tensor:
    """uint8 (N, C, H, W) at 1 / factor of the resolution: each square of pixels becomes its mean, rounded."""
    if factor == 1:
        return pixels
    parts = [F.avg_pool2d(part.float(), factor).round().byte() for part in pixels.split(4096)]
    return torch.cat(parts)


class _Raw(NamedTuple):
    """Published arrays: pixels uint8 (N, C, H, W), labels (N,)."""

    train_pixels: np.ndarray
    train_labels: np.ndarray
    test_pixels: np.ndarray
    test_labels: np.ndarray


class Digits:
    """scikit-learn's 1,797 scans of digits, 8x8 with 17 grey levels (0..16, spread over 0..255); part of the package.

    Args:
        downsample: see `downsampled`.
    """

    def __init__(self, downsample: int = 1) -> None:
        self.downsample = downsample
        self.shape = smaller((1, 8, 8), downsample)

    def load(self) -> Splits:
        """Return 1437 / 180 / 180 images by a fixed permutation."""
        digits = load_digits()
        pixels = torch.from_numpy(np.rint(digits.images * 255 / 16).astype(np.uint8)[:, None])
        pixels = downsampled(pixels, self.downsample)
        labels = torch.from_numpy(digits.target)
        order = torch.from_numpy(np.random.RandomState(0).permutation(len(pixels)))
        return Splits(*(Images(pixels, labels, rows) for rows in order.split([1437, 180, 180])))


class _Published(ABC):
    """A published data set of square images in ten classes, with a fixed test split.

    Args:
        data_dir: folder in torchvision's layout; may be read-only when the files are there.
        download: fetch what is missing into `data_dir`.
        pad: black pixels to add on each side.
        holdout: training images that become the validation split, chosen by a permutation that is the same on every
            machine. With 0 all are trained on and the validation split *is* the test split, as published tutorials do.
        downsample: see `downsampled`; after padding.

    Raises:
        ValueError: an argument is out of its range.
    """

    name: str
    folder: str
    files: tuple[str, ...]
    raw_shape: tuple[int, int, int]
    train_images: int

    def __init__(self, data_dir: str | Path, download: bool, pad: int, holdout: int, downsample: int) -> None:
        if not isinstance(data_dir, (str, Path)) or not str(data_dir):
            raise ValueError(f"data_dir={data_dir}: must be a folder")
        if download not in (True, False):
            raise ValueError(f"download={download}: must be true or false")
        self.data_dir, self.download = Path(data_dir).expanduser(), download
        self.pad = whole("pad", pad, 0, 1024)
        self.holdout = whole("holdout", holdout, 0, self.train_images - 1)
        channels, height, width = self.raw_shape
        self.downsample = downsample
        self.shape = smaller((channels, height + 2 * pad, width + 2 * pad), downsample)

    @abstractmethod
    def _read(self, root: Path) -> _Raw:
        """Read torchvision's layout under `root`; raises one of `_UNUSABLE`."""

    @abstractmethod
    def _fetch(self, root: Path) -> None:
        """Let torchvision download to `root`; raises one of `_UNUSABLE`."""

    def _elsewhere(self) -> list[tuple[Path, Callable[[], _Raw]]]:
        """Return further places to read from, with their readers."""
        return []

    def load(self) -> Splits:
        """Read the data set from `data_dir`, else from where the system has it, else by a download.

        Raises:
            DataUnavailable: it is in none of these places, or damaged; names each with what was wrong there.
            ValueError: `holdout` leaves nothing to train on.
        """
        raw = self._find()
        train, test = (
            downsampled(
                torch.from_numpy(np.pad(pixels, ((0, 0), (0, 0), (self.pad, self.pad), (self.pad, self.pad)))),
                self.downsample,
            )
            for pixels in (raw.train_pixels, raw.test_pixels)
        )
        train_labels, test_labels = torch.from_numpy(raw.train_labels), torch.from_numpy(raw.test_labels)
        if self.holdout >= len(train):
            raise ValueError(f"holdout={self.holdout}: must be below the {len(train)} training images")
        # RandomState's stream is frozen: the same images are held out whatever the version or the machine.
        order = torch.from_numpy(np.random.RandomState(0).permutation(len(train)))
        test_set = Images(test, test_labels)
        val_set = Images(train, train_labels, order[: self.holdout]) if self.holdout else test_set
        return Splits(Images(train, train_labels, order[self.holdout :].sort().values), val_set, test_set)

    def _find(self) -> _Raw:
        home = self.data_dir / self.folder
        missing = [name for name in self.files if not (home / name).is_file()]

        def read_home() -> _Raw:
            if missing:
                raise FileNotFoundError(
                    "not found" if len(missing) == len(self.files) else f"{', '.join(missing)} not found"
                )
            return self._read(self.data_dir)

        tried: list[str] = []
        for place, read in [(home, read_home), *self._elsewhere()]:
            try:
                raw = self._checked(read())
            except _UNUSABLE as error:
                # An OSError says itself what is wrong; a decoder's complaint needs to be put in context.
                tried.append(f"{place}: {'' if isinstance(error, OSError) else 'damaged: '}{_one_line(error)}")
                continue
            # Without a word only where nobody said where the files are.
            inside = place.is_relative_to(self.data_dir)
            if tried and not (missing and (inside or self.data_dir == Path(USUAL))):
                warnings.warn(f"{self.name}: passed over {tried[0]}; using {place}", stacklevel=3)
            return raw
        if not self.download:
            tried.append("download: off (download=false)")
        elif not missing:
            tried.append(f"download: not tried, as it never replaces files; delete {home} to have it tried")
        else:
            try:
                self._download(missing)
                return self._checked(self._read(self.data_dir))
            except _UNUSABLE as error:
                tried.append(f"download: {_one_line(error)}")
        raise DataUnavailable(
            f"{self.name} is not available [{'; '.join(tried)}]; use dataset=digits, which needs no download, or place "
            f"the files in {home}, or run `python -m data.prepare dataset={self.name}` on a machine with a network"
        )

    def _download(self, missing: list[str]) -> None:
        """Fetch to a staging folder and move the `missing` files in place; leaves nothing behind when it fails."""
        destination = self.data_dir / self.folder
        created = [path for path in (destination, *destination.parents) if not path.exists()]
        timeout = socket.getdefaulttimeout()
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.data_dir))
            try:
                # Without it, a firewall that drops packets would make the download hang for ever.
                socket.setdefaulttimeout(_TIMEOUT_S)
                self._fetch(staging)
                destination.mkdir(parents=True, exist_ok=True)
                for name in missing:
                    os.replace(staging / self.folder / name, destination / name)
            finally:
                socket.setdefaulttimeout(timeout)
                shutil.rmtree(staging, ignore_errors=True)
        finally:
            _remove_empty(created)

    def _checked(self, raw: _Raw) -> _Raw:
        for part, pixels, labels in (("training", *raw[:2]), ("test", *raw[2:])):
            if not len(pixels) or pixels.shape[1:] != self.raw_shape or pixels.dtype != np.uint8:
                raise ValueError(f"{part} images are {pixels.dtype} {pixels.shape}, not (N, {self.raw_shape})")
            if len(pixels) != len(labels):
                raise ValueError(f"{len(pixels)} {part} images but {len(labels)} labels")
            if labels.min() < 0 or labels.max() > 9:
                raise ValueError(f"{part} labels outside 0..9")
        return raw


class _Idx(_Published):
    """The MNIST family: four files of big-endian IDX."""

    files = _IDX_FILES
    raw_shape = (1, 28, 28)
    train_images = 60_000
    torchvision_class: type[datasets.MNIST]

    def __init__(
        self,
        data_dir: str | Path = USUAL,
        download: bool = True,
        pad: int = 2,
        holdout: int = 5000,
        downsample: int = 1,
    ) -> None:
        super().__init__(data_dir, download, pad, holdout, downsample)

    def _elsewhere(self) -> list[tuple[Path, Callable[[], _Raw]]]:
        home = self.data_dir / self.folder
        return [(home / "*.gz", lambda: self._packed(home))]

    def _packed(self, folder: Path) -> _Raw:
        """Read the four .gz files of a folder as they are published."""
        missing = [f"{name}.gz" for name in self.files if not (folder / f"{name}.gz").is_file()]
        if missing:
            raise FileNotFoundError(
                "not found" if len(missing) == len(self.files) else f"{', '.join(missing)} not found"
            )
        arrays = [_read_idx_gz(folder / f"{name}.gz") for name in self.files]
        return _Raw(arrays[0][:, None], arrays[1], arrays[2][:, None], arrays[3])

    def _read(self, root: Path) -> _Raw:
        train, test = (self.torchvision_class(root, train=part) for part in (True, False))
        return _Raw(
            train.data.numpy()[:, None], train.targets.numpy(), test.data.numpy()[:, None], test.targets.numpy()
        )

    def _fetch(self, root: Path) -> None:
        self.torchvision_class(root, download=True)


class Mnist(_Idx):
    """MNIST: 60,000 + 10,000 handwritten digits, 28x28 padded with black (LeCun et al. 1998). See `_Published`."""

    name, folder, torchvision_class = "mnist", "MNIST/raw", datasets.MNIST


class Fashion(_Idx):
    """Fashion-MNIST: 60,000 + 10,000 pictures of clothes in MNIST's format (Xiao et al., arXiv 1708.07747).

    Debian's package dataset-fashion-mnist is read in place. See `_Published` for the arguments.
    """

    name, folder, torchvision_class = "fashion", "FashionMNIST/raw", datasets.FashionMNIST

    def _elsewhere(self) -> list[tuple[Path, Callable[[], _Raw]]]:
        return [*super()._elsewhere(), (DEBIAN_FASHION, lambda: self._packed(DEBIAN_FASHION))]


class Cifar(_Published):
    """CIFAR-10: 50,000 + 10,000 colour photographs, 32x32 (Krizhevsky 2009). See `_Published` for the arguments."""

    name, folder = "cifar", datasets.CIFAR10.base_folder
    files = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    raw_shape = (3, 32, 32)
    train_images = 50_000

    def __init__(
        self,
        data_dir: str | Path = USUAL,
        download: bool = True,
        pad: int = 0,
        holdout: int = 5000,
        downsample: int = 1,
    ) -> None:
        super().__init__(data_dir, download, pad, holdout, downsample)

    def _read(self, root: Path) -> _Raw:
        try:
            train, test = (datasets.CIFAR10(root, train=part) for part in (True, False))
        except RuntimeError as error:
            meta = datasets.CIFAR10.meta
            sums = [*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list, (meta["filename"], meta["md5"])]
            bad = [name for name, md5 in sums if not check_integrity(root / self.folder / name, md5)]
            raise ValueError(f"{', '.join(bad)} fails its md5 check") from error
        # torchvision turns the planes into (N, H, W, C) for PIL.
        pixels = [np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)) for part in (train, test)]
        return _Raw(pixels[0], np.array(train.targets), pixels[1], np.array(test.targets))

    def _elsewhere(self) -> list[tuple[Path, Callable[[], _Raw]]]:
        archives = [folder / datasets.CIFAR10.filename for folder in (self.data_dir, self.data_dir / self.folder)]
        return [(path, partial(self._packed, path)) for path in archives]

    def _packed(self, path: Path) -> _Raw:
        """Read the archive as it is published, after its md5 check."""
        if not path.is_file():
            raise FileNotFoundError("not found")
        if not check_integrity(path, datasets.CIFAR10.tgz_md5):
            raise ValueError("it fails its md5 check")
        with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
            return self._read(Path(folder))

    def _fetch(self, root: Path) -> None:
        datasets.CIFAR10(root, download=True)


_LARGEST_IDX = 2**30  # bytes; MNIST's largest file has 47 million


def _read_idx_gz(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes: two zeros, type 8, the rank, big-endian uint32 sizes, the bytes.

    No more is unpacked than the sizes declare, and those have a bound: a small file can unpack to any size.
    """
    with gzip.open(path) as file:
        start = file.read(4)
        rank = start[3] if len(start) == 4 else 0
        sizes = [int.from_bytes(file.read(4), "big") for _ in range(rank)]
        length = math.prod(sizes)
        if start[:3] != b"\0\0\x08" or not rank or length > _LARGEST_IDX:
            raise ValueError(f"{path.name} is not an IDX file of bytes")
        content = file.read(length + 1)
    if len(content) != length:
        raise ValueError(f"{path.name} does not hold the {length} bytes that it declares")
    return np.frombuffer(content, np.uint8).reshape(sizes).copy()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _remove_empty(folders: list[Path]) -> None:
    """Remove those of `folders` (the deepest first) that exist and are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            break
