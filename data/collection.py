"""Collections of pictures: decoded once into memory, or by workers as they are needed where memory is too small."""

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.changes import identity
from data.pictures import UnreadableImage, check_header, fitted, printable, read_image
from data.stream import Examples, Images, normalise, share, whole

_NAMED = 20


class Files(ABC):
    """Image files by number, wherever they lie: what is left to do is to decode them. Workers get copies."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, row: int) -> str:
        """What a message calls a file."""

    @abstractmethod
    def open(self, row: int) -> Path | BinaryIO:
        """A file as Pillow takes it; raises UnreadableImage."""

    @abstractmethod
    def identity(self, row: int) -> bytes | None:
        """What tells a file from others and is cheap to read; None if only its pixels do. See `data.changes`."""

    def check(self, row: int) -> None:
        """Raises UnreadableImage if a file does not begin as an image does."""
        check_header(self.open(row))


@dataclass(frozen=True)
class Decoder:
    """Turns a file into pixels: upright, over `background`, short side resized, centre-cropped to height x width."""

    height: int
    width: int
    channels: int
    background: int

    def __call__(self, file: Path | BinaryIO) -> Tensor:
        """Return uint8 (channels, height, width) of the first frame; raises UnreadableImage."""
        image = fitted(read_image(file, self.channels, self.background), self.height, self.width)
        pixels = torch.from_numpy(np.array(image))
        return pixels[None] if self.channels == 1 else pixels.permute(2, 0, 1)


class LazyImages(Examples):
    """The `rows` of some files, decoded when they are fetched, for sets larger than memory.

    A file that turns out to be unreadable is replaced by the next readable one of its class, always the same one, and a
    warning names it; more than `allowed` of them raise a ValueError.
    """

    lazy = True

    def __init__(self, files: Files, rows: Tensor, labels: Tensor, decode: Decoder, allowed: int) -> None:
        self.files, self.rows, self.labels, self.decode, self.allowed = files, rows, labels, decode, allowed
        self.unreadable: set[int] = set()

    def get(self, indices: Tensor, flip: Tensor | None = None) -> Tensor:
        """Return float32 (b, C, H, W) in [-1, 1].

        Raises:
            ValueError: more files are unreadable than allowed.
        """
        return normalise(torch.stack([self._pixels(index) for index in indices.tolist()]), flip)

    def _pixels(self, index: int) -> Tensor:
        for later in range(index, index + len(self)):
            candidate = later % len(self)
            if candidate in self.unreadable or self.labels[candidate] != self.labels[index]:
                continue
            row = int(self.rows[candidate])
            try:
                return self.decode(self.files.open(row))
            except UnreadableImage as error:
                self.unreadable.add(candidate)
                text = f"cannot read {printable(self.files.name(row))} ({error})"
                if len(self.unreadable) > self.allowed:
                    raise ValueError(
                        f"{text}: {len(self.unreadable)} unreadable images, {self.allowed} allowed by max_unreadable"
                    ) from error
                warnings.warn(f"{text}: using the next image", stacklevel=2)
        raise ValueError(f"no image of the class of {self.files.name(int(self.rows[index]))} can be read")


class Collection:
    """What sources of pictures share: sizes, how files are decoded, which are held out.

    Args:
        image_size: side in pixels, or [height, width].
        channels: 1 (grey) or 3 (RGB).
        holdout: share of the images for each of validation and test, below 0.5.
        max_unreadable: share of the image files that may be unreadable; they are skipped with a warning that names
            them.
        background: grey level 0..255 put behind transparent images (255 is white).
        memory_gib: larger sets are not held in memory (as uint8) but decoded as they are needed.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        channels: int,
        holdout: float,
        max_unreadable: float,
        background: int,
        memory_gib: float,
    ) -> None:
        sides = [image_size] * 2 if isinstance(image_size, int) else image_size
        if isinstance(sides, str) or not isinstance(sides, Sequence) or len(sides) != 2:
            raise ValueError(f"image_size={image_size}: must be a number of pixels or [height, width]")
        height, width = (whole("image_size", side, 1, 8192) for side in sides)
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: must be 1 (grey) or 3 (RGB)")
        self.shape = (channels, height, width)
        self.holdout = share("holdout", holdout, 0.5)
        self.max_unreadable = share("max_unreadable", max_unreadable, 1.0)
        self.memory_gib = share("memory_gib", memory_gib, math.inf)
        self.decode = Decoder(height, width, channels, whole("background", background, 0, 255))
        self.classes: tuple[str, ...] = ()

    def fits(self, count: int) -> bool:
        """Whether so many images are held in memory."""
        return count * math.prod(self.shape) <= self.memory_gib * 2**30

    def decoded(
        self, files: Files, labels: Tensor, in_memory: bool, where: str
    ) -> tuple[Callable[[Tensor], Examples], Tensor]:
        """What makes examples of some rows of the files, and the rows int64 (N,) that can be read.

        Args:
            files: all of them.
            labels: int64, one a file.
            in_memory: decode all of them now; else only the beginning of each is looked at.
            where: they lie, for messages.

        Raises:
            ValueError: more than `max_unreadable` of them are unreadable.
        """
        pixels = torch.empty((len(files) if in_memory else 0, *self.shape), dtype=torch.uint8)

        def read(row: int) -> None:
            if in_memory:
                pixels[row] = self.decode(files.open(row))
            else:
                files.check(row)

        reasons = _attempt(read, len(files))
        self._judge({files.name(row): reason for row, reason in reasons.items()}, len(files), where)
        readable = torch.tensor([row for row in range(len(files)) if row not in reasons])

        def build(rows: Tensor) -> Examples:
            # The headers were read above; what is cut off further on shows only when it is decoded.
            examples: Examples = (
                Images(pixels, labels, rows)
                if in_memory
                else LazyImages(files, rows, labels[rows], self.decode, int(self.max_unreadable * len(rows)))
            )
            known = [files.identity(row) for row in rows.tolist()]
            if None not in known:
                examples.identities = torch.tensor([identity(content or b"") for content in known], dtype=torch.int64)
            return examples

        return build, readable

    def held_out(self, readable: Tensor, parts: int) -> list[Tensor]:
        """The rows to train on, and those of so many other splits, by a permutation that no machine changes.

        Each of the others has `holdout` of the rows, at least one; with too few rows, or `holdout=0`, all are the same.
        """
        order = readable[torch.from_numpy(np.random.RandomState(0).permutation(len(readable)))]
        if len(order) <= parts or self.holdout == 0:
            return [readable] * (1 + parts)
        held = max(1, int(self.holdout * len(order)))
        *others, train = order.split([*[held] * parts, len(order) - parts * held])
        return [train.sort().values, *others]

    def _judge(self, reasons: dict[str, str], total: int, where: str) -> None:
        """Warn of the unreadable files, or raise where they are too many."""
        if not reasons:
            return
        named = ", ".join(f"{printable(name)} ({reason})" for name, reason in list(reasons.items())[:_NAMED])
        if len(reasons) > _NAMED:
            named += f" and {len(reasons) - _NAMED} more"
        text = f"{len(reasons)} of {total} images in {where} cannot be read: {named}"
        if len(reasons) == total or len(reasons) > self.max_unreadable * total:
            raise ValueError(
                f"{text}; max_unreadable={self.max_unreadable} allows {int(self.max_unreadable * total)}: "
                "delete them or raise dataset.source.max_unreadable"
            )
        warnings.warn(f"skipped {text}", stacklevel=4)


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names of a list, and how many more there are."""
    return ", ".join(map(printable, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def report(line: str) -> None:
    """Prints a line once, where several processes load the same data."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(line)


def counted(count: int, noun: str) -> str:
    """`1 image`, `1,437 images`, `10 classes`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "es" if noun.endswith("s") else "s")


def _attempt(read: Callable[[int], None], count: int) -> dict[int, str]:
    """Call `read(row)` for each row in a few threads (Pillow decodes without the interpreter's lock).

    Returns the rows that failed, each with the reason.
    """

    def attempt(row: int) -> str | None:
        try:
            read(row)
        except UnreadableImage as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        # Without a terminal there is no bar.
        reasons = tqdm(pool.map(attempt, range(count)), "reading", count, leave=False, unit="image", disable=None)
        return {row: reason for row, reason in enumerate(reasons) if reason is not None}
