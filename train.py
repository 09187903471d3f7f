"""Trains a diffusion model: python train.py dataset=fashion; python train.py --help."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli

if TYPE_CHECKING:
    from omegaconf import DictConfig

BEGUN = time.monotonic()
# What may differ when a run goes on: where and how long it runs, not what it computes.
RESUMABLE = ("trainer.", "devices", "accelerator", "checkpoint_every", "data_dir", "download", "workers", "compile", "resume")
RESULTS: list[tuple[list[str], Path, float | None]] = []


def resolved(config: "DictConfig") -> dict[str, Any]:
    """The configuration as a plain dict, with what the dataset and the shorthands say filled in."""
    from omegaconf import OmegaConf

    from data.stream import Source
    from diffusion.build import ConfigError, build

    if config.timesteps is not None:
        if "timesteps" not in config.schedule:
            raise ConfigError(
                f"timesteps={config.timesteps}: this schedule is continuous in time and has no number of steps; steps=... sets how "
                f"many a sampler takes, schedule=linear (or cosine, quadratic, sigmoid) is discrete"
            )
        config.schedule.timesteps = config.timesteps
    source: Source = build(OmegaConf.to_container(config.dataset.source, resolve=True), "dataset.source")
    config.dataset.shape = list(source.shape)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def train(config: "DictConfig") -> float | None:
    """One run; returns its final validation loss."""
    import warnings

    from hydra.core.hydra_config import HydraConfig
    from pytorch_lightning.utilities import rank_zero_only

    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    from diffusion import training
    from diffusion.checkpoint import run_folder
    from diffusion.sampling import sampler_and_times

    overrides = list(HydraConfig.get().overrides.task)
    path, checkpoint = resumption(config, overrides)
    plain = resolved(config) if checkpoint is None else continued(checkpoint["config"], overrides)
    settings = training.settings(plain)
    datamodule = data_module(plain, settings)
    run = training.Run(plain, datamodule)
    sampler_and_times(plain, run.module.denoiser.schedule)
    first = rank_zero_only.rank in (0, None)

    trial_steps = plain["trainer"]["max_steps"]
    trainer = training.check_trainer(plain | {"trainer": plain["trainer"] | {"max_steps": trial_steps or 1}})
    datamodule.setup()
    if settings.budget_minutes is not None and checkpoint is None:
        training.spend_budget(run, trainer, BEGUN)
    run.limit_steps(datamodule.train_size)
    done = 0 if checkpoint is None else checkpoint["global_step"]
    if checkpoint is not None and plain["trainer"]["max_steps"] is not None and done >= plain["trainer"]["max_steps"]:
        print(f"{path} is finished at step {done}; raise trainer.max_steps to train on")
        return None
    if first:
        training.announce(run, training.estimate(run, trainer), trainer.world_size, trainer.strategy.root_device.type)

    folder = None
    if first:
        folder = training.claim_folder(plain["dataset"]["name"]) if path is None else run_folder(path)
        print(f"run folder: {folder}" + (f", resuming {path} at step {done}" if path else ""))
    loss = run.fit(folder, path, None if checkpoint is None else done)
    if folder is not None:
        RESULTS.append((overrides, folder, loss))
        print(f"done: {folder}" + ("" if loss is None else f", validation loss {loss:.4f}"))
        print(f"  curves and pictures:  tensorboard --logdir {folder.parent.parent}\n  sample:               python sample.py ckpt={folder}")
    return loss


def resumption(config: "DictConfig", overrides: list[str]) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint to go on from, if any."""
    from diffusion.checkpoint import find, newest_good, runs

    spec = config.resume
    if spec is None:
        return None, None
    if spec == "auto":
        plain = resolved(config)
        for folder in runs():
            if folder.parent.name == plain["dataset"]["name"]:
                path, checkpoint = newest_good(folder)
                if same_run(checkpoint["config"], plain):
                    return path, checkpoint
        return None, None
    typed = any(override.startswith("dataset=") for override in overrides)
    return find(str(spec), config.dataset.name if typed else None)


def same_run(stored: dict[str, Any], plain: dict[str, Any]) -> bool:
    """Whether two configurations compute the same, however long they run."""
    from diffusion.build import ConfigError

    ignored = {key.rstrip(".") for key in RESUMABLE} - {"trainer"}

    def essence(config: dict[str, Any]) -> dict[str, Any]:
        trainer = {k: v for k, v in config["trainer"].items() if k not in ("max_steps", "max_epochs", "max_time")}
        return {key: value for key, value in config.items() if key not in ignored} | {"trainer": trainer}

    if not isinstance(stored.get("trainer"), dict):
        raise ConfigError("the checkpoint's configuration has no trainer")
    return essence(stored) == essence(plain)


def continued(stored: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A stored configuration with what was typed beside resume=."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from diffusion.build import ConfigError

    config = OmegaConf.create(stored)
    auto = "resume=auto" in overrides
    for override in OverridesParser.create().parse_overrides(overrides):
        name = override.get_key_element()
        if name.startswith(RESUMABLE):
            if name != "resume":
                OmegaConf.update(config, name, override.value(), force_add=override.is_add())
        elif name != "dataset" and not auto:
            raise ConfigError(
                f"a resumed run keeps its settings, so {name} cannot change (only {', '.join(RESUMABLE[:-1])} can); to start "
                f"anew from its weights: init_from={config.get('resume') or '<run folder>'} {override.input_line}"
            )
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def data_module(plain: dict[str, Any], settings: Any) -> Any:
    """The data module that a configuration describes."""
    from data.module import DataModule
    from diffusion.build import build

    return DataModule(
        source=build(plain["dataset"]["source"], "dataset.source"),
        batch_size=settings.batch_size,
        seed=settings.seed,
        flip=plain["dataset"]["flip"],
        workers=settings.workers,
        limit=settings.train_images,
    )


def table() -> str:
    """The runs of a sweep, best first."""
    rows = [("val/loss", "run", "settings")]
    for overrides, folder, loss in sorted(RESULTS, key=lambda row: float("inf") if row[2] is None else row[2]):
        rows.append(("-" if loss is None else f"{loss:.5f}", str(folder), " ".join(overrides)))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows)


if __name__ == "__main__":
    cli.run(train, "train")
    if len(RESULTS) > 1:
        print(table())
    sys.exit(0)
