"""One training run, from its parts to its last checkpoint."""

import math
import os
import shutil
import signal
import warnings
from collections.abc import Container, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.profilers import Profiler

from data import changes
from data.module import DataModule
from diffusion.build import ConfigError, Unfit, canonical
from diffusion.denoisers import Denoiser
from diffusion.evaluation.record import headlines
from diffusion.machine import memory
from diffusion.media.atomic import atomic, reason
from diffusion.optimizers import PowerEMA
from diffusion.runs import codecs
from diffusion.runs.checkpoints import Checkpoint, find
from diffusion.runs.parts import Parts
from diffusion.runs.places import ROOT, CheckpointError
from diffusion.runs.report import write_report
from diffusion.runs.trained import load_weights
from diffusion.sampling.method import sampler_and_times
from diffusion.training.callbacks import Metrics, Progress
from diffusion.training.compiling import compile_network
from diffusion.training.data import (
    check_conditions,
    data_module,
    into_latents,
    training_data,
    warn_of_likeness,
    warn_of_mirrors,
)
from diffusion.training.limits import Limit, with_last_step
from diffusion.training.logger import RunLogger
from diffusion.training.module import DiffusionModule, TrainingDiverged
from diffusion.training.outlets import Logged, Outlets, check_usable
from diffusion.training.saving import Checkpoints, Interrupted, Snapshots, StepTimer
from diffusion.training.scores import Scores
from diffusion.training.setup import mistaken
from diffusion.training.watchers import watchers

# What tells a network of dataset.augment. Zero, or left out, the network is what it is for untransformed images.
AUGMENTED = "network.embed_augmentation.weight"


def claim_folder(dataset: str, root: Path = ROOT) -> Path:
    """Makes `root/dataset/version_N` with the lowest N that is free; two runs at once get two folders."""
    number = 0
    while True:
        folder = root / dataset / f"version_{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise ConfigError(f"cannot make the run's folder {folder}: {reason(error)}") from error
        else:
            return folder


def remove_folder(folder: Path) -> None:
    """Removes a run's folder, and the folders above it that hold no other run."""
    shutil.rmtree(folder, ignore_errors=True)  # Windows keeps files that are still open
    with suppress(OSError):  # it is not empty
        folder.parent.rmdir()
        folder.parent.parent.rmdir()


