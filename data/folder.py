"""Any folder of images, or a zip of one: classes by subfolder, or by the dataset.json of EDM's data sets."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from data.archive import Archive
from data.collection import Collection, counted, report, some
from data.labels import LABELS, LARGEST, numbered
from data.pictures import SUFFIXES, is_hidden, printable
from data.places import check_path, expanded
from data.stream import Splits
from data.tree import Tree


class Directory(Tree):
    """The images of a folder and its subfolders.

    Raises:
        OSError: a folder in it cannot be listed, whose images would be missing without a word.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(file.relative_to(path).as_posix() for file in _walk(path))

    def open(self, row: int) -> Path:
        return self.path / self.names[row]

    def size(self, row: int) -> int:
        return self.open(row).stat().st_size

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir() if path.is_dir() and not is_hidden(path.name))

    def content(self, name: str, most: int) -> bytes | None:
        file = self.path / name
        if not file.is_file():
            return None
        with file.open("rb") as opened:
            return opened.read(most)


class Folder(Collection):
    """The images of a folder and its subfolders, or of a .zip of one, resized and centre-cropped.

    See `data.pictures.SUFFIXES` for what counts as one. Where there is a dataset.json with labels, as EDM's data sets
    have it, its numbers are the classes. Else, where every image lies in a subfolder, the subfolders' sorted names are
    the classes; images beside them take all labels away, and a warning names them. Hidden files and folders are
    ignored. Each split but the first gets `holdout` of the images, at least one, by a permutation of the sorted
    relative paths that is the same on every machine; with fewer than three images, or `holdout=0`, all three splits are
    all the images.

    Args:
        path: the folder, or the archive.
        image_size, channels, holdout, max_unreadable, background, memory_gib: see `Collection`.

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
        self.path = expanded(path)
        super().__init__(image_size, channels, holdout, max_unreadable, background, memory_gib)

    def load(self) -> Splits:
        """List and decode the images, and print what was found; `classes` is known afterwards.

        Raises:
            FileNotFoundError: the folder does not exist.
            NotADirectoryError: it is another file.
            ValueError: it has no images, or more than `max_unreadable` of them are unreadable; an archive or its labels
                are not what they should be.
        """
        check_path(self.path)
        tree: Tree = Archive(self.path) if self.path.is_file() else Directory(self.path)
        where = printable(str(self.path))
        if not len(tree):
            there = f"; {_passed_over(tree.passed_over)}" if tree.passed_over else ""
            raise ValueError(f"{where}: no images there (looked for {' '.join(SUFFIXES)}){there}")
        labels = self._labels(tree)
        report(f"{where}: {self._found(tree)}")
        build, readable = self.decoded(tree, labels, self.fits(len(tree)), str(self.path))
        rows, *held = self.held_out(readable, 2)
        train = build(rows)
        val, test = (train if part is rows else build(part) for part in held)
        return Splits(train, val, test)

    def _labels(self, tree: Tree) -> torch.Tensor:
        """A label for each image, int64, and the names of the `classes`."""
        content = tree.content(LABELS, LARGEST + 1)
        known = None if content is None else numbered(content, tree.names, str(self.path / LABELS))
        if known is not None:
            self.classes = tuple(map(str, range(1 + max(known)))) if known else ()
            return torch.tensor(known or [0] * len(tree))
        tops = [name.split("/")[0] for name in tree.names if "/" in name]
        self.classes = tuple(sorted(set(tops))) if len(tops) == len(tree) else ()
        if tops and not self.classes:
            stray = some([name for name in tree.names if "/" not in name])
            warnings.warn(
                f"{self.path}: no image has a label, because of {stray} beside the folders {some(sorted(set(tops)))}: "
                f"move them into a folder to have classes",
                stacklevel=3,
            )
        number = {top: i for i, top in enumerate(self.classes)}
        return torch.tensor([number[top] for top in tops] if self.classes else [0] * len(tree))

    def _found(self, tree: Tree) -> str:
        text = counted(len(tree), "image")
        if self.classes:
            text += f" in {counted(len(self.classes), 'class')}"
            tops = {name.split("/")[0] for name in tree.names}
            if empty := sorted(set(tree.folders()) - tops):
                text += f"; no images in {some(empty)}"
        return f"{text}; {_passed_over(tree.passed_over)}" if tree.passed_over else text


def _passed_over(counts: Counter[str]) -> str:
    """What was no image, by kind, and how to make some of it one."""
    text = "passed over " + ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(counts.items()))
    heic = next((suffix for suffix in (".heic", ".heif") if suffix in counts), None)
    return text if heic is None else f"{text} (to use these photos, convert them: magick mogrify -format png *{heic})"


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
