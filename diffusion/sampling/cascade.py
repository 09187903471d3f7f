"""Cascades: small images are drawn and enlarged stage by stage, each stage conditioned on the last one's images
(Ho et al. 2021, arXiv 2106.15282).

Conditioned on them with noise (`conditioning_noise`) a stage trusts their details less, and repairs more.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.conditions import Enlarging
from diffusion.build import ConfigError
from diffusion.denoisers import Condition
from diffusion.noise import CASCADE, Noise
from diffusion.runs.checkpoints import Checkpoint
from diffusion.sampling.pipeline import Pipeline
from diffusion.settings.sampling import Steering


@dataclass(frozen=True)
class Enlarged:
    """Image k of the stage before, noised and enlarged.

    Args:
        before: that stage.
        condition: this one's.
        level: standard deviation of the noise.
        stream: of its random numbers.
    """

    before: Pipeline
    condition: Enlarging
    level: float
    stream: int

    def __call__(self, index: Tensor, seed: int, label: int | Sequence[int] | None) -> Condition:
        place = str(index.device)
        low = self.before.sample(index.tolist(), seed, label, batch_size=len(index), device=place).to(place)
        if self.level:
            low = low + self.level * Noise(seed, index, self.stream).normal(low.shape[1:])
        return self.condition.enlarged(low, torch.full((len(low),), self.level, device=low.device))


def cascade_of(
    found: Sequence[Checkpoint],
    weights: str | float = "ema",
    steering: Steering | None = None,
    conditioning_noise: float | None = None,
    **changes: Any,
) -> Pipeline:
    """One pipeline from the checkpoints of a cascade's stages.

    Args:
        found: the checkpoints, see `diffusion.runs.checkpoints.find`.
        weights: see `Pipeline.from_checkpoint`, for each stage.
        steering: guidance steers the stages that were trained with `condition_dropout`.
        conditioning_noise: see `joined`.
        changes: see `Pipeline.from_checkpoint`, for each stage.
    """
    steering = steering or Steering()
    for name in steering.given():
        if not name.startswith("guidance"):
            raise ConfigError(f"{name}= belongs to a single model, and these are the stages of a cascade")
    guidable = [bool(checkpoint.config.get("condition_dropout")) for checkpoint in found]
    if not any(guidable):
        guidable[0] = True  # so that it is said
    stages = [
        Pipeline.from_checkpoint(checkpoint, weights, steering if guided else Steering(), **changes)
        for checkpoint, guided in zip(found, guidable, strict=True)
    ]
    return joined(stages, [str(checkpoint.path) for checkpoint in found], conditioning_noise)


def joined(stages: Sequence[Pipeline], names: Sequence[str], conditioning_noise: float | None = None) -> Pipeline:
    """One pipeline of several, from the smallest images to the largest.

    Labels are those of the stages that know classes. Image k of the first stage is what that draws alone.

    Args:
        stages: as `Pipeline.from_checkpoint` makes them.
        names: theirs, for messages.
        conditioning_noise: standard deviation of the noise that each stage's result gets before the next sees it; None
            is 0.

    Raises:
        ConfigError: they do not fit together.
    """
    if len(stages) < 2:
        raise ConfigError("a cascade has at least two stages: give them, ckpt=[base,sr]")
    if stages[0].condition is not None:
        raise ConfigError(
            f"{names[0]} is conditioned on images, which nothing before it draws: put the base model first"
        )
    classes = {stage.num_classes for stage in stages} - {0}
    if len(classes) > 1:
        raise ConfigError(f"the stages know different numbers of classes: {sorted(classes)}")
    known = max(classes, default=0)
    pipeline, level = dataclasses.replace(stages[0], num_classes=known), conditioning_noise or 0.0
    for k, (stage, name) in enumerate(zip(stages[1:], names[1:], strict=True)):
        if not isinstance(stage.condition, Enlarging):
            raise ConfigError(
                f"{name} enlarges nothing: each stage but the first must be a model such as experiment=cascade_sr"
            )
        small = stage.condition.small(stage.shape)
        if small != pipeline.shape:
            raise ConfigError(
                f"{name} enlarges images of shape {small}, and the stage before it draws {pipeline.shape}"
            )
        if not 0 <= level <= stage.condition.noise:
            raise ConfigError(
                f"conditioning_noise={level:g}: {name} was trained with noise from 0 to {stage.condition.noise:g}"
            )
        stream = CASCADE + 2 * k
        given = Enlarged(pipeline, stage.condition, level, stream)
        pipeline = dataclasses.replace(stage, given=given, stream=stream + 1, num_classes=known)
    return pipeline
