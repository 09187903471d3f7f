"""What happens around the training step: the log, the pictures, the scores, the bar.

Each acts after an optimizer step as a pure function of its number, never in the middle of an accumulation; what they
draw does not advance the training's random numbers.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from tqdm import tqdm

from diffusion import media
from diffusion.autoencoder import decoded
from diffusion.conditioning import Examples, as_picture, of_examples
from diffusion.denoisers import ClippedDenoiser, Condition, Conditioned, Denoiser
from diffusion.evaluation.clouds import sliced_wasserstein
from diffusion.evaluation.extractors import RandomConvolutions, features
from diffusion.evaluation.metrics import frechet_distance, kernel_distance, neighbour_scores
from diffusion.evaluation.scores import judged_and_told
from diffusion.grids import Grid, LogSNRGrid, TrailingGrid
from diffusion.module import DiffusionModule
from diffusion.multistep import DPMSolverPP2MSampler
from diffusion.noise import PREVIEW, Noise
from diffusion.progress import LINE_EVERY_S, duration, progress, times_left
from diffusion.runlog import RunLogger
from diffusion.samplers import DDIMSampler, DDPMSampler, Evaluation, Sampler, prior


class AfterStep(pl.Callback):
    """Calls `after_step` once for each optimizer step, when its last batch is done."""

    every = 0  # optimizer steps between what a callback does aside; 0 for never
    images = 0  # that pass the network each time

    def __init__(self) -> None:
        self._seen = 0
        self.aside_s, self.asides = 0.0, 0

    @contextmanager
    def aside(self, module: DiffusionModule) -> Iterator[None]:
        """What is no training: its seconds are added to `aside_s`, which `Metrics` leaves out of images/s."""
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)  # steps that are still under way are training
        began = time.monotonic()
        yield
        self.aside_s += time.monotonic() - began
        self.asides += 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            assert isinstance(pl_module, DiffusionModule)
            self.after_step(trainer, pl_module, self._seen)

    def after_step(self, trainer: pl.Trainer, module: DiffusionModule, step: int) -> None:
        """What to do after optimizer step number `step` (from 1)."""
        raise NotImplementedError


class Metrics(AfterStep):
    """Logs the training loss, learning rate, gradient norm and images/s every so many optimizer steps.

    Args:
        every: optimizer steps.
    """

    def __init__(self, every: int = 50) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"log_every must be at least 1, got {every}")
        self.every = every
        self._since = (0.0, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._since = (_training_clock(trainer), trainer.global_step)

    def after_step(self, trainer: pl.Trainer, module: DiffusionModule, step: int) -> None:
        if step % self.every and step != trainer.max_steps:
            return
        module.raise_if_diverged()
        loss = trainer.strategy.reduce(module.last_loss, reduce_op="mean").item()
        now, (then, step_then) = _training_clock(trainer), self._since
        self._since = (now, step)
        images_per_s = (step - step_then) * module.images_per_step / max(now - then, 1e-9)
        if module.logger is not None:
            values = {
                "train/loss": loss,
                "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
                "train/grad_norm": module.grad_norm.item(),
                "train/images_per_s": images_per_s,
            }
            module.logger.log_metrics(values, step=step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is not training time."""
        self._since = (_training_clock(trainer), trainer.global_step)


