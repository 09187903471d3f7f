"""A zip of images, read in place: nothing is unpacked to the disk."""

import os
import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from data.labels import LABELS
from data.pictures import UnreadableImage, is_hidden, is_image, printable
from data.tree import Tree

LARGEST = 2**28  # bytes of a file in an archive, as it says itself


class Archive(Tree):
    """The images of a .zip, in the order that the folder has that was packed.

    Most programs pack a folder with its own name before every file. That name is left out where a dataset.json or the
    folders of classes lie within; else it may be the one class.
    Each process opens the file itself, since a position in a file is shared with the processes that inherit it.

    Raises:
        ValueError: one line; it is no whole .zip, or has what no data set has: links, encrypted files, names that lead
            out of it or come twice, files that are said to be larger than `LARGEST`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: zipfile.ZipFile | None = None
        self._process = -1
        try:
            entries = [entry for entry in self._archive().infolist() if not entry.is_dir()]
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise ValueError(f"{printable(str(path))} is no .zip that can be read ({_text(error)})") from error
        packed: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            if reason := _refusal(entry, packed):
                raise ValueError(f"{printable(str(path))}: {printable(entry.filename)} {reason}: pack the images anew")
            packed[entry.filename] = entry
        visible = [name for name in packed if not any(map(is_hidden, PurePosixPath(name).parts))]
        images = [name for name in visible if is_image(PurePosixPath(name).name)]
        tops = {name.split("/")[0] for name in images}
        around = f"{tops.pop()}/" if len(tops) == 1 and LABELS not in packed else ""
        if around + LABELS not in packed and not all(name.count("/") > 1 for name in images):
            around = ""
        self._entries = {name.removeprefix(around): packed[name] for name in visible}
        super().__init__(self._entries)

    def open(self, row: int) -> BinaryIO:
        try:
            return cast(BinaryIO, self._archive().open(self._entries[self.names[row]]))
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
            raise UnreadableImage(_text(error)) from error

    def size(self, row: int) -> int:
        return self._entries[self.names[row]].file_size

    def folders(self) -> list[str]:
        return sorted({name.split("/")[0] for name in self._entries if "/" in name})

    def content(self, name: str, most: int) -> bytes | None:
        if name not in self._entries:
            return None
        try:
            with self._archive().open(self._entries[name]) as file:
                return file.read(most)
        except Exception as error:  # the decompressors have exceptions of their own
            raise ValueError(f"{printable(str(self.path))}: {name} cannot be read ({_text(error)})") from error

    def _archive(self) -> zipfile.ZipFile:
        if self._opened is None or self._process != os.getpid():
            self._opened, self._process = zipfile.ZipFile(self.path), os.getpid()
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def _refusal(entry: zipfile.ZipInfo, before: dict[str, zipfile.ZipInfo]) -> str | None:
    """Why an archive with this entry is refused."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    parts = entry.filename.split("/")
    if kind not in (0, stat.S_IFREG):
        return "is a link or another thing that is no file"
    if ".." in parts or "" in parts or "\\" in entry.filename or ":" in parts[0]:
        return "has a name that leads elsewhere"
    if entry.filename in before:
        return "is there twice"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.file_size > LARGEST:
        return f"is said to have {entry.file_size:,} bytes, and {LARGEST:,} are allowed"
    return None


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
