"""One training run, from a resolved configuration to its last checkpoint."""

import math
import os
import signal
import warnings
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.profilers import Profiler
from torch import Tensor

from diffusion.build import ConfigError, build, canonical
from diffusion.denoisers import Condition, Denoiser, ResidualDenoiser
from diffusion.machine import memory
from diffusion.media.atomic import atomic, reason
from diffusion.models import Codec, LatentObjective
from diffusion.objectives import ConditionDropout
from diffusion.optimizers import PowerEMA
from diffusion.runs.checkpoints import ROOT, CheckpointError, find, load_weights
from diffusion.runs.models import build_model
from diffusion.sampling.pipeline import sampler_and_times
from diffusion.settings.training import settings
from diffusion.training.callbacks import Metrics, Progress
from diffusion.training.compiling import compile_network
from diffusion.training.logger import RunLogger
from diffusion.training.module import DiffusionModule, TrainingDiverged
from diffusion.training.saving import Checkpoints, Interrupted, Snapshots
from diffusion.training.scores import Scores
from diffusion.training.trainer import make_trainer
from diffusion.training.watchers import watchers


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


class Run:
    """Everything of a run that can be built and checked before anything is written.

    Args:
        config: the resolved configuration, a plain dict.
        datamodule: serves the data, set up.
        codec: makes the latents that are to be diffused; None if the data themselves are.
    """

    def __init__(self, config: dict[str, Any], datamodule: pl.LightningDataModule, codec: Codec | None = None) -> None:
        self.config, self.datamodule = config, datamodule
        self.settings = settings(config)
        memory.check_samples(
            f"batch_size={self.settings.batch_size}", self.settings.batch_size, config["dataset"]["shape"]
        )
        torch.manual_seed(self.settings.seed)  # of the initial weights
        denoiser, objective = build_model(config), built(config["objective"], "objective")
        if self.settings.condition_dropout != 0:
            objective = ConditionDropout(objective, self.settings.condition_dropout)
        if codec is not None:
            objective = LatentObjective(objective, codec)
        self.module = DiffusionModule(
            denoiser,
            objective,
            optimizer=built(config["optimizer"], "optimizer"),
            learning_rate=built(config["learning_rate"], "learning_rate"),
            ema=None if config["ema"] is None else built(config["ema"], "ema"),
            images_per_step=self.settings.batch_size * (config["trainer"].get("accumulate_grad_batches") or 1),
            seed=self.settings.seed,
            config=config,
        )
        self.module.objective.check(self.module.denoiser)
        if self.settings.compile:
            compile_network(self.module.denoiser)
        self.watchers = watchers(
            self.module, self.settings.preview_every, self.settings.score_every, self.settings.clip
        )

    def prepare(self, data: Callable[[], tuple[Tensor, Condition]]) -> None:
        """Shows the denoiser data (n, *S) and what conditions them, if it wants any, from which it learns what training
        takes for granted."""
        if isinstance(self.module.denoiser, ResidualDenoiser):
            self.module.denoiser.prepare(*data())
            self._begin_averages()

    def begin_from(self, spec: str) -> None:
        """Takes over the weights of a checkpoint, the averaged ones if it has them; `spec` as in `checkpoint.find`."""
        path, checkpoint = find(spec)
        theirs, ours = checkpoint["config"].get("autoencoder"), self.config.get("autoencoder")
        if canonical(theirs) != canonical(ours):
            raise ConfigError(
                f"init_from={spec} is a model of {_space(theirs)}, and this run is to learn {_space(ours)}"
            )
        told, tells = (config["dataset"].get("condition") for config in (checkpoint["config"], self.config))
        if self.module.denoiser.always_told and canonical(told) != canonical(tells):
            raise ConfigError(
                f"init_from={spec}: what denoiser=residual fitted to its images is of no use for others: that run's "
                f"dataset.condition is {told}, and this one's {tells}"
            )
        load_weights(self.module.denoiser, checkpoint, path)
        self._begin_averages()

    def _begin_averages(self) -> None:
        for average in self.module.averages:
            average.load_state_dict(self.module.denoiser.state_dict())

    def check_data(self, typed: Container[str]) -> None:
        """Raises ValueError for settings that the data, now set up, are too few for; `typed` are names."""
        size, limit = len(self.datamodule.splits.train), self.settings.train_images  # type: ignore[attr-defined]
        if "train_images" in typed and limit is not None and limit > size:
            raise ConfigError(f"train_images={limit} is more than the {size} training examples: leave it out")
        for watcher in self.watchers:
            if isinstance(watcher, Scores) and watcher.every:
                watcher.judge_by(self.datamodule.splits.val)  # type: ignore[attr-defined]

    def limit_steps(self, train_size: int) -> None:
        """Turns `max_epochs` into `max_steps`: the training stream has no end, and the decay has to know its length."""
        options = self.config["trainer"]
        if options["max_epochs"] is not None:
            steps = options["max_epochs"] * math.ceil(train_size / self.module.images_per_step)
            options["max_steps"] = min(steps, options["max_steps"] or steps)
        steps = options["max_steps"]
        if steps is None and options["max_time"] is None:
            raise ConfigError("nothing says when to stop: set trainer.max_steps, trainer.max_epochs or budget_minutes")
        if steps is None and self.module.learning_rate.decay != "none":
            raise ConfigError(
                f"learning_rate.decay={self.module.learning_rate.decay} has to know the last step: set "
                f"trainer.max_steps, trainer.max_epochs or budget_minutes"
            )

    def fit(self, folder: Path | None, checkpoint: Path | None, resumed_from: int | None) -> float | None:
        """Trains to the end.

        Args:
            folder: the run's; None on every rank but the first.
            checkpoint: to resume from.
            resumed_from: its step.

        Returns:
            The final validation loss, None if there was none.
        """
        settings = self.settings
        # The newest run's folder holds the run's whole configuration, readable without torch.
        logger: RunLogger | bool = False
        if folder is not None:
            logger = RunLogger(folder, resumed_from)
            with atomic(folder / "config.yaml") as file:
                file.write(yaml.safe_dump(self.config, sort_keys=False).encode())
        checkpoints = Checkpoints(folder, settings.checkpoint_every)
        averaging = self.module.averaging
        keep = averaging.snapshots if isinstance(averaging, PowerEMA) else 0
        trainer = make_trainer(
            self.config,
            logger=logger,
            callbacks=[
                Metrics(settings.log_every),
                *self.watchers,
                Progress(),
                *([Snapshots(folder, keep)] if keep else []),
                checkpoints,
            ],
        )
        try:
            with checkpoints.listening():
                trainer.fit(self.module, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True)
        except BaseException as error:
            # Those three the ranks agree on, and the other processes end by themselves.
            launcher = trainer.strategy.launcher
            if launcher is not None and not isinstance(error, Interrupted | TrainingDiverged | CheckpointError):
                launcher.kill(signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning makes it exit status 1
                raise KeyboardInterrupt from error
            raise
        self.module.raise_if_diverged()
        profiler: Profiler = trainer.profiler  # type: ignore[attr-defined]
        if report := profiler.summary():
            print(report)
        final = trainer.callback_metrics.get("val/loss")
        if isinstance(logger, RunLogger):
            loss = math.nan if final is None else float(final)
            result = {"final/val_loss": loss, "final/best_val_loss": checkpoints.best}
            logger.log_result(self.config, result, trainer.global_step)
            logger.experiment.close()
        return None if final is None else float(final)


def _space(autoencoder: Mapping[str, Any] | None) -> str:
    return "pixels" if autoencoder is None else f"latents of the autoencoder {autoencoder['digest']}"


def built(config: Any, part: str) -> Any:
    """The part of this name; raises `ConfigError` for a value in the place of its settings, `learning_rate=0.001`."""
    if not isinstance(config, Mapping):
        raise ConfigError(f"{part}={config}: {part} has settings of its own, {part}.name=value; --help lists them")
    return build(config, part)


STEPS_MEANT = (
    "steps= is how many steps a sampler takes: trainer.max_steps=... sets how long to train, and timesteps=... the "
    "number of noising steps"
)


def check_sampling(config: Mapping[str, Any], denoiser: Denoiser, steps_typed: bool) -> None:
    """Checks the sampler of a run; `steps=1000`, if typed, may be meant for something else, which is said.

    Raises:
        ConfigError: the sampler, its grid and its number of steps do not go together with the model.
    """
    steps = config["steps"]
    unusual = steps_typed and steps is not None and steps >= (denoiser.schedule.timesteps or 1000)
    try:
        sampler_and_times(config, denoiser)
    except ConfigError as error:
        if not unusual:
            raise
        raise ConfigError(f"{error}; {STEPS_MEANT}") from error
    if unusual:
        warnings.warn(f"steps={steps}: {STEPS_MEANT}", stacklevel=2)
