"""Configurations as a script composes them."""

from typing import Any

from hydra import compose, initialize_config_dir

import cli
from diffusion.training import setup


def resolved(*overrides: str) -> dict[str, Any]:
    """The configuration that `python train.py overrides` works with."""
    with initialize_config_dir(version_base="1.3", config_dir=str(cli.CONFIGS)):
        composed = compose("train", [*overrides, "dataset.path=photos"] if _is_folder(overrides) else overrides)
        return setup.resolved(composed).config


def _is_folder(overrides: tuple[str, ...]) -> bool:
    folders = ("dataset=folder", "dataset=huggingface", "experiment=folder", "experiment=fast_folder")
    return any(override in folders for override in overrides)
