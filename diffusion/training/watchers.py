"""What shows how a model comes on: samples and scores, a classifier's accuracy, an autoencoder's reconstructions."""

import copy

import pytorch_lightning as pl
import torch

from diffusion import media
from diffusion.media import charts
from diffusion.models import Autoencoder, Codec, NoisyClassifier, accuracy_by_level
from diffusion.noise import PREVIEW, Noise
from diffusion.sampling.conditions import Examples
from diffusion.training.callbacks import AfterStep
from diffusion.training.logger import RunLogger
from diffusion.training.module import DiffusionModule
from diffusion.training.previews import Preview
from diffusion.training.scores import Scores


def watchers(module: DiffusionModule, preview_every: int, score_every: int, clip: bool) -> list[AfterStep]:
    """What shows how this model comes on.

    Raises:
        ValueError: scores of a model that draws nothing during training.
    """
    if isinstance(module.denoiser, Autoencoder):
        if score_every:
            raise ValueError(
                f"score_every={score_every} scores samples of diffusion, not an autoencoder's: leave it out"
            )
        return [Reconstructions(preview_every, clip)]
    if isinstance(module.denoiser, NoisyClassifier):
        if score_every:
            raise ValueError(f"score_every={score_every} scores samples, and a classifier draws none: leave it out")
        return [AccuracyCurve(preview_every)]
    shape = tuple(module.config["dataset"]["shape"])
    return [Preview(preview_every, shape, clip), Scores(score_every, shape, clip)]


class AccuracyCurve(AfterStep):
    """Draws a classifier's accuracy over noise levels in TensorBoard and in `accuracy.png` of the run's folder.

    It is that of the first validation images, with fixed noise and the averaged weights.

    Args:
        every: optimizer steps; also after the last one. 0 for never.
        n: how many images.
    """

    def __init__(self, every: int, n: int = 256) -> None:
        super().__init__()
        if every < 0:
            raise ValueError(f"preview_every must not be negative, got {every}")
        self.every, self.n, self.images = every, n, n

    def after_step(self, trainer: pl.Trainer, module: DiffusionModule, step: int) -> None:
        due = self.every and (step % self.every == 0 or step == trainer.max_steps)
        if not due or not isinstance(module.logger, RunLogger) or not isinstance(module.evaluated, NoisyClassifier):
            return
        with self.aside(module):
            self._draw(trainer.datamodule.splits.val, module, module.logger, step)  # type: ignore[attr-defined]

    def _draw(self, examples: Examples, module: DiffusionModule, logger: RunLogger, step: int) -> None:
        assert isinstance(module.evaluated, NoisyClassifier)
        index = torch.arange(min(self.n, len(examples)))
        x, label = examples.get(index).to(module.device), examples.labels[index].to(module.device)
        training = module.training
        module.eval()
        with torch.autocast(module.device.type, enabled=False):
            levels, shares = accuracy_by_level(module.evaluated, x, label, Noise(0, index.to(module.device), PREVIEW))
        module.train(training)
        figure = charts.curve(
            levels, shares, "log-SNR, from noise to data", "accuracy", 1 / module.evaluated.num_classes
        )
        logger.experiment.add_image("accuracy", figure, step)
        media.save_picture(logger.folder / "accuracy.png", figure)


class Reconstructions(AfterStep):
    """Shows in TensorBoard and in the run's folder what an autoencoder makes of images, and what of its prior.

    `reconstructions.png` has the first validation images above what is decoded of their latents' means, `prior.png`
    what is decoded of N(0, I); both by the averaged weights.

    Args:
        every: optimizer steps; also after the last one. 0 for never.
        clip: clamp what is decoded to [-1, 1].
        n: how many.
    """

    def __init__(self, every: int, clip: bool, n: int = 8) -> None:
        super().__init__()
        if every < 0:
            raise ValueError(f"preview_every must not be negative, got {every}")
        self.every, self.clip, self.n, self.images = every, clip, n, 2 * n

    def after_step(self, trainer: pl.Trainer, module: DiffusionModule, step: int) -> None:
        due = self.every and (step % self.every == 0 or step == trainer.max_steps)
        if not due or not isinstance(module.logger, RunLogger):
            return
        with self.aside(module):
            for name, picture in self._pictures(trainer.datamodule.splits.val, module).items():  # type: ignore[attr-defined]
                module.logger.experiment.add_image(name, picture, step)
                media.save_picture(module.logger.folder / f"{name}.png", picture)

    def _pictures(self, examples: Examples, module: DiffusionModule) -> dict[str, media.Pixels]:
        assert isinstance(module.evaluated, Autoencoder)
        index = torch.arange(min(self.n, len(examples)))
        x = examples.get(index).to(module.device)
        codec = Codec(copy.deepcopy(module.evaluated), self.clip)
        z = Noise(0, torch.arange(8 * self.n, device=module.device), PREVIEW).normal(codec.latent_shape)
        both = torch.cat((x, codec.decode(codec.latents(x)))).cpu()
        return {
            "reconstructions": media.picture(both, rows=2),
            "prior": media.picture(codec.decode(z).cpu(), rows=self.n),
        }
