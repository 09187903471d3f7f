"""Settings that follow from others of a composed configuration."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusion.build import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Options of the trainer that say when a run ends.
LIMITS = ("max_steps", "max_epochs", "max_time")


def put(config: "DictConfig", settings: Mapping[str, Any]) -> None:
    """Puts settings, path -> value, into a configuration; a group takes the place of the one that was there."""
    from omegaconf import OmegaConf

    for path, value in settings.items():
        OmegaConf.update(config, path, value, merge=False, force_add=True)


def of_timesteps(config: "DictConfig") -> dict[str, int]:
    """What the shorthand `timesteps`, where it is given, sets of the schedule.

    Raises:
        ConfigError: the schedule has no such setting.
    """
    timesteps = config.get("timesteps")
    if timesteps is None:
        return {}
    if "timesteps" not in config.schedule:
        raise ConfigError(
            f"timesteps={timesteps}: this schedule is continuous in time and has no number of steps; "
            f"steps=... sets how many a sampler takes, schedule=linear (or cosine, quadratic, sigmoid) is discrete"
        )
    return {"schedule.timesteps": timesteps}


def of_limits(typed: Mapping[str, Any]) -> dict[str, None]:
    """The limits of a new run that are switched off, since another one was typed.

    Args:
        typed: name -> value of the settings that a person wrote.

    Raises:
        ConfigError: both a budget and another limit were typed.
    """
    limits = [name for name in LIMITS if typed.get(f"trainer.{name}") is not None]
    budget = typed.get("budget_minutes") is not None
    if budget and limits:
        raise ConfigError(f"budget_minutes and trainer.{limits[0]} both say when to stop: give one of them")
    if not limits and not budget:
        return {}
    return {f"trainer.{name}": None for name in LIMITS if name not in limits} | (
        {} if budget else {"budget_minutes": None}
    )
