"""Arrays that are worth keeping: features of real images, weights of extractors.

Everything that a value depends on is its key, which names the file and is written in it. Files are .npz without pickled
objects, written beside their name and renamed; one that is torn, or holds another key, is made anew.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.machine import memory
from diffusion.media.atomic import atomic

Arrays = dict[str, np.ndarray]
# What numpy's reader raises on files that are cut off, pickled or no archives.
UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


class Cache:
    """A folder of arrays.

    Args:
        folder: made when the first value is kept; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def path(self, kind: str, key: Mapping[str, Any]) -> Path | None:
        """The file of a value: `kind` and sixteen digits that change with anything in the key."""
        if self.folder is None:
            return None
        return self.folder / f"{kind}-{hashlib.sha256(_text(key).encode()).hexdigest()[:16]}.npz"

    def get(self, kind: str, key: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
        """The arrays with this key: read, or made and kept."""
        path = self.path(kind, key)
        if path is not None and path.exists():
            try:
                arrays = read_arrays(path)
                if arrays.pop("key").item() == _text(key):
                    return arrays
            except UNREADABLE:
                pass  # torn: made anew below
        arrays = make()
        if path is not None:
            write_arrays(path, arrays | {"key": np.array(_text(key))})
        return arrays


def read_arrays(path: Path) -> Arrays:
    """All arrays of an .npz, without unpickling anything; raises one of `UNREADABLE`."""
    if not path.is_file():
        raise ValueError("no regular file")
    with zipfile.ZipFile(path) as archive:
        memory.check("what it unpacks to", sum(entry.file_size for entry in archive.infolist()))
    with np.load(path, allow_pickle=False) as file:
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("one array, not an archive of arrays")
        return {name: file[name] for name in file.files}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a compressed .npz, whole or not at all."""
    with atomic(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def fingerprint(x: Tensor) -> str:
    """Sixteen hexadecimal digits that change with any value, the type or the shape of a tensor."""
    content = hashlib.sha256(f"{x.dtype}{tuple(x.shape)}".encode())
    content.update(x.contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()[:16]


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
