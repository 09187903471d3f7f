"""Models in the formats that programs exchange, read as the checkpoints of runs are: without trust."""

from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion.build import ConfigError
from diffusion.exchange import diffusers, weights
from diffusion.runs.validation import check_model


def is_exchanged(path: Path) -> bool:
    """Whether this is a `.safetensors` file or a model folder of diffusers."""
    return path.suffix.lower() == ".safetensors" or diffusers.is_folder(path)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    """Configuration, state and step, as a checkpoint has them, with one set of weights.

    Raises:
        ConfigError: it is no model that this project has, or not what its settings describe.
    """
    folder = path.is_dir()
    config, state, step = (*diffusers.load(path), 0) if folder else weights.load(path)
    try:
        check_model(config, state, trained=not folder)
    except ConfigError as error:
        raise ConfigError(f"{path} is refused: {error}") from error
    return config, state, step
