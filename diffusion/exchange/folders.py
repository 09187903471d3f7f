"""How a model folder of diffusers is known from others; nothing here imports torch."""

from pathlib import Path

_MARKS = ("model_index.json", "config.json", "unet/config.json")


def is_folder(path: Path) -> bool:
    """Whether this is a folder that diffusers may have written."""
    return path.is_dir() and any((path / name).exists() for name in _MARKS)
