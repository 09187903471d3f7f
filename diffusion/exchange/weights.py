"""A model as one `.safetensors` file: one set of its weights, and the configuration of its run as metadata."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion.build import ConfigError
from diffusion.exchange import safetensors, strict


def save(path: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], step: int, weights: str) -> None:
    """Writes a model.

    Args:
        path: of the file.
        config: of the run.
        state: the weights by their names in a checkpoint: `ema.` before averaged ones, else `denoiser.`; and
            `objective.`, what a model of latents has of its autoencoder.
        step: that they are of.
        weights: what they are, "ema", "raw" or the width of an average.

    Raises:
        WriteError: the file cannot be written.
    """
    metadata = {"format": "pt", "config": json.dumps(config), "weights": weights, "step": str(step)}
    safetensors.save(path, state, metadata)


def load(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], int, str | None]:
    """Configuration, state and step of a model, as a checkpoint has them, and what its weights are, see `save`.

    Raises:
        ConfigError: it is no such file, or one of another program.
    """
    state, metadata = safetensors.load(path)
    if "config" not in metadata:
        raise ConfigError(
            f"{path} holds weights alone, and no configuration of this project in its metadata: give the checkpoint, "
            f"or the folder of diffusers that it belongs to"
        )
    step = metadata.get("step", "")
    if not step.isdecimal() or len(step) > 18:
        raise ConfigError(f"{path} is refused: the step in its metadata is {step!r:.40}")
    held = metadata.get("weights", "ema")
    if not re.fullmatch(r"ema|raw|\d[\d.e-]{0,30}", held):
        raise ConfigError(f"{path} is refused: the weights in its metadata are {held!r:.40}")
    return strict.mapping(metadata["config"], f"the configuration in {path}"), state, int(step), held
