"""Image files by their names below a root, which is a folder or an archive."""

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from data.collection import Files
from data.labels import LABELS
from data.pictures import is_image


class Tree(Files):
    """Image files in the order of their relative POSIX names.

    `names` are those of the images; `passed_over` counts the other files by suffix.

    Args:
        names: of all files that are not hidden.
    """

    def __init__(self, names: Iterable[str]) -> None:
        files = list(names)
        self.names = sorted(name for name in files if is_image(PurePosixPath(name).name))
        others = (name for name in files if not is_image(PurePosixPath(name).name) and name != LABELS)
        self.passed_over = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in others)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return self.names[row]

    def identity(self, row: int) -> bytes:
        """A file's name and its size: the same in a folder and in a zip of it."""
        return b"%s %d" % (os.fsencode(self.names[row]), self.size(row))

    @abstractmethod
    def size(self, row: int) -> int:
        """Bytes of a file."""

    @abstractmethod
    def folders(self) -> list[str]:
        """The names of the folders at the root."""

    @abstractmethod
    def content(self, name: str, most: int) -> bytes | None:
        """The first bytes of a file; None if there is no such file."""
