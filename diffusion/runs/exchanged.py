"""Models in the formats that programs exchange, read as the checkpoints of runs are: without trust."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion.build import ConfigError
from diffusion.exchange import diffusers, weights
from diffusion.runs.validation import check_model


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], int, str | None]:
    """Configuration, state and step, as a checkpoint has them, with one set of weights; and what these are, if it is
    known.

    Raises:
        ConfigError: it is no model that this project has, or not what its settings describe.
    """
    config, state, step, held = (*diffusers.load(path), 0, None) if path.is_dir() else weights.load(path)
    try:
        check_model(config, state)
    except ConfigError as error:
        raise ConfigError(f"{path} is refused: {error}") from error
    return config, state, step, held


def of_folder(config: Mapping[str, Any], typed: Iterable[str]) -> dict[str, Any]:
    """Network, schedule and denoiser of the model folder of diffusers that a new run begins from.

    Args:
        config: as it was composed.
        typed: names of settings; a part of which something was typed stays as it is.

    Raises:
        ConfigError: the folder is refused, or the run is not one of its kind.
    """
    spec = Path(str(config["init_from"]))
    if config.get("autoencoder") is not None or config["dataset"].get("condition") is not None:
        raise ConfigError(f"init_from={spec} is a model of plain images: leave autoencoder= and dataset.condition= out")
    theirs = diffusers.load(spec)[0]
    theirs["network"] |= {"shape": "${dataset.shape}"}  # convolutions take images of any size
    own = {"timesteps": "schedule"}
    given = {own.get(name, name.partition(".")[0]) for name in typed}
    parts = [part for part in ("network", "schedule", "denoiser") if part not in given]
    print(f"init_from={spec}: {', '.join(parts) or 'nothing but the weights'} of that folder", file=sys.stderr)
    return {part: theirs[part] for part in parts}
