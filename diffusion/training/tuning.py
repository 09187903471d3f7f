"""Tuning a trained model: which run it is of, and what of that run's configuration the new run takes over."""

import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion.build import ConfigError, build
from diffusion.denoisers import Denoiser
from diffusion.objectives import Objective
from diffusion.runs.checkpoints import Checkpoint, find
from diffusion.runs.models import planned
from diffusion.runs.parts import distils, tunes
from diffusion.runs.resume import OF_SOURCE
from diffusion.schedules import time_of

# The model and what it learned: none of them can be set beside its run.
KEPT = ("dataset", "network", "schedule", "denoiser", "timesteps", "autoencoder")
# What the new run has in common with that one where nothing else is typed.
SHARED = ("condition_dropout", "train_images", "cache_latents", "data_dir", "download")


def to_tune(config: DictConfig, typed: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint whose model a new run tunes, of an objective that tunes one.

    Args:
        config: as Hydra composed it.
        typed: name -> value of the settings that a person wrote.

    Raises:
        ConfigError: no run is named, it cannot be tuned, or something was typed that would make it another model.
    """
    if config.init_from is None:
        raise ConfigError(
            "this objective tunes a trained model: add init_from=last, a version number, a run folder or a file"
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
    objective: Objective = build(OmegaConf.to_container(config.objective, resolve=True), "objective")
    if distils(stored) or (objective.distils and tunes(stored)):
        raise ConfigError(
            f"{spec} is tuned for few calls already, and gives no mean of the data that could be tuned: name the run "
            f"that it was tuned from, which was init_from={stored.get('init_from')} then"
        )
    try:
        objective.check(planned(stored))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"{spec} cannot be tuned: {error}; a model of denoiser=edm, residual, v or flow can"
        ) from error
    return checkpoint


def of_tuned(tuned: Checkpoint, typed: Mapping[str, Any], config: DictConfig) -> dict[str, Any]:
    """The settings, path -> value, that a new run takes over from the model that it tunes: its data and the model.

    Where the model has a prior, sampling begins at 3.5 standard deviations of the data (docs/few_steps.md).
    """
    stored = tuned.config
    taken = (*KEPT, *(name for name in SHARED if name not in typed))
    settings = {name: stored[name] for name in taken if name in stored}
    for name, place in OF_SOURCE.items():
        if name in typed and place in stored["dataset"]["source"]:
            settings |= {name: typed[name], f"dataset.source.{place}": typed[name]}
    if "start_level" not in typed and config.start_level is None:
        recipe = stored["dataset"].get("recipe") or {}
        settings["start_level"] = _start_level(planned(stored), recipe.get("sigma_data"))
    level = settings.get("start_level", config.start_level)
    if config.grid.get("near") and "grid" not in typed and level in (None, math.inf):
        settings["grid.near"] = False  # near pure noise a call forgets what the one before has drawn
    return settings


def _start_level(model: Any, sigma_data: Any) -> float | None:
    """sigma / alpha where the sampling of a tuned model begins; None is with noise, of a model without a prior."""
    known = isinstance(sigma_data, int | float) and 0 < sigma_data < math.inf
    if not isinstance(model, Denoiser) or not model.has_prior or not known:
        return None
    level = round(3.5 * sigma_data, 4)
    return level if time_of(model.schedule, level) < 1 else None