class Run:
    """A run: its module, its data and its callbacks. Nothing is written before `fit`.

    Args:
        parts: of its configuration.
        data: what serves the data.
    """

    def __init__(self, parts: Parts, data: DataModule) -> None:
        self.parts, self.data = parts, data
        settings = parts.settings
        memory.check_samples(f"batch_size={settings.batch_size}", settings.batch_size, parts.shape)
        self.module = DiffusionModule(
            parts.model,
            parts.objective,
            optimizer=parts.optimizer,
            learning_rate=parts.learning_rate,
            ema=parts.ema,
            images_per_step=parts.images_per_step,
            seed=settings.seed,
            capture=settings.capture,
        )
        parts.objective.check(parts.model)
        if settings.compile:
            compile_network(parts.model)
        self.watchers = watchers(parts)

    @classmethod
    def begun(cls, parts: Parts, checkpoint: Checkpoint | None, device: torch.device, typed: Container[str]) -> "Run":
        """A run whose data are loaded and whose model is ready for the first step.

        Args:
            parts: of its configuration.
            checkpoint: to resume; None for a new run.
            device: for computations before the first step, such as encoding.
            typed: names of the settings that a person wrote.

        Raises:
            ConfigError: parts do not go together, or the data are not those of the checkpoint.
        """
        settings, codec, begins = parts.settings, parts.codec, checkpoint is None
        codecs.check(parts.config)
        check_usable(settings.loggers)
        data = data_module(parts)
        run, model = cls(parts, data), parts.model
        if model.draws:
            check_sampling(parts, typed)
        init_from = parts.config.get("init_from")
        if init_from is not None and begins:
            run.take_over(find(str(init_from)))
        data.setup()
        if checkpoint is not None and checkpoint.data is not None:
            changes.check(checkpoint.data, data.described, f"step {checkpoint.step} of {checkpoint.folder}")
        check_conditions(data, model)
        run.check_data(typed)
        warn_of_likeness(data)
        if model.draws:
            warn_of_mirrors(data)
        if codec is not None:
            into_latents(codec, data, device, settings.cache_latents, begins and not parts.tunes)
        if begins and init_from is None and model.learns_from_data:  # else the checkpoint has that
            most = 50_000 if codec is None or settings.cache_latents else 10_000  # encoding is slow
            model.prepare(*training_data(codec, data, device, settings.seed, most))
            run._begin_averages()
        return run

    def take_over(self, checkpoint: Checkpoint) -> None:
        """Starts from the weights of another run, the averaged ones if it has them."""
        theirs, ours = checkpoint.config.get("autoencoder"), self.parts.config.get("autoencoder")
        if canonical(theirs) != canonical(ours):
            raise ConfigError(
                f"init_from={checkpoint.path} is a model of {_space(theirs)}, and this run is to learn {_space(ours)}"
            )
        theirs, ours = (_predicts(config) for config in (checkpoint.config, self.parts.config))
        if theirs != ours:
            raise Unfit(
                f"init_from={checkpoint.path} is a network that was trained as {theirs}, and this run trains it as "
                f"{ours}, so its weights would mean something else",
                ("denoiser",),
                self.parts.config,
                partial(_check_predicts, theirs),
            )
        theirs, ours = (config["dataset"].get("condition") for config in (checkpoint.config, self.parts.config))
        if self.module.denoiser.always_conditioned and canonical(theirs) != canonical(ours):
            raise ConfigError(
                f"init_from={checkpoint.path}: what denoiser=residual fitted to its images is of no use for others: "
                f"that run's dataset.condition is {theirs}, and this one's {ours}"
            )
        load_weights(self.module.denoiser, checkpoint, optional=(AUGMENTED,))
        self.module.objective.begin(self.module.denoiser)
        self._begin_averages()

    def check_data(self, typed: Container[str]) -> None:
        """Raises ConfigError for settings that the data, now set up, are too few for; `typed` are names."""
        assert self.data.splits is not None
        size, limit = len(self.data.splits.train), self.parts.settings.train_images
        if "train_images" in typed and limit is not None and limit > size:
            raise ConfigError(f"train_images={limit} is more than the {size} training examples: leave it out")
        for watcher in self.watchers:
            if isinstance(watcher, Scores) and watcher.every:
                images = len(self.parts.shape) == 3
                watcher.judge_by(self.data.splits.val, self.data.train_sample(numbers=2**25)[0] if images else None)

    def _begin_averages(self) -> None:
        for average in self.module.averages:
            average.load_state_dict(self.module.denoiser.state_dict())

    def fit(
        self, trainer: pl.Trainer, limit: Limit, folder: Path | None, checkpoint: Checkpoint | None
    ) -> float | None:
        """Trains to the end.

        Args:
            trainer: Lightning's, as `make_trainer` gives it.
            limit: where the end is.
            folder: the run's; None on every rank but the first.
            checkpoint: to resume from.

        Returns:
            The final validation loss, None if there was none.
        """
        settings, idle = self.parts.settings, self.parts.objective.idle_images
        images = math.inf if limit.max_steps is None else limit.max_steps * self.parts.images_per_step
        if folder is not None and idle and images <= idle:  # on one rank
            warnings.warn(
                f"the run ends after {images:,} images, and until objective.warmup_images={idle} the model learns "
                f"nothing: train longer, or lower it",
                stacklevel=2,
            )
        config = with_last_step(self.parts.config, limit, settings.budget_minutes is not None and checkpoint is None)
        # The newest run's folder holds the run's whole configuration, readable without torch.
        logger, finished = None, False
        try:
            if folder is not None:
                logger = self._logger(folder, config, None if checkpoint is None else checkpoint.step)
                with atomic(folder / "config.yaml") as file:
                    file.write(yaml.safe_dump(config, sort_keys=False).encode())
            loss = self._fitted(
                trainer, limit, Checkpoints(folder, config, settings.checkpoint_every), logger, checkpoint
            )
            finished = True
        finally:
            if logger is not None:
                logger.close(finished)
        return loss

    def _fitted(
        self,
        trainer: pl.Trainer,
        limit: Limit,
        checkpoints: Checkpoints,
        logger: RunLogger | None,
        checkpoint: Checkpoint | None,
    ) -> float | None:
        """As `fit`, which opens and closes what is written to."""
        settings, folder, config = self.parts.settings, checkpoints.folder, checkpoints.config
        averaging = self.module.averaging
        keep = averaging.snapshots if isinstance(averaging, PowerEMA) else 0
        trainer.logger = logger
        trainer.fit_loop.epoch_loop.max_steps = -1 if limit.max_steps is None else limit.max_steps
        trainer.callbacks += [  # type: ignore[attr-defined]
            *([] if limit.max_time is None else [StepTimer(limit.max_time)]),
            Metrics(settings.log_every),
            *self.watchers,
            Progress(settings.val_every),
            *([Snapshots(folder, keep)] if keep else []),
            checkpoints,
        ]
        if not self.module.eager_because(trainer):
            device = trainer.strategy.root_device
            self.module.served = self.data.served_on(device, torch.cuda.mem_get_info(device)[0])
        path = None if checkpoint is None else checkpoint.path
        try:
            with checkpoints.listening():
                trainer.fit(self.module, datamodule=self.data, ckpt_path=path, weights_only=True)
        except BaseException as error:
            if folder is not None and isinstance(error, Interrupted):
                write_report(folder, trainer.global_step)
            # Those three the ranks agree on, and the other processes end by themselves.
            launcher = trainer.strategy.launcher
            if launcher is not None and not isinstance(error, Interrupted | TrainingDiverged | CheckpointError):
                launcher.kill(signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning makes it exit status 1
                raise KeyboardInterrupt from error
            raise
        finally:  # the trainer keeps the module, so a sweep's next run would find the device full of graphs and data
            self.module.static = self.module.served = None
        self.module.raise_if_diverged()
        profiler: Profiler = trainer.profiler  # type: ignore[attr-defined]
        if report := profiler.summary():
            print(report)
        final = trainer.callback_metrics.get("val/loss")
        if logger is not None:
            best = {} if final is None else {"val/best_loss": checkpoints.best}
            drawn = headlines(points=len(self.parts.shape) == 1) if self.parts.model.draws else []
            logger.log_result(config, best, trainer.global_step, drawn)
            write_report(logger.folder, trainer.global_step)
        return None if final is None else float(final)

    def _logger(self, folder: Path, config: Mapping[str, Any], resumed_from: int | None) -> RunLogger:
        """What the run is logged by; ConfigError if a logger cannot begin."""
        settings = self.parts.settings
        if not settings.loggers:
            return RunLogger(folder, resumed_from)
        return RunLogger(
            folder,
            resumed_from,
            lambda logged: Outlets(settings.loggers, Logged(folder, settings.project, config, resumed_from), logged),
        )


def check_sampling(parts: Parts, typed: Container[str]) -> None:
    """Checks the sampler of a run, and warns of one that is far off; `typed` are names of settings.

    Raises:
        Unfit: the sampler, its grid and its number of steps do not go together with the model.
    """
    denoiser = parts.model
    assert isinstance(denoiser, Denoiser)
    sampler_and_times(parts, denoiser)
    if said := mistaken(parts.config, typed):
        warnings.warn(f"steps={parts.settings.steps}: {said}", stacklevel=2)


def _check_predicts(wanted: str, config: Mapping[str, Any]) -> None:
    if _predicts(config) != wanted:
        raise ConfigError(f"it predicts as {_predicts(config)}")


def _predicts(config: Mapping[str, Any]) -> str:
    """What a model's network predicts, by the names of its classes."""
    denoiser = config["denoiser"]
    named = [denoiser, denoiser.get("precond") or {}]
    return " of ".join(part["_target_"].rpartition(".")[2] for part in reversed(named) if "_target_" in part)


def _space(autoencoder: Mapping[str, Any] | None) -> str:
    return "pixels" if autoencoder is None else f"latents of the autoencoder {autoencoder['digest']}"
