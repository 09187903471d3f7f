"""The plain values of a training run, with their types and ranges.

Nothing here imports torch, which takes seconds: a wrong value is refused before.
"""

import importlib.util
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusion.build import ConfigError, construct
from diffusion.settings.devices import check_form
from diffusion.settings.kinds import check_kinds
from diffusion.settings.sampling import check_level
from diffusion.settings.several import listed

if TYPE_CHECKING:
    from omegaconf import DictConfig


# Loggers beside the files of a run's folder, and the packages that they need.
LOGGERS = {
    "tensorboard": "tensorboard", "csv": "pytorch_lightning", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"
}  # fmt: skip


# Processes that load data: more of them only take memory from each other.
WORKERS_PER_CORE = 8


@dataclass
class Settings:
    """The plain values at the top of the configuration, with their types and ranges."""

    batch_size: int
    lr: float
    seed: int = 0
    timesteps: int | None = None
    devices: int | str | list[int] = "auto"
    accelerator: str = "auto"
    budget_minutes: float | None = None
    steps: int | None = None
    start_level: float | None = None
    clip: bool = True
    log_every: int = 50
    val_every: int = 500
    preview_every: int = 500
    score_every: int = 0
    checkpoint_every: int | None = None
    data_dir: str = "data/raw"
    download: bool = True
    workers: int | None = None
    train_images: int | None = None
    compile: bool = False
    capture: bool | str = "auto"
    condition_dropout: float = 0.0
    cache_latents: bool = False
    ema_decay: float = 0.9999  # checked where ema=exponential takes it
    logger: str | list[str] | None = None
    project: str = "lightning-diffusion"

    def __post_init__(self) -> None:
        if not self.project.strip():
            raise ValueError("project is empty: give a name, or leave it out")
        at_least = {"preview_every": 0, "score_every": 0, "seed": 0, "workers": 0}
        checked_below = ("devices", "start_level", "lr", "budget_minutes", "condition_dropout", "ema_decay")
        for name, value in vars(self).items():
            lowest = at_least.get(name, 1)
            if isinstance(value, int) and not isinstance(value, bool) and name not in checked_below and value < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {value}")
        if self.budget_minutes is not None and not 0 < self.budget_minutes < math.inf:
            raise ValueError(f"budget_minutes must be positive and finite, got {self.budget_minutes}")
        check_level(self.start_level)
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2**63, got {self.seed}")
        most = WORKERS_PER_CORE * (os.cpu_count() or 1)
        if self.workers is not None and self.workers > most:
            raise ValueError(
                f"workers={self.workers} would be as many processes; this machine's processors take {most} at most: "
                f"leave it out, or choose a smaller number"
            )
        check_form(self.devices)
        if self.capture not in ("auto", True, False):
            raise ValueError(f"capture must be auto, true or false, got {self.capture!r}")
        if self.accelerator not in ("auto", "cpu", "gpu", "cuda", "mps"):
            raise ValueError(f"accelerator must be auto, cpu, gpu, cuda or mps, got {self.accelerator!r}")
        for name in self.loggers:
            if name not in LOGGERS:
                raise ValueError(f"logger must be {', '.join(LOGGERS)}, or a list of these, got {name!r}")
        if len(set(self.loggers)) < len(self.loggers):
            raise ValueError(f"logger must name each once, got {self.loggers}")

    @property
    def loggers(self) -> list[str]:
        """Those that log a run beside the files in its folder."""
        return listed(self.logger)


def check_loggers(names: Iterable[str]) -> None:
    """Raises ConfigError if the package of a logger lacks."""
    for name in names:
        if importlib.util.find_spec(LOGGERS[name]) is None:
            raise ConfigError(f"logger={name} needs the package {LOGGERS[name]}: pip install {LOGGERS[name]}")


# What a configuration holds beside the values of `Settings`.
PARTS = (
    *("dataset", "network", "schedule", "denoiser", "objective", "optimizer", "sampler", "grid", "trainer"),
    *("ema", "learning_rate", "resume", "init_from", "autoencoder", "quiet"),
)


def settings(config: Mapping[str, Any]) -> Settings:
    """The checked top-level values of a configuration; raises ConfigError also for values that nobody reads."""
    return construct(Settings, {key: value for key, value in config.items() if key not in PARTS})


