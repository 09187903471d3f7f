"""What happens around the training step: the log, the pictures, the scores, the bar.

Each acts after an optimizer step as a pure function of its number, never in the middle of an accumulation; what they
draw does not advance the training's random numbers.
"""

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from data.stream import Examples
from diffusion import media
from diffusion.denoisers import ClippedDenoiser, Condition, Conditioned, Denoiser
from diffusion.models import decoded
from diffusion.noise import PREVIEW, Noise
from diffusion.samplers import (
    DDIMSampler,
    DDPMSampler,
    DPMSolverPP2MSampler,
    Evaluation,
    Grid,
    LogSNRGrid,
    Sampler,
    TrailingGrid,
    prior,
)
from diffusion.sampling.conditions import as_picture, of_examples
from diffusion.training.callbacks import AfterStep
from diffusion.training.logger import RunLogger
from diffusion.training.module import DiffusionModule


class Preview(AfterStep):
    """Draws images from fixed noise with the averaged weights and shows them in TensorBoard, as a grid and as a GIF.

    They are drawn by DPM-Solver++(2M), so that pictures of all runs compare whatever sampler a run is made for; where
    it cannot go, by DDIM, or by DDPM on the whole grid.

    Args:
        every: optimizer steps; also after the last one. 0 for never.
        shape: of one sample.
        clip: clamp the predicted data to [-1, 1].
        n: how many.
        steps: of the sampler.
    """

    def __init__(self, every: int, shape: tuple[int, ...], clip: bool, n: int = 16, steps: int = 20) -> None:
        super().__init__()
        if every < 0:
            raise ValueError(f"preview_every must not be negative, got {every}")
        self.every, self.shape, self.clip, self.n, self.steps = every, shape, clip, n, steps
        self.images = n * steps

    def after_step(self, trainer: pl.Trainer, module: DiffusionModule, step: int) -> None:
        due = self.every and (step % self.every == 0 or step == trainer.max_steps)
        if due and isinstance(module.logger, RunLogger):
            with self.aside(module):
                told = None  # each class in turn, unless it is told images, which have classes of their own
                if module.denoiser.condition_channels:
                    told = torch.arange(self.n) % len(trainer.datamodule.splits.val)  # type: ignore[attr-defined]
                states = drawn(module, range(self.n), self.shape, self.clip, self.steps, told)
                frames = media.animation([shown(module, state).cpu() for state in states])
                writer = module.logger.experiment
                writer.add_image("samples", frames[-1], step)
                writer.add_summary(media.tensorboard_gif("denoising", frames), step)
                if told is not None:
                    self._add_given(module, told, writer, step)

    def _add_given(self, module: DiffusionModule, told: Tensor, writer: Any, step: int) -> None:
        """What the samples were made from, in the same places, and the validation images that this was made from."""
        examples: Examples = module.trainer.datamodule.splits.val  # type: ignore[attr-defined]
        shown_to_it = as_picture(val_conditions(module, told)["image"], self.shape)
        for name, images in (("samples_given", shown_to_it), ("samples_truth", examples.get(told))):
            writer.add_image(name, media.picture(images), step)


@torch.no_grad()
def drawn(
    module: DiffusionModule,
    numbers: range,
    shape: tuple[int, ...],
    clip: bool,
    steps: int,
    told: Tensor | None = None,
) -> Iterator[Evaluation]:
    """The states of the samples with these numbers on their way from fixed noise, by the averaged weights.

    A conditional model is told what belongs to the validation data `told` (n,); where that is None, each class in turn.
    The training's own random numbers stay as they were.
    """
    assert isinstance(module.evaluated, Denoiser)
    denoiser = ClippedDenoiser(module.evaluated) if clip else module.evaluated
    schedule = denoiser.schedule
    training = module.training
    module.eval()
    noise = Noise(0, torch.tensor(numbers, device=module.device), PREVIEW)
    cond = {} if told is None else val_conditions(module, told)
    if told is None and denoiser.num_classes:
        cond["label"] = noise.index % denoiser.num_classes
    if told is None and denoiser.embedding:  # nobody said what to draw
        cond["embedding"] = torch.zeros(len(numbers), denoiser.embedding)
    cond = {name: value.to(module.device) for name, value in cond.items()}
    with torch.autocast(module.device.type, enabled=False):
        x = prior(schedule, noise, shape if module.codec is None else module.codec.latent_shape)
        sampler, times = quick_method(denoiser, steps)
        yield from sampler(Conditioned(denoiser, cond), x, times, noise)
    module.train(training)


def val_conditions(module: DiffusionModule, rows: Tensor) -> Condition:
    """What belongs to these validation examples."""
    datamodule = module.trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(module.evaluated, Denoiser)
    return of_examples(module.evaluated, datamodule.condition, datamodule.splits.val, rows)


def shown(module: DiffusionModule, state: Evaluation) -> Tensor:
    """x_t, or what it shows if it is latents."""
    assert isinstance(module.evaluated, Denoiser)
    return decoded(module.codec, module.evaluated.schedule, state.x_t, state.t)


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
