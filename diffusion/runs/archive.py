"""Checks of a checkpoint's file, whatever is in it: sizes, checksums, plain values and dense tensors."""

import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.build import ConfigError
from diffusion.machine import memory

# Entries of a checkpoint: a run of ten thousand layers has fewer, and shared parts of a crafted one unfold without end.
MOST_ENTRIES = 2_000_000
# Bytes at the beginning of what torch.save pickles, enough for Lightning's first values: epoch and global_step.
_HEAD = 1000
_DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


class Invalid(ConfigError):
    """What is wrong with a checkpoint, for a line that begins with its path."""


def check_archive(path: Path) -> None:
    """Looks at the sizes that an archive declares, and at its checksums, which torch does not.

    Raises:
        Invalid: it is larger than it says or than the memory, or damaged.
    """
    size = path.stat().st_size
    memory.check("the file", size)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # torch stores without compression, so that no entry can be larger than the file.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise Invalid("it is a compressed archive, which torch.save does not write")
        if sum(entry.file_size for entry in entries) > size:
            raise Invalid("its parts are larger than the file")
        if damaged := archive.testzip():
            raise Invalid(f"it is damaged, {damaged} in it does not match its checksum")


def stated_step(path: Path) -> int | None:
    """The step that a checkpoint names among its first values, without its tensors; None where it cannot be seen."""
    if not path.is_file():
        return None
    with suppress(OSError, RuntimeError, EOFError, LookupError, ValueError, zipfile.BadZipFile):
        with zipfile.ZipFile(path) as archive:
            pickled = [entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
            if not pickled or pickled[0].compress_type != zipfile.ZIP_STORED:
                return None
            with archive.open(pickled[0]) as file:
                head = file.read(_HEAD)
        found = False
        for opcode, value, _ in pickletools.genops(head):
            if found and "PUT" not in opcode.name:
                return value if isinstance(value, int) else None
            found = found or value == "global_step"
    return None


def check_tensors(loaded: Any) -> None:
    """Raises Invalid unless everything is a plain value or a dense tensor in memory, and finite in number."""
    for count, (name, value) in enumerate(leaves(loaded)):
        if count > MOST_ENTRIES:
            raise Invalid(f"it has more than {MOST_ENTRIES} entries")
        if isinstance(value, Tensor):
            if type(value) not in (Tensor, nn.Parameter) or not _plain(value):
                raise Invalid(f"{name} is no plain dense tensor")
        elif not isinstance(value, str | int | float | bool | None):
            raise Invalid(f"{name} is a {type(value).__name__}, which no run writes")
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise Invalid(f"{name} is a number beyond 64 bits")


def _plain(value: Tensor) -> bool:
    """Whether a tensor is dense, on the CPU, of an ordinary type, and each of its elements has memory of its own."""
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_nested or value.dtype not in _DTYPES:
        return False
    width = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1:
            if stride != width:
                return False
            width *= size
    return True


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All values below mappings and lists, each with its path; an empty one of these gives nothing."""
    todo = [(name, node)]
    while todo:
        name, node = todo.pop()
        if isinstance(node, Mapping):
            if not all(isinstance(key, str | int) for key in node):
                raise Invalid(f"{name or 'it'} has keys that are neither text nor whole numbers")
            todo += [(f"{name}.{key}" if name else str(key), value) for key, value in node.items()]
        elif isinstance(node, list | tuple):
            todo += [(f"{name}.{i}", value) for i, value in enumerate(node)]
        else:
            yield name, node
        if len(todo) > MOST_ENTRIES:
            raise Invalid(f"it has more than {MOST_ENTRIES} entries")
