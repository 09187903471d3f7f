"""Configurations as a script composes them."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

import cli
from diffusion.training import setup

FIXTURES = Path(__file__).parents[1] / "fixtures"


def resolved(*overrides: str) -> dict[str, Any]:
    """The configuration that `python train.py overrides` works with."""
    with initialize_config_dir(version_base="1.3", config_dir=str(cli.CONFIGS)):
        composed = compose("train", [*overrides, *_needed(overrides)])
        return setup.resolved(composed).config


def _needed(overrides: tuple[str, ...]) -> list[str]:
    """What has no default: photographs of one's own, a run to tune."""
    folders = (
        "dataset=folder",
        "dataset=huggingface",
        *(f"experiment={name}" for name in ("folder", "fast_folder", "gpu_folder")),
    )
    if any(override in folders for override in overrides):
        return ["dataset.path=photos"]
    tunes = any(override.startswith("experiment=few_step") for override in overrides)
    named = any(override.startswith("init_from=") for override in overrides)
    return [f"init_from={FIXTURES / 'residual.ckpt'}"] if tunes and not named else []
