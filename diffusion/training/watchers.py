"""Callbacks that show training progress: samples and scores, or the curves and pictures of a model that draws none."""

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion import media
from diffusion.build import ConfigError
from diffusion.denoisers import Denoiser
from diffusion.media import charts
from diffusion.noise import PREVIEW, Noise
from diffusion.runs.parts import Parts
from diffusion.samplers import LevelsGrid
from diffusion.sampling.method import first_time, method_of
from diffusion.trainable import Curve
from diffusion.training.callbacks import AfterStep
from diffusion.training.logger import RunLogger
from diffusion.training.module import DiffusionModule
from diffusion.training.previews import Preview
from diffusion.training.scores import Scores


def watchers(parts: Parts) -> list[AfterStep]:
    """The callbacks that show the progress of this run.

    Raises:
        ConfigError: scores of a model that draws nothing.
    """
    settings = parts.settings
    if parts.model.draws:
        times = _few_times(parts) if parts.tunes else None
        steps = 20 if times is None else len(times) - 1
        return [
            Preview(settings.preview_every, parts.shape, settings.clip, steps=steps, times=times),
            Scores(settings.score_every, parts.shape, settings.clip, steps=steps, times=times),
        ]
    if settings.score_every:
        raise ConfigError(
            f"score_every={settings.score_every} scores samples, and a model of this kind, {parts.model.kind}, draws "
            f"none in training: leave it out"
        )
    return [Shown(settings.preview_every)]


def _few_times(parts: Parts) -> Tensor:
    """The times at which a model that is tuned for few calls is shown: those that it will be sampled at."""
    assert isinstance(parts.model, Denoiser)
    if parts.sampler.flow_map:
        return method_of(parts, parts.model)[1]
    return LevelsGrid()(parts.model.schedule, 2, first_time(parts, parts.model))


class Shown(AfterStep):
    """Writes the curves and pictures of `Trainable.shown` to TensorBoard and to the run's folder.

    They are of the first validation data, with fixed noise and the averaged weights.

    Args:
        every: optimizer steps; also after the last one of `max_steps`. 0 for never.
        n: how many data.
    """

    def __init__(self, every: int, n: int = 256) -> None:
        super().__init__()
        self.every, self.n, self.images = every, n, n

    def after_step(self, trainer: pl.Trainer, module: DiffusionModule, step: int) -> None:
        due = self.every and (step % self.every == 0 or step == trainer.max_steps)
        if not due or not isinstance(module.logger, RunLogger):
            return
        with self.aside(module):
            examples = trainer.datamodule.splits.val  # type: ignore[attr-defined]
            index = torch.arange(min(self.n, len(examples)))
            x, label = examples.get(index).to(module.device), examples.labels[index].to(module.device)
            with torch.autocast(module.device.type, enabled=False):
                found = module.evaluated.shown(x, label, Noise(0, index.to(module.device), PREVIEW))
            for name, what in found.items():
                picture = _picture(what)
                module.logger.log_picture(f"val/{name}", picture, step)
                media.save_picture(module.logger.folder / f"{name}.png", picture)


def _picture(what: Tensor | Curve) -> media.Pixels:
    if isinstance(what, Curve):
        return charts.curve(*what)
    return media.picture(what.flatten(0, 1).cpu(), rows=len(what))
