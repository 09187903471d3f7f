"""Callbacks around the training step: the base class, the log and the progress bar.

Each acts after an optimizer step as a pure function of its number, never between accumulated batches. Their random
numbers do not change those of the training.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from tqdm import tqdm

from diffusion.terminal.progress import LINE_EVERY_S, duration, images_validated, progress, times_left
from diffusion.terminal.streams import columns, draws_bars
from diffusion.training.module import DiffusionModule


class AfterStep(pl.Callback):
    """Calls `after_step` once for each optimizer step, when its last batch is done."""

    every = 0  # optimizer steps between what a callback does aside; 0 for never
    images = 0  # that pass the network each time

    def __init__(self) -> None:
        self._seen = 0
        self.aside_s, self.asides = 0.0, 0

    @contextmanager
    def aside(self, module: DiffusionModule) -> Iterator[None]:
        """What is no training: its seconds are added to `aside_s`, which `Metrics` leaves out of images/s.

        The module is in evaluation mode."""
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)  # steps that are still under way are training
        began, training = time.monotonic(), module.training
        module.eval()
        yield
        module.train(training)
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
            values = {  # whose names sort the losses before the others, as TensorBoard does with its cards
                "train/loss": loss,
                "watch/lr": trainer.optimizers[0].param_groups[0]["lr"],
                "watch/grad_norm": module.grad_norm.item(),
                "watch/images_per_s": images_per_s,
            }
            module.logger.log_metrics(values, step=step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is not training time."""
        self._since = (_training_clock(trainer), trainer.global_step)


def _layout(width: int) -> str:
    """The bar of training on a terminal so many columns wide, where what is known beside the steps takes about 50.

    The bar's own time left is not shown: it knows of steps alone.
    """
    if width < 100:
        return "{n_fmt}/{total_fmt} steps{postfix}"
    return "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


def _training_clock(trainer: pl.Trainer) -> float:
    """Seconds, without those that callbacks spent aside."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return time.monotonic() - sum(callback.aside_s for callback in callbacks if isinstance(callback, AfterStep))


class Progress(AfterStep):
    """Loss, images/s, time left and how far a validation is: as bars on a terminal, as lines now and then elsewhere.

    The time left counts validation, previews and scores: what they took so far, and before the first time a third of
    an image's share of a training step for each image, as a forward pass takes.

    Args:
        val_every: optimizer steps between validations.
        line_every_s: seconds between lines where no bar can be drawn.
    """

    def __init__(self, val_every: int, line_every_s: float = LINE_EVERY_S) -> None:
        super().__init__()
        self.val_every, self.line_every_s = val_every, line_every_s
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
        if trainer.is_global_zero and draws_bars():
            total = trainer.max_steps if trainer.max_steps > 0 else None
            layout = _layout(columns()) if total else None
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
        limited = trainer.max_steps > 0
        left = f"{duration(self._left_s(trainer, module, step, step_s))} left" if limited else ""
        if self._bar is not None:
            self._bar.update(1)
            if step % 10 == 0 or last:  # reading the loss waits for the device
                shown = [left] * limited + [f"loss {module.last_loss.item():.4f}", f"{images_per_s} images/s"]
                self._bar.bar_format = _layout(columns()) if limited else None
                self._bar.set_postfix_str(", ".join(shown))  # cut at its end on a narrow terminal
        elif now - self._line_at > self.line_every_s or last:
            self._line_at = now
            of = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
            left = left and f", {left}"
            print(f"step {step}{of}: loss {module.last_loss.item():.4f}, {images_per_s} images/s{left}", flush=True)

    def _left_s(self, trainer: pl.Trainer, module: DiffusionModule, step: int, step_s: float) -> float:
        last, image_s = trainer.max_steps, step_s / module.images_per_step / 3
        seconds = (last - step) * step_s
        if trainer.limit_val_batches != 0:
            val_s = self._validation_s
            if val_s is None:
                data: Any = trainer.datamodule  # type: ignore[attr-defined]
                images = images_validated(trainer.limit_val_batches, len(data.splits.val), data.eval_batch_size)
                val_s = image_s * images
            # The validation after this step is still to come, and what watchers do after it is done.
            seconds += times_left(step - 1, last, self.val_every) * val_s
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

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()  # what is said about it begins on a line of its own

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        self._validation.close()
        if self._bar is not None:
            self._bar.close()
            self._bar = None
