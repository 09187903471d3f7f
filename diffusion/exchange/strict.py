"""JSON that a stranger wrote."""

import json
from pathlib import Path
from typing import Any

from diffusion.build import ConfigError

# Of a file: settings take some kilobytes, a million listed betas 25 MB.
LARGEST = 32 * 2**20


def mapping(text: bytes | str, what: str) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        ConfigError: it is none, names something twice, or holds NaN; `what` begins the message.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} is no JSON object ({str(error)[:100]})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{what} is no JSON object")
    return found


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises ConfigError as `mapping` does, and for what is no regular file of its size."""
    if not path.is_file():
        raise ConfigError(f"{path} is missing, or is no regular file")
    if path.stat().st_size > LARGEST:
        raise ConfigError(f"{path} is refused: it is larger than {LARGEST >> 20} MB")
    return mapping(path.read_bytes(), str(path))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN")
    return float(name)
