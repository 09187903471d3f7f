"""What a web page draws with, from a checkpoint."""

import math
import warnings

from diffusion.build import ConfigError
from diffusion.exchange.page import Drawable
from diffusion.runs.checkpoints import Checkpoint
from diffusion.runs.parts import Parts, tunes
from diffusion.runs.trained import load_denoiser
from diffusion.sampling.method import sampler_and_times


def drawable_of(checkpoint: Checkpoint, weights: str | float = "ema") -> Drawable:
    """The checkpoint's denoiser with its own sampler, grid and steps."""
    if tunes(checkpoint.config):
        raise ConfigError(
            f"a page has no sampler=consistency, and {checkpoint.path} is tuned for that: export the model that it was "
            f"tuned from"
        )
    parts = from_noise("a page", checkpoint)
    denoiser, codec = load_denoiser(checkpoint, weights)
    sampler, times = sampler_and_times(parts, denoiser)
    return Drawable(
        denoiser=denoiser,
        codec=codec,
        shape=parts.shape,
        clip=parts.config["clip"] and codec is None,
        guidable=bool(parts.config.get("condition_dropout")),
        sampler=sampler,
        grid=parts.grid,
        steps=len(times) - 1,
    )


def from_noise(what: str, checkpoint: Checkpoint) -> Parts:
    """The model's parts, to be drawn from noise whatever `start_level` its run has: an export has no prior.

    Raises:
        ConfigError: the model is not trained at t = 1.
    """
    parts = Parts(checkpoint.config | {"start_level": None})
    if parts.trained_up_to < math.inf:
        raise ConfigError(
            f"{what} begins with noise, and {checkpoint.path} is trained for sampling that begins with its mixture: "
            f"export the model that it was tuned from, or tune that with start_level=inf"
        )
    if Parts(checkpoint.config).start_level < math.inf:
        warnings.warn(f"{what} begins with noise, where {checkpoint.path} begins with its mixture", stacklevel=2)
    return parts


def facts_of(checkpoint: Checkpoint, drawable: Drawable, score: str | None) -> dict[str, str]:
    """What a page says of its model: where it comes from, its data, its score if there is one."""
    data, shape = checkpoint.config["dataset"].get("name", "unknown data"), drawable.shape
    name = (checkpoint.path if checkpoint.alone else checkpoint.folder).name
    million = sum(value.numel() for value in drawable.denoiser.parameters()) / 1e6
    return {
        "dataset": data,
        "model": f"Model: {name}, step {checkpoint.step}, {million:.2f} M parameters",
        "data": f"Data: {data}, {' x '.join(map(str, shape)) if len(shape) > 1 else 'points in the plane'}",
        "score": "Score: none yet" if score is None else f"Score: {score}",
    }
