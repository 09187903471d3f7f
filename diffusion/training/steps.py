"""Checks of `steps=`, the sampler's steps, which people confuse with training steps."""

import warnings
from collections.abc import Container, Mapping
from typing import Any

from diffusion.denoisers import Denoiser
from diffusion.runs.parts import Parts
from diffusion.sampling.method import sampler_and_times

STEPS_MEANT = (
    "steps= is how many steps a sampler takes: trainer.max_steps=... sets how long to train, and timesteps=... the "
    "number of noising steps"
)


def mistaken(config: Mapping[str, Any], typed: Container[str]) -> str:
    """A hint if `steps=` was typed with at least as many steps as the schedule has; else empty."""
    steps, noising = config.get("steps"), config["schedule"].get("timesteps") or 1000
    return STEPS_MEANT if "steps" in typed and isinstance(steps, int) and steps >= noising else ""


def check_sampling(parts: Parts, typed: Container[str]) -> None:
    """Checks the sampler of a run, and warns of one that is far off; `typed` are names of settings.

    Raises:
        Unfit: the sampler, its grid and its number of steps do not go together with the model.
    """
    denoiser = parts.model
    assert isinstance(denoiser, Denoiser)
    sampler_and_times(parts, denoiser)
    if said := mistaken(parts.config, typed):
        warnings.warn(f"steps={parts.settings.steps}: {said}", stacklevel=2)
