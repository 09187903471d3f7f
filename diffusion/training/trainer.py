"""Lightning's trainer with what this project relies on."""

import inspect
import logging
import warnings

import pytorch_lightning as pl
import torch

from diffusion.build import ConfigError, nearest
from diffusion.machine.devices import check_devices, started
from diffusion.runs.parts import Parts
from diffusion.settings.training import check_options
from diffusion.training.saving import AtomicCheckpointIO
from diffusion.training.static import eager_because


def quiet(first: bool) -> None:
    """Keeps Lightning's hints and advertisements off the terminal, and of several processes all warnings but the
    first one's, which are the same."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="(pytorch_)?lightning")
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    # Of AdamW in the steps before a capture, and of backward passes under Lightning's DDP: both are as they should be.
    warnings.filterwarnings("ignore", message=".*capturable=True")
    warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
    if not first:
        warnings.filterwarnings("ignore", category=UserWarning)


def _wanted(devices: int | str | list[int]) -> int | str | list[int]:
    """What Lightning is asked for: with `auto`, as many devices as torchrun has started processes on this machine.

    Raises:
        ConfigError: another number than torchrun's.
    """
    processes = started(here=True)
    if processes > 1:
        if devices not in ("auto", processes):
            raise ConfigError(
                f"devices={devices}, but torchrun has started {processes} processes here: devices=auto takes them"
            )
        return processes
    return devices if devices != "auto" or torch.cuda.is_available() else 1


def make_trainer(parts: Parts, of_sweep: bool = False) -> pl.Trainer:
    """Lightning's trainer with the options of the configuration's `trainer` and what this project relies on.

    It has no limit, no logger and no callbacks: `Run.fit` gives it these when they are known.

    Args:
        parts: of the run.
        of_sweep: whether the run is one of a sweep, which has one device at a time.

    Raises:
        ConfigError: an option that Lightning does not have, or refuses.
    """
    settings = parts.settings
    check_devices(settings.devices, settings.accelerator)
    options = dict(parts.trainer)
    check_options(options)
    known = inspect.signature(pl.Trainer).parameters
    for name in options:
        if name not in known:
            raise ConfigError(f"trainer.{name} does not exist{nearest(name, known)}; Lightning has {', '.join(known)}")
    options |= {"max_steps": -1, "max_epochs": -1, "max_time": None}
    wanted = _wanted(settings.devices)
    torch.use_deterministic_algorithms(False)  # Lightning leaves them on after a run of this process that wanted them
    try:
        trainer = pl.Trainer(
            **options,
            devices=wanted,
            accelerator=settings.accelerator,
            # The stream of training batches never ends; counted in batches, validation falls between optimizer steps.
            val_check_interval=settings.val_every * parts.accumulated,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            inference_mode=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            plugins=[AtomicCheckpointIO()],
        )
    except (
        *(TypeError, ValueError, LookupError, AttributeError, RuntimeError),
        pl.utilities.exceptions.MisconfigurationException,
    ) as error:
        given = ", ".join(f"trainer.{name}={value}" for name, value in parts.trainer.items() if value is not None)
        raise ConfigError(f"Lightning refuses one of {given}: {' '.join(str(error).split())}") from error
    if of_sweep and trainer.world_size > 1:
        raise ConfigError(f"a sweep trains on one device at a time, not on {trainer.world_size}: add devices=1")
    if settings.batch_size % trainer.world_size:
        raise ConfigError(
            f"batch_size={settings.batch_size} is shared by {trainer.world_size} devices, so it must be a multiple of "
            f"{trainer.world_size}"
        )
    if settings.capture is True and (reason := eager_because(settings.capture, trainer, parts.objective)):
        raise ConfigError(f"capture=true: steps cannot be captured here: {reason}; use capture=auto")
    return trainer
