"""What a web page draws with, from a checkpoint."""

from diffusion.build import ConfigError
from diffusion.exchange.page import Drawable
from diffusion.runs.checkpoints import Checkpoint
from diffusion.runs.codecs import drawing
from diffusion.runs.parts import Parts
from diffusion.sampling.pipeline import sampler_and_times


def drawable_of(checkpoint: Checkpoint, weights: str | float = "ema") -> Drawable:
    """The checkpoint's denoiser with its own sampler, grid and steps."""
    parts = Parts(checkpoint.config)
    if parts.tunes:
        raise ConfigError(
            f"a page has no sampler=consistency, and {checkpoint.path} is tuned for that: export it as .onnx, or the "
            f"model that it was tuned from"
        )
    denoiser, codec = drawing(checkpoint, weights)
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
