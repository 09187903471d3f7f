"""The file format safetensors: named tensors and text, without code (https://github.com/huggingface/safetensors).

A file is the length N of a header, 8 bytes, little-endian; the header, N bytes of JSON, `{"name": {"dtype": "F32",
"shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {"key": "text"}}`; then the numbers of one tensor
after the other.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from diffusion.build import ConfigError
from diffusion.exchange import strict
from diffusion.machine import memory
from diffusion.media.atomic import atomic

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a file, which is whole or is not there.

    Raises:
        ConfigError: a tensor has a type that is not in `DTYPES`.
        WriteError: the file cannot be written.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    # The widest numbers come first, so that each tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    begin = 0
    for name in names:
        value = tensors[name]
        if value.dtype not in _NAMES:
            raise ConfigError(f"{name} holds {value.dtype}, which a .safetensors file of this project does not have")
        end = begin + value.numel() * value.element_size()
        header[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, on the CPU, and metadata of a file.

    Raises:
        ConfigError: it is no such file, is larger than the memory, is cut off, or has parts that overlap or are unused.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is missing, or is no regular file")
    size = path.stat().st_size
    memory.check(f"{path}", size)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, strict.LARGEST):
            raise ConfigError(f"{path} is refused: it is no .safetensors file, or is cut off")
        header = strict.mapping(_text(file.read(length), path), f"the header of {path}")
        metadata = header.pop(_METADATA, {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ConfigError(f"{path} is refused: its metadata are no texts")
        tensors, place = {}, 0
        for name, (dtype, shape, begin, end) in sorted(_entries(path, header).items(), key=lambda entry: entry[1][2:]):
            if begin != place or end > size - 8 - length:
                raise ConfigError(f"{path} is refused: {name} overlaps another tensor, leaves a gap or is cut off")
            tensors[name] = _tensor(file, dtype, shape, end - begin)
            place = end
    if place != size - 8 - length:
        raise ConfigError(f"{path} is refused: it holds bytes after its last tensor")
    return tensors, metadata


def _text(header: bytes, path: Path) -> str:
    try:
        return header.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is refused: its header is no UTF-8") from error


def _entries(path: Path, header: dict[str, Any]) -> dict[str, tuple[torch.dtype, list[int], int, int]]:
    """Of each tensor its type, its shape, where it begins and where it ends."""
    found = {}
    for name, entry in header.items():
        wrong = ConfigError(f"{path} is refused: its header does not say what {name!r:.100} is")
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise wrong
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or not isinstance(dtype, str):
            raise wrong
        if math.prod(max(n, 1) for n in shape) >= 2**62:  # of no numbers, a zero among its sizes, or torch overflows
            raise wrong
        if dtype not in DTYPES:
            raise ConfigError(f"{path} is refused: {name!r:.100} has the type {dtype!r:.20}, not {', '.join(DTYPES)}")
        if math.prod(shape) * DTYPES[dtype].itemsize != offsets[1] - offsets[0]:
            raise ConfigError(f"{path} is refused: {name!r:.100} has another size than its shape says")
        found[name] = (DTYPES[dtype], shape, *offsets)
    return found


def _counts(value: Any) -> bool:
    """Whether it is a list of whole numbers from 0 to 2^62, at most 16 of them."""
    return isinstance(value, list) and len(value) <= 16 and all(type(n) is int and 0 <= n < 2**62 for n in value)


def _tensor(file: BinaryIO, dtype: torch.dtype, shape: list[int], size: int) -> Tensor:
    if not size:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(file.read(size)), dtype=dtype).reshape(shape)
