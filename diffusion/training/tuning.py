"""Tuning a trained model: which run it is of, and what of that run's configuration the new run takes over."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion.build import ConfigError, build
from diffusion.runs.checkpoints import Checkpoint, find
from diffusion.runs.models import planned
from diffusion.runs.parts import tunes
from diffusion.runs.resume import OF_SOURCE

# The model and what it learned: none of them can be set beside its run.
KEPT = ("dataset", "network", "schedule", "denoiser", "timesteps", "autoencoder")
# What the new run has in common with that one where nothing else is typed.
SHARED = ("condition_dropout", "clip", "train_images", "cache_latents", "data_dir", "download")


def take_over(config: DictConfig, typed: Mapping[str, Any]) -> Checkpoint | None:
    """Puts data and model of the run that is to be tuned into the configuration of a new run, in place.

    Args:
        config: as Hydra composed it.
        typed: name -> value of the settings that a person wrote.

    Returns:
        The checkpoint of that run; None for an objective that tunes nothing.

    Raises:
        ConfigError: no run is named, it cannot be tuned, or something was typed that would make it another model.
    """
    if not tunes(config):
        return None
    if config.init_from is None:
        raise ConfigError(
            "objective=consistency tunes a trained model: add init_from=last, a version number, a run folder or a file"
        )
    spec = f"init_from={config.init_from}"
    checkpoint = find(str(config.init_from))
    stored = checkpoint.config
    if not stored["dataset"].get("source"):
        raise ConfigError(
            f"{spec} is a model of another program and does not name its training data: tune a model that was trained "
            f"here"
        )
    for name, value in typed.items():
        same = name == "dataset" and value == stored["dataset"].get("name")
        if name.partition(".")[0] in KEPT and name not in OF_SOURCE and not same:
            raise ConfigError(f"{name}= belongs to the model that is tuned, and stays as {spec} has it: leave it out")
    for name in (*KEPT, *SHARED):
        if name in stored and (name in KEPT or name not in typed):
            OmegaConf.update(config, name, stored[name], merge=False, force_add=True)
    for name, place in OF_SOURCE.items():
        if name in typed and place in config.dataset.source:
            OmegaConf.update(config, name, typed[name], force_add=True)
            config.dataset.source[place] = typed[name]
    try:
        build(OmegaConf.to_container(config.objective, resolve=True), "objective").check(planned(stored))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"{spec} cannot be tuned: {error}; a model of denoiser=edm, residual, v or flow can"
        ) from error
    return checkpoint
