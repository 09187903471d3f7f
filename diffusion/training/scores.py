"""Scores of samples during training; drawing them does not advance the training's random numbers."""

import warnings

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion import media
from diffusion.evaluation.copying import Watch
from diffusion.evaluation.extractors import RandomConvolutions, features
from diffusion.evaluation.metrics import frechet_distance, kernel_distance, neighbour_scores
from diffusion.evaluation.points import sliced_wasserstein
from diffusion.evaluation.table import judging_and_conditioning
from diffusion.sampling.conditions import Examples
from diffusion.training.callbacks import AfterStep
from diffusion.training.logger import RunLogger
from diffusion.training.module import DiffusionModule
from diffusion.training.previews import preview_pipeline

LEAST_WATCHED = 5  # held-out images, and training images, by which copies are recognised


class Scores(AfterStep):
    """Scores samples of the averaged weights against validation data.

    A trend, not a score to report: the samples are few, in few steps.

    Images are judged by random convolutions, which know no data set, and by their distances to training images; points
    by the sliced Wasserstein distance. A run warns once when samples are nearer to training images than validation data
    are.

    Args:
        every: optimizer steps; also after the last one of `max_steps`. 0 for never.
        shape: of one sample.
        clip: clamp the predicted data to [-1, 1].
        n: how many samples and validation data, fewer if there are fewer.
        steps: of the sampler.
        times: of the consistency sampler, for a model that is tuned for it.

    Raises:
        ValueError: data of this shape have no scores.
    """

    def __init__(
        self,
        every: int,
        shape: tuple[int, ...],
        clip: bool,
        n: int = 256,
        steps: int = 20,
        times: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.every, self.shape, self.clip, self.n, self.steps = every, shape, clip, n, steps
        self.times = times
        self.images = steps * n
        if every and len(shape) != 3 and shape != (2,):
            raise ValueError(f"score_every scores images and points in the plane, not data of shape {shape}")
        # Not a part of the Lightning module, where it would get into checkpoints.
        self._extractor = RandomConvolutions(shape[0]).eval() if len(shape) == 3 else None
        self._real, self._conditioning = torch.empty(0), torch.empty(0, dtype=torch.int64)
        self._watch: Watch | None = None
        self._warned = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.every and trainer.is_global_zero and not len(self._real):
            # Not from the loader, whose part of the data depends on the number of devices.
            self.judge_by(trainer.datamodule.splits.val)  # type: ignore[attr-defined]

    def judge_by(self, examples: Examples, training: Tensor | None = None) -> None:
        """Takes the validation data that samples are judged by, and training images (N, C, H, W) in [-1, 1] to look for
        copies among; ValueError if the former are too few for a score."""
        rows, self._conditioning = judging_and_conditioning(len(examples), self.n)
        data = examples.get(rows)
        self._real = data if self._extractor is None else features(self._extractor, media.quantised(data))
        if training is not None and min(len(data), len(training)) >= LEAST_WATCHED:
            self._watch = Watch(media.quantised(data), media.quantised(training))
        if not self._enough and self._watch is None:
            raise ValueError(
                f"score_every={self.every} needs more than {self._real.shape[1]} validation data, and there are "
                f"{len(data)}: leave it out"
            )

    @property
    def _enough(self) -> bool:
        """Whether there are more validation data than features, as their covariance needs."""
        return len(self._real) > self._real.shape[1]

    def after_step(self, trainer: pl.Trainer, module: DiffusionModule, step: int) -> None:
        due = self.every and (step % self.every == 0 or step == trainer.max_steps)
        if due and isinstance(module.logger, RunLogger):
            with self.aside(module):
                if found := self.scores(module):
                    module.logger.log_metrics(found, step=step)

    def scores(self, module: DiffusionModule) -> dict[str, float]:
        """The scores by their names, which end in the number of samples; none if a sample is not finite."""
        pipeline = preview_pipeline(module, self.shape, self.clip, self.steps, self._conditioning, self.times)
        fake = pipeline.sample(len(self._real), device=str(module.device))
        if not fake.isfinite().all():
            return {}  # a gap in the curves
        if self._extractor is None:
            values = {"sliced_wasserstein": sliced_wasserstein(fake, self._real, replicates=0).value}
        else:
            values = self._image_scores(media.quantised(fake))
        return {f"val_score/{name}_n{len(fake)}": value for name, value in values.items()}

    def _image_scores(self, fake: Tensor) -> dict[str, float]:
        """Scores of bytes (n, C, H, W): of few validation images only whether samples are copies."""
        values = {}
        if self._enough:
            assert self._extractor is not None
            made = features(self._extractor, fake)
            values = {
                "frechet_random": frechet_distance(made, self._real, replicates=0).value,
                "kernel_random": kernel_distance(made, self._real, replicates=0).value,
                "coverage_random": neighbour_scores(made, self._real, replicates=0)["coverage"].value,
            }
        if self._watch is not None:
            copying = self._watch(fake)
            values["copying_pixels"] = copying.nearer.value
            if copying.found and not self._warned:
                self._warned = True
                share = 100 * copying.nearer.value
                warnings.warn(
                    f"samples come nearer to training images than held-out images do, in {share:.0f} % of pairs (50 % "
                    f"without copying), each to one image alone: the model begins to repeat its training images; stop "
                    f"here, or train on more images or with dataset.augment=0.12",
                    stacklevel=2,
                )
        return values
