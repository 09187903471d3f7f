"""Writing files: each is whole, old or new, and a failure is one line that names the path."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


class WriteError(OSError):
    """A file could not be written; its text is one line that names it."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns an OSError of the block, which may lack the path, into a `WriteError` that names it."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(
            f"cannot write {path}: {reason(error)}; free some space or choose a place that can be written"
        ) from error


def reason(error: Exception) -> str:
    """Why something failed, in one line without the error's number."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]


def check_regular(path: Path) -> None:
    """Only a regular file is read or replaced: a FIFO hangs its reader, and a device is lost by the rename.

    Raises:
        WriteError: something else has this name.
    """
    if path.exists() and not path.is_file():
        raise WriteError(f"{path} is no regular file: move it away or choose another name")


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to write that gets its name when all of it is on disk; parents are created.

    It is written beside X as `.X.<random>.part`, a name of its own, so that two processes that write X at once each
    write a whole file. A failure leaves X as it was and no `.part`.

    Raises:
        WriteError: the disk is full, the folder is read-only or not there, or X is no regular file.
    """
    # File systems allow 255 bytes a name.
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}.part")
    with naming(path):
        check_regular(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            _sync(path.parent)
        finally:
            part.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """The new name has to reach the disk as well."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_parts(folder: Path, name: str = "", older_than_s: float = -1.0) -> None:
    """Removes what killed writers of a file, or of any file, left in a folder.

    Args:
        folder: where to look.
        name: of the file; empty for all.
        older_than_s: leaves younger ones, which a living writer may be at; needless where there is no other writer.
    """
    for part in folder.glob(f".{name[:40]}*.part" if name else "*.part"):
        with suppress(FileNotFoundError):  # a living writer has just renamed it
            if time.time() - part.stat().st_mtime > older_than_s:
                part.unlink()
