"""One training run, from a resolved configuration to its last checkpoint."""

import inspect
import logging
import math
import os
import signal
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.profilers import Profiler
from torch import Tensor

from diffusion import memory
from diffusion.atomic import atomic, reason
from diffusion.autoencoder import Codec, LatentObjective
from diffusion.build import ConfigError, build, nearest
from diffusion.callbacks import Metrics, Progress
from diffusion.checkpoint import ROOT, CheckpointError, find, load_weights
from diffusion.compiling import compile_network
from diffusion.denoisers import Condition, Denoiser
from diffusion.devices import check_devices
from diffusion.models import build_model
from diffusion.module import DiffusionModule, TrainingDiverged
from diffusion.objectives import ConditionDropout
from diffusion.optimizers import PowerEMA
from diffusion.residual import ResidualDenoiser
from diffusion.runlog import RunLogger
from diffusion.sampling import sampler_and_times
from diffusion.saving import AtomicCheckpointIO, Checkpoints, Interrupted, Snapshots, StepTimer
from diffusion.settings import check_options, settings
from diffusion.watchers import watchers


def quiet() -> None:
    """Keeps Lightning's hints and advertisements off the terminal."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="(pytorch_)?lightning")
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")


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
        if theirs != ours:
            raise ConfigError(
                f"init_from={spec} is a model of {_space(theirs)}, and this run is to learn {_space(ours)}"
            )
        told, tells = (config["dataset"].get("condition") for config in (checkpoint["config"], self.config))
        if self.module.denoiser.always_told and told != tells:
            raise ConfigError(
                f"init_from={spec}: what denoiser=residual fitted to its images is of no use for others: that run's "
                f"dataset.condition is {told}, and this one's {tells}"
            )
        load_weights(self.module.denoiser, checkpoint, path)
        self._begin_averages()

    def _begin_averages(self) -> None:
        for average in self.module.averages:
            average.load_state_dict(self.module.denoiser.state_dict())

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


def make_trainer(config: Mapping[str, Any], logger: RunLogger | bool, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Lightning's trainer with the options of the configuration's `trainer` and what this project relies on.

    Raises:
        ConfigError: an option that Lightning does not have, or refuses.
    """
    settings_ = settings(config)
    check_devices(settings_.devices, settings_.accelerator)
    options = dict(config["trainer"])
    check_options(options)
    known = inspect.signature(pl.Trainer).parameters
    for name in options:
        if name not in known:
            raise ConfigError(f"trainer.{name} does not exist{nearest(name, known)}; Lightning has {', '.join(known)}")
    accumulate = options.get("accumulate_grad_batches") or 1
    # Lightning's own timer would stop in the middle of an accumulation.
    limit = options.pop("max_time", None)
    options["max_steps"] = -1 if options["max_steps"] is None else options["max_steps"]
    options["max_epochs"] = -1
    torch.use_deterministic_algorithms(False)  # Lightning leaves them on after a run of this process that wanted them
    try:
        timer = [] if limit is None else [StepTimer(limit)]
        trainer = pl.Trainer(
            **options,
            devices=settings_.devices if settings_.devices != "auto" or torch.cuda.is_available() else 1,
            accelerator=settings_.accelerator,
            # The stream of training batches never ends; counted in batches, validation falls between optimizer steps.
            val_check_interval=settings_.val_every * accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            inference_mode=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=logger,
            callbacks=[*timer, *callbacks],
            plugins=[AtomicCheckpointIO()],
        )
    except (
        *(TypeError, ValueError, LookupError, AttributeError, RuntimeError),
        pl.utilities.exceptions.MisconfigurationException,
    ) as error:
        given = ", ".join(f"trainer.{name}={value}" for name, value in config["trainer"].items() if value is not None)
        raise ConfigError(f"Lightning refuses one of {given}: {' '.join(str(error).split())}") from error
    if settings_.batch_size % trainer.world_size:
        raise ConfigError(
            f"batch_size={settings_.batch_size} is shared by {trainer.world_size} devices, so it must be a multiple of "
            f"{trainer.world_size}"
        )
    return trainer


def check_trainer(config: Mapping[str, Any]) -> pl.Trainer:
    """A trainer that only tells device and precision, so that its options are known to be good before anything slow."""
    return make_trainer(config, logger=False, callbacks=[])


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
