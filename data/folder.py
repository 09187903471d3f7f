"""Any folder of images: decoded once into memory, or by workers as they are needed where memory is too small."""

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.changes import identity
from data.pictures import SUFFIXES, UnreadableImage, check_header, fitted, is_hidden, is_image, printable, read_image
from data.stream import Examples, Images, Splits, normalise, share, whole

_NAMED = 20
_ARCHIVES = (".7z", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip")


@dataclass(frozen=True)
class Decoder:
    """Turns a file into pixels: upright, over `background`, short side resized, centre-cropped to height x width."""

    height: int
    width: int
    channels: int
    background: int

    def __call__(self, path: Path) -> Tensor:
        """Return uint8 (channels, height, width) of the first frame; raises UnreadableImage."""
        image = fitted(read_image(path, self.channels, self.background), self.height, self.width)
        pixels = torch.from_numpy(np.array(image))
        return pixels[None] if self.channels == 1 else pixels.permute(2, 0, 1)


class LazyImages(Examples):
    """Images decoded when they are fetched, for sets larger than memory.

    A file that turns out to be unreadable is replaced by the next readable one of its class, always the same one, and a
    warning names it; more than `allowed` of them raise a ValueError.
    """

    lazy = True

    def __init__(self, paths: Sequence[Path], labels: Tensor, decode: Decoder, allowed: int) -> None:
        self.paths, self.labels, self.decode, self.allowed = paths, labels, decode, allowed
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
            try:
                return self.decode(self.paths[candidate])
            except UnreadableImage as error:
                self.unreadable.add(candidate)
                text = f"cannot read {self.paths[candidate]} ({error})"
                if len(self.unreadable) > self.allowed:
                    raise ValueError(
                        f"{text}: {len(self.unreadable)} unreadable images, {self.allowed} allowed by max_unreadable"
                    ) from error
                warnings.warn(f"{text}: using the next image", stacklevel=2)
        raise ValueError(f"no image of the class of {self.paths[index]} can be read")


class Folder:
    """The images of a folder and its subfolders (see `data.pictures.SUFFIXES`), resized and centre-cropped.

    Where every image lies in a subfolder, the subfolders' sorted names are the classes; images beside them take all
    labels away, and a warning names them. Hidden files and folders are ignored. Each split but the first gets `holdout`
    of the images, at least one, by a permutation of the sorted relative paths that is the same on every machine; with
    fewer than three images, or `holdout=0`, all three splits are all the images.

    Args:
        path: the folder.
        image_size: side in pixels, or [height, width].
        channels: 1 (grey) or 3 (RGB).
        holdout: share of the images for each of validation and test, below 0.5.
        max_unreadable: share of the image files that may be unreadable; they are skipped with a warning that names
            them.
        background: grey level 0..255 put behind transparent images (255 is white).
        memory_gib: larger sets are not held in memory (as uint8) but decoded as they are needed.

    Raises:
        ValueError: an argument is missing or out of its range.
    """

    def __init__(
        self,
        path: str | Path | None,
        image_size: int | Sequence[int] = 64,
        channels: int = 3,
        holdout: float = 0.05,
        max_unreadable: float = 0.01,
        background: int = 255,
        memory_gib: float = 4.0,
    ) -> None:
        if not isinstance(path, (str, Path)) or not str(path):
            raise ValueError("dataset=folder needs dataset.path=<folder of images>")
        sides = [image_size] * 2 if isinstance(image_size, int) else image_size
        if isinstance(sides, str) or not isinstance(sides, Sequence) or len(sides) != 2:
            raise ValueError(f"image_size={image_size}: must be a number of pixels or [height, width]")
        height, width = (whole("image_size", side, 1, 8192) for side in sides)
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: must be 1 (grey) or 3 (RGB)")
        self.path = Path(path).expanduser()
        self.shape = (channels, height, width)
        self.holdout = share("holdout", holdout, 0.5)
        self.max_unreadable = share("max_unreadable", max_unreadable, 1.0)
        self.memory_gib = share("memory_gib", memory_gib, math.inf)
        self.decode = Decoder(height, width, channels, whole("background", background, 0, 255))
        self.classes: tuple[str, ...] = ()

    def load(self) -> Splits:
        """List and decode the images, and print what was found; `classes` is known afterwards.

        Raises:
            FileNotFoundError: the folder does not exist.
            ValueError: it has no images, or more than `max_unreadable` of them are unreadable.
        """
        names, passed_over = self._list()
        tops = [name.split("/")[0] for name in names if "/" in name]
        self.classes = tuple(sorted(set(tops))) if len(tops) == len(names) else ()
        if tops and not self.classes:
            stray = _some([name for name in names if "/" not in name])
            warnings.warn(
                f"{self.path}: no image has a label, because of {stray} beside the folders {_some(sorted(set(tops)))}: "
                f"move them into a folder to have classes",
                stacklevel=2,
            )
        _report(f"{printable(str(self.path))}: {self._found(len(names), passed_over)}")
        lazy = len(names) * math.prod(self.shape) > self.memory_gib * 2**30
        pixels = torch.empty((0 if lazy else len(names), *self.shape), dtype=torch.uint8)

        def read(row: int) -> None:
            if lazy:
                check_header(self.path / names[row])
            else:
                pixels[row] = self.decode(self.path / names[row])

        reasons = _attempt(read, len(names))
        self._judge({names[row]: reason for row, reason in reasons.items()}, len(names))
        readable = torch.tensor([row for row in range(len(names)) if row not in reasons])
        order = readable[torch.from_numpy(np.random.RandomState(0).permutation(len(readable)))]
        number = {top: i for i, top in enumerate(self.classes)}
        labels = torch.tensor([number[top] for top in tops] if self.classes else [0] * len(names))

        def build(rows: Tensor) -> Examples:
            paths = [self.path / names[row] for row in rows.tolist()]
            # The headers were read above; what is cut off further on shows only when it is decoded.
            examples: Examples = (
                LazyImages(paths, labels[rows], self.decode, int(self.max_unreadable * len(rows)))
                if lazy
                else Images(pixels, labels, rows)
            )
            examples.identities = self._identities(paths)
            return examples

        if len(order) < 3 or self.holdout == 0:
            everything = build(readable)
            return Splits(everything, everything, everything)
        held = max(1, int(self.holdout * len(order)))
        val, test, train = order.split([held, held, len(order) - 2 * held])
        return Splits(build(train.sort().values), build(val), build(test))

    def _identities(self, paths: Sequence[Path]) -> Tensor:
        """A number for each file's name in the folder and its size."""
        named = ((os.fsencode(path.relative_to(self.path).as_posix()), path.stat().st_size) for path in paths)
        return torch.tensor([identity(b"%s %d" % entry) for entry in named], dtype=torch.int64)

    def _list(self) -> tuple[list[str], Counter[str]]:
        """Return the images' relative POSIX paths, sorted, and how many other files there are by suffix."""
        if self.path.is_file():
            is_archive = self.path.name.lower().endswith(_ARCHIVES)
            what = (
                "an archive: unpack it first, and give the folder" if is_archive else "a file: give a folder of images"
            )
            raise NotADirectoryError(f"{self.path} is {what} by dataset.path=")
        if self.path.is_symlink() and not self.path.exists():
            raise FileNotFoundError(
                f"{self.path} is a symbolic link that leads to nothing: mend it, or give its target"
            )
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: no such folder; give a folder of images by dataset.path=")
        files = list(_walk(self.path))
        names = sorted(path.relative_to(self.path).as_posix() for path in files if is_image(path.name))
        passed_over = Counter(path.suffix.lower() or "no suffix" for path in files if not is_image(path.name))
        if not names:
            others = f"; {_passed_over(passed_over)}" if passed_over else ""
            raise ValueError(f"{self.path}: no images there (looked for {' '.join(SUFFIXES)}){others}")
        return names, passed_over

    def _found(self, images: int, passed_over: Counter[str]) -> str:
        text = f"{images:,} image{'s' if images > 1 else ''}"
        if self.classes:
            text += f" in {len(self.classes)} class{'es' if len(self.classes) > 1 else ''}"
            folders = (path.name for path in self.path.iterdir() if path.is_dir() and not is_hidden(path.name))
            if empty := sorted(set(folders) - set(self.classes)):
                text += f"; no images in {_some(empty)}"
        return f"{text}; {_passed_over(passed_over)}" if passed_over else text

    def _judge(self, reasons: dict[str, str], total: int) -> None:
        """Warn of the unreadable files, or raise where they are too many."""
        if not reasons:
            return
        named = ", ".join(f"{printable(name)} ({reason})" for name, reason in list(reasons.items())[:_NAMED])
        if len(reasons) > _NAMED:
            named += f" and {len(reasons) - _NAMED} more"
        text = f"{len(reasons)} of {total} images in {self.path} cannot be read: {named}"
        if len(reasons) == total or len(reasons) > self.max_unreadable * total:
            raise ValueError(
                f"{text}; max_unreadable={self.max_unreadable} allows {int(self.max_unreadable * total)}: "
                "delete them or raise dataset.source.max_unreadable"
            )
        warnings.warn(f"skipped {text}", stacklevel=3)


def _passed_over(counts: Counter[str]) -> str:
    """What was no image, by kind, and how to make some of it one."""
    text = "passed over " + ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(counts.items()))
    heic = next((suffix for suffix in (".heic", ".heif") if suffix in counts), None)
    return text if heic is None else f"{text} (to use these photos, convert them: magick mogrify -format png *{heic})"


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(map(printable, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _report(line: str) -> None:
    """Prints a line once, where several processes load the same data."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(line)


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files below `root`, through symbolic links, without hidden files and folders.

    Raises:
        OSError: a folder cannot be listed, whose images would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise OSError(
            f"the folder {printable(str(error.filename))} cannot be listed: {error.strerror}; change its permissions, "
            f"or move it away"
        ) from error

    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        # Links may form a loop.
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        for name in files:
            if not is_hidden(name):
                yield Path(folder, name)


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