def _training_clock(trainer: pl.Trainer) -> float:
    """Seconds, without those that callbacks spent aside."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return time.monotonic() - sum(callback.aside_s for callback in callbacks if isinstance(callback, AfterStep))


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


class Scores(AfterStep):
    """Scores samples of the averaged weights against validation data: a course, not a result (few samples, 20 steps).

    Images are judged by random convolutions, which know no data set; points by the sliced Wasserstein distance.

    Args:
        every: optimizer steps; also after the last one. 0 for never.
        shape: of one sample.
        clip: clamp the predicted data to [-1, 1].
        n: how many samples and validation data, fewer if there are fewer.
    """

    def __init__(self, every: int, shape: tuple[int, ...], clip: bool, n: int = 256) -> None:
        super().__init__()
        self.every, self.shape, self.clip, self.n = every, shape, clip, n
        self.images = 20 * n
        # Not a part of the Lightning module, where it would get into checkpoints.
        self._extractor = RandomConvolutions(shape[0]).eval() if len(shape) == 3 else None
        self._real, self._told = torch.empty(0), torch.empty(0, dtype=torch.int64)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not self.every or not trainer.is_global_zero:
            return
        if self._extractor is None and self.shape != (2,):
            raise ValueError(f"score_every scores images and points in the plane, not data of shape {self.shape}")
        # Not from the loader, whose part of the data depends on the number of devices.
        examples = trainer.datamodule.splits.val  # type: ignore[attr-defined]
        rows, self._told = judged_and_told(len(examples), self.n)
        data = examples.get(rows)
        self._real = data if self._extractor is None else features(self._extractor, media.quantised(data))
        if len(data) <= (width := self._real.shape[1]):
            print(f"score_every={self.every}: no scores, as {len(data)} validation data are not more than {width}")
            self.every = 0

    def after_step(self, trainer: pl.Trainer, module: DiffusionModule, step: int) -> None:
        due = self.every and (step % self.every == 0 or step == trainer.max_steps)
        if due and isinstance(module.logger, RunLogger):
            with self.aside(module):
                if found := self.scores(module):
                    module.logger.log_metrics(found, step=step)

    def scores(self, module: DiffusionModule) -> dict[str, float]:
        """The scores by their names, which end in the number of samples; none if a sample is not finite."""
        numbers = range(len(self._real))
        batches = [
            list(drawn(module, numbers[k : k + 64], self.shape, self.clip, 20, self._told[k : k + 64]))[-1]
            for k in numbers[::64]
        ]
        fake = torch.cat([shown(module, last).cpu() for last in batches])
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


class Progress(AfterStep):
    """Loss, images/s, time left and how far a validation is: as bars on a terminal, as lines now and then elsewhere.

    The time left counts validation, previews and scores: what they took so far, and before the first time a third of
    an image's share of a training step for each image, as a forward pass takes.

    Args:
        line_every_s: seconds between lines where no bar can be drawn.
    """

    def __init__(self, line_every_s: float = LINE_EVERY_S) -> None:
        super().__init__()
        self.line_every_s = line_every_s
        self._bar: Any = None
        self._began = self._line_at = 0.0
        self._first = 0
        self._validation_s: float | None = None  # of the last one
        self._validating_s = 0.0  # of all
        self._validation = ExitStack()
        self._advance: Callable[[int], None] = lambda count: None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._began, self._line_at = _training_clock(trainer), time.monotonic()
        self._first = trainer.global_step
        if trainer.is_global_zero and sys.stderr.isatty():
            total = trainer.max_steps if trainer.max_steps > 0 else None
            # The bar's own time left knows of steps alone.
            layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]" if total else None
            self._bar = tqdm(
                total=total,
                initial=self._first,
                unit="step",
                dynamic_ncols=True,
                desc="training",
                bar_format=layout,
            )

    def after_step(self, trainer: pl.Trainer, module: DiffusionModule, step: int) -> None:
        if not trainer.is_global_zero:
            return
        now = time.monotonic()
        step_s = max(_training_clock(trainer) - self._began - self._validating_s, 1e-9) / (step - self._first)
        images_per_s = f"{module.images_per_step / step_s:.0f}"
        last = step == trainer.max_steps
        left = f", {duration(self._left_s(trainer, module, step, step_s))} left" if trainer.max_steps > 0 else ""
        if self._bar is not None:
            self._bar.update(1)
            if step % 10 == 0 or last:  # reading the loss waits for the device
                self._bar.set_postfix_str(f"loss {module.last_loss.item():.4f}, {images_per_s} images/s{left}")
        elif now - self._line_at > self.line_every_s or last:
            self._line_at = now
            of = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
            print(f"step {step}{of}: loss {module.last_loss.item():.4f}, {images_per_s} images/s{left}", flush=True)

    def _left_s(self, trainer: pl.Trainer, module: DiffusionModule, step: int, step_s: float) -> float:
        last, image_s = trainer.max_steps, step_s / module.images_per_step / 3
        seconds = (last - step) * step_s
        if trainer.limit_val_batches != 0:
            val_s = self._validation_s
            if val_s is None:
                val_s = image_s * len(trainer.datamodule.splits.val)  # type: ignore[attr-defined]
            # The validation after this step is still to come, and what watchers do after it is done.
            seconds += times_left(step - 1, last, module.config["val_every"]) * val_s
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, AfterStep):
                each = callback.aside_s / callback.asides if callback.asides else image_s * callback.images
                seconds += times_left(step, last, callback.every) * each
        return seconds

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation_began = time.monotonic()
        if trainer.is_global_zero:
            bar = progress(int(trainer.num_val_batches[0]), "batch", "validation", self.line_every_s)
            self._advance = self._validation.enter_context(bar)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance(1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation.close()
        self._validation_s = time.monotonic() - self._validation_began
        self._validating_s += self._validation_s

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._validation.close()
        if self._bar is not None:
            self._bar.close()
            self._bar = None
