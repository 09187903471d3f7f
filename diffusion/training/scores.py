"""What happens around the training step: the log, the pictures, the scores, the bar.

Each acts after an optimizer step as a pure function of its number, never in the middle of an accumulation; what they
draw does not advance the training's random numbers.
"""

import pytorch_lightning as pl
import torch

from diffusion import media
from diffusion.evaluation.extractors import RandomConvolutions, features
from diffusion.evaluation.metrics import frechet_distance, kernel_distance, neighbour_scores
from diffusion.evaluation.points import sliced_wasserstein
from diffusion.evaluation.table import judged_and_told
from diffusion.sampling.conditions import Examples
from diffusion.training.callbacks import AfterStep
from diffusion.training.logger import RunLogger
from diffusion.training.module import DiffusionModule
from diffusion.training.previews import preview_pipeline


class Scores(AfterStep):
    """Scores samples of the averaged weights against validation data: a course, not a result (few samples, 20 steps).

    Images are judged by random convolutions, which know no data set; points by the sliced Wasserstein distance.

    Args:
        every: optimizer steps; also after the last one. 0 for never.
        shape: of one sample.
        clip: clamp the predicted data to [-1, 1].
        n: how many samples and validation data, fewer if there are fewer.

    Raises:
        ValueError: data of this shape have no scores.
    """

    def __init__(self, every: int, shape: tuple[int, ...], clip: bool, n: int = 256) -> None:
        super().__init__()
        self.every, self.shape, self.clip, self.n = every, shape, clip, n
        self.images = 20 * n
        if every and len(shape) != 3 and shape != (2,):
            raise ValueError(f"score_every scores images and points in the plane, not data of shape {shape}")
        # Not a part of the Lightning module, where it would get into checkpoints.
        self._extractor = RandomConvolutions(shape[0]).eval() if len(shape) == 3 else None
        self._real, self._told = torch.empty(0), torch.empty(0, dtype=torch.int64)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.every and trainer.is_global_zero:
            # Not from the loader, whose part of the data depends on the number of devices.
            self.judge_by(trainer.datamodule.splits.val)  # type: ignore[attr-defined]

    def judge_by(self, examples: Examples) -> None:
        """Takes the validation data that samples are judged by; ValueError if they are too few for a score."""
        rows, self._told = judged_and_told(len(examples), self.n)
        data = examples.get(rows)
        self._real = data if self._extractor is None else features(self._extractor, media.quantised(data))
        if len(data) <= (width := self._real.shape[1]):
            raise ValueError(
                f"score_every={self.every} needs more than {width} validation data, and there are {len(data)}: "
                f"leave it out"
            )

    def after_step(self, trainer: pl.Trainer, module: DiffusionModule, step: int) -> None:
        due = self.every and (step % self.every == 0 or step == trainer.max_steps)
        if due and isinstance(module.logger, RunLogger):
            with self.aside(module):
                if found := self.scores(module):
                    module.logger.log_metrics(found, step=step)

    def scores(self, module: DiffusionModule) -> dict[str, float]:
        """The scores by their names, which end in the number of samples; none if a sample is not finite."""
        pipeline = preview_pipeline(module, self.shape, self.clip, 20, self._told)
        fake = pipeline.sample(len(self._real), device=str(module.device))
        if not fake.isfinite().all():
            return {}  # a gap in the curves
        if self._extractor is None:
            values = {"sliced_wasserstein": sliced_wasserstein(fake, self._real, replicates=0).value}
        else:
            made = features(self._extractor, media.quantised(fake))
            values = {
                "frechet_random": frechet_distance(made, self._real, replicates=0).value,
                "kernel_random": kernel_distance(made, self._real, replicates=0).value,
                "coverage_random": neighbour_scores(made, self._real, replicates=0)["coverage"].value,
            }
        return {f"val_score/{name}_n{len(fake)}": value for name, value in values.items()}