# Options of Lightning's that count something.
SWITCHES = ("deterministic", "benchmark", "detect_anomaly")
COUNTS = ("max_steps", "max_epochs", "accumulate_grad_batches", "num_nodes")
NAMES = ("strategy", "profiler")
# Options of Lightning's that have their own place, or that this project depends on.
OURS = {
    "devices": "use devices=... without trainer.",
    "accelerator": "use accelerator=... without trainer.",
    "val_check_interval": "use val_every=...",
    "check_val_every_n_epoch": "use val_every=...",
    "log_every_n_steps": "use log_every=...",
    "logger": "use logger=...",
    "overfit_batches": "use train_images=...",
    "limit_train_batches": "training batches have no end; use trainer.max_steps=... or train_images=...",
    **dict.fromkeys(("limit_test_batches", "limit_predict_batches"), "training neither tests nor predicts"),
    **dict.fromkeys(("min_steps", "min_epochs"), "trainer.max_steps, max_epochs or max_time says when training ends"),
    **dict.fromkeys(
        (
            *("num_sanity_val_steps", "use_distributed_sampler", "inference_mode", "enable_checkpointing"),
            *("enable_progress_bar", "enable_model_summary", "callbacks", "plugins", "default_root_dir"),
            *("barebones", "fast_dev_run", "gradient_clip_algorithm", "reload_dataloaders_every_n_epochs"),
        ),
        "this project sets it itself",
    ),
}
DURATION = re.compile(r"\s*\d+:\d\d:\d\d:\d\d\s*")
UNITS = ("weeks", "days", "hours", "minutes", "seconds")  # or a duration as a mapping from these to numbers
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed", 32, "32", 64, "64", "bf16", "16", 16, "auto", None)


def check_options(options: Mapping[str, Any]) -> None:
    """Raises ConfigError for an option of the trainer that cannot be set, or has an impossible value.

    Which names exist, and all else, Lightning says.
    """
    for name, value in options.items():
        if name in OURS:
            raise ConfigError(f"trainer.{name} cannot be set: {OURS[name]}")
        whole = isinstance(value, int) and not isinstance(value, bool)
        if name in COUNTS and value is not None and (not whole or value < 1):
            raise ConfigError(f"trainer.{name} must be a whole number of at least 1, got {value!r}")
        fraction = isinstance(value, float) and 0 <= value <= 1
        if name == "limit_val_batches" and value is not None and not fraction and (not whole or value < 0):
            raise ConfigError(f"trainer.{name} must be a whole number, or a fraction from 0.0 to 1.0, got {value!r}")
        if name in NAMES and not isinstance(value, str | None):
            raise ConfigError(f"trainer.{name} must be text, got {value!r}")
    if (lasts := options.get("max_time")) is not None and not _is_duration(lasts):
        raise ConfigError(
            f"trainer.max_time must be DD:HH:MM:SS, such as 00:01:30:00 for an hour and a half, got {lasts!r}"
        )
    for name in SWITCHES:
        if not isinstance(options.get(name), bool | None):
            raise ConfigError(f"trainer.{name} must be true or false, got {options[name]!r}")
    clip, precision = options.get("gradient_clip_val"), options.get("precision")
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or not 0 < clip < math.inf):
        raise ConfigError(f"trainer.gradient_clip_val must be a positive number, or null, got {clip!r}")
    if precision not in PRECISIONS:
        raise ConfigError(
            f"trainer.precision must be auto, 32-true, bf16-mixed, 16-mixed or 64-true, got {precision!r}: the "
            f"average of the weights cannot be kept in less than 32 bits"
        )


def _is_duration(value: Any) -> bool:
    if isinstance(value, Mapping):
        amounts = value.values()
        return (
            bool(value)
            and value.keys() <= set(UNITS)
            and all(isinstance(n, int | float) and 0 <= n < math.inf for n in amounts)
        )
    return isinstance(value, str) and DURATION.fullmatch(value) is not None


def check(config: "DictConfig", typed: Iterable[str] = ()) -> Settings:
    """The plain values of a composed configuration.

    Args:
        config: as Hydra composed it.
        typed: names of the settings that a person wrote; those of parts are looked at too.

    Raises:
        ConfigError: one of them, or one of `trainer`, cannot be; or the package of a logger lacks.
    """
    from omegaconf import OmegaConf

    values = {str(name): config[name] for name in config if name not in PARTS}
    plain = settings({k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in values.items()})
    options: Any = OmegaConf.to_container(config.trainer, resolve=True)
    check_options(options)
    check_loggers(plain.loggers)
    unresolved: Any = OmegaConf.to_container(config)
    check_kinds(unresolved, typed)
    return plain
