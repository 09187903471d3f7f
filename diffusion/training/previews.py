"""Pictures of samples during training; drawing them does not advance the training's random numbers."""

import pytorch_lightning as pl
import torch
from torch import Tensor

from data.stream import Examples
from diffusion import media
from diffusion.denoisers import Condition, Denoiser
from diffusion.noise import PREVIEW
from diffusion.runs.report import PREVIEW_FILE
from diffusion.samplers import (
    ConsistencySampler,
    DDIMSampler,
    DDPMSampler,
    DPMSolverPP2MSampler,
    Grid,
    LogSNRGrid,
    Sampler,
    TrailingGrid,
)
from diffusion.sampling.conditions import Rows, as_picture, of_examples
from diffusion.sampling.pipeline import Pipeline, clipped
from diffusion.training.callbacks import AfterStep
from diffusion.training.logger import RunLogger
from diffusion.training.module import DiffusionModule


class Preview(AfterStep):
    """Draws images from fixed noise with the averaged weights and logs them, as a grid and as a GIF.

    The newest grid is also in the run's folder, as `samples/preview.png`.

    They are drawn by DPM-Solver++(2M), so that pictures of all runs compare whatever sampler a run is made for; where
    it cannot go, by DDIM, or by DDPM on the whole grid; those of a consistency model by its own sampler.

    Args:
        every: optimizer steps; also after the last one of `max_steps`. 0 for never.
        shape: of one sample.
        clip: clamp the predicted data to [-1, 1].
        n: how many.
        steps: of the sampler.
        times: of the consistency sampler, for a model that is tuned for it.
    """

    def __init__(
        self,
        every: int,
        shape: tuple[int, ...],
        clip: bool,
        n: int = 16,
        steps: int = 20,
        times: Tensor | None = None,
    ) -> None:
        super().__init__()
        if every < 0:
            raise ValueError(f"preview_every must not be negative, got {every}")
        self.every, self.shape, self.clip, self.n, self.steps = every, shape, clip, n, steps
        self.times = times
        self.images = n * steps

    def after_step(self, trainer: pl.Trainer, module: DiffusionModule, step: int) -> None:
        due = self.every and (step % self.every == 0 or step == trainer.max_steps)
        if due and isinstance(module.logger, RunLogger):
            with self.aside(module):
                rows = None  # each class in turn, unless it is conditioned on images, which have classes of their own
                if module.denoiser.condition_channels:
                    rows = torch.arange(self.n) % len(trainer.datamodule.splits.val)  # type: ignore[attr-defined]
                pipeline = preview_pipeline(module, self.shape, self.clip, self.steps, rows, self.times)
                keep = pipeline.shown(len(pipeline.times))
                states = pipeline.frames(self.n, device=str(module.device), keep=keep)
                frames = media.animation(list(states))
                module.logger.log_picture("val/samples", frames[-1], step)
                module.logger.log_animation("val/denoising", frames, step)
                media.save_picture(module.logger.folder / PREVIEW_FILE, frames[-1])
                if rows is not None:
                    self._add_given(module, rows, module.logger, step)

    def _add_given(self, module: DiffusionModule, rows: Tensor, logger: RunLogger, step: int) -> None:
        """What the samples were made from, in the same places, and the validation images that this was made from."""
        examples: Examples = module.trainer.datamodule.splits.val  # type: ignore[attr-defined]
        shown_to_it = as_picture(val_conditions(module, rows)["image"], self.shape)
        for name, images in (("given", shown_to_it), ("truth", examples.get(rows))):
            logger.log_picture(f"val/samples_{name}", media.picture(images), step)


def preview_pipeline(
    module: DiffusionModule,
    shape: tuple[int, ...],
    clip: bool,
    steps: int,
    rows: Tensor | None = None,
    times: Tensor | None = None,
) -> Pipeline:
    """Draws with the averaged weights, from noise of its own: the same images at every step.

    The sampler is `quick_method`'s, or where times are given the consistency sampler.

    A conditional model is conditioned on what belongs to the validation data `rows` (n,), image k on that of item k;
    where that is None, on each class in turn.
    """
    assert isinstance(module.evaluated, Denoiser)
    denoiser = clipped(module.evaluated, clip)
    given = {} if rows is None else val_conditions(module, rows)
    label = given.pop("label").tolist() if "label" in given else None
    if rows is None and denoiser.embedding:  # nothing else decides what to draw
        given["embedding"] = torch.zeros(1, denoiser.embedding)
    sampler: Sampler = ConsistencySampler()
    if times is None:
        sampler, times = quick_method(denoiser, steps)
    return Pipeline(
        denoiser=denoiser,
        sampler=sampler,
        times=times,
        shape=shape,
        num_classes=denoiser.num_classes,
        given=Rows(given) if given else None,
        label=label,
        stream=PREVIEW,
        codec=module.codec,
    )


def val_conditions(module: DiffusionModule, rows: Tensor) -> Condition:
    """What belongs to these validation examples."""
    datamodule = module.trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(module.evaluated, Denoiser)
    return of_examples(module.evaluated, datamodule.condition, datamodule.splits.val, rows)


def quick_method(denoiser: Denoiser, steps: int) -> tuple[Sampler, Tensor]:
    """DPM-Solver++(2M) in so many steps, or where it cannot go DDIM, or DDPM on the whole grid."""
    most = denoiser.schedule.timesteps or steps
    few = min(steps, most)
    choices: list[tuple[Sampler, Grid, int]] = [
        (DPMSolverPP2MSampler(), LogSNRGrid(), few),
        (DDIMSampler(), TrailingGrid(), few),
    ]
    for sampler, grid, count in choices:
        try:
            times = grid(denoiser.schedule, count)
            sampler.check(denoiser, times)
        except ValueError:
            continue
        return sampler, times
    return DDPMSampler(), TrailingGrid()(denoiser.schedule, most)
