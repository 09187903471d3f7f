"""One process trains a run at a time."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion.build import ConfigError
from diffusion.media.atomic import naming

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run's folder for this process.

    The operating system frees the lock when the process ends, however it ends, so that none is ever left behind. The
    file `.lock` stays; it holds the process that took the lock last.

    Raises:
        ConfigError: another process holds it.
    """
    path = folder / NAME
    with naming(path):
        file = path.open("a+", encoding="utf-8")
    with file:
        if not _taken(file.fileno()):
            file.seek(0)
            owner = file.read().strip() or "by another process"
            raise ConfigError(f"{folder} is being trained {owner}: wait until it has ended, or stop it")
        with naming(path):
            file.truncate(0)
            file.write(f"by process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            file.flush()
        yield


if sys.platform == "win32":
    import msvcrt

    def _taken(descriptor: int) -> bool:
        """Locks a byte beyond the text, which stays readable for others."""
        os.lseek(descriptor, 2**30, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _taken(descriptor: int) -> bool:
        """A lock of the process, which the workers that it forks do not inherit, as they would one of `flock`."""
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True
