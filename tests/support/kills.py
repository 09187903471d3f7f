"""Moments at which a run can be ended by SIGKILL, and other faults, prepared in the run's own process."""

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffusion.training.module import DiffusionModule
from diffusion.training.saving import Checkpoints


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _call_before(owner: Any, name: str, hook: Callable[..., None]) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        hook(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _call_after(owner: Any, name: str, hook: Callable[..., None]) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        hook(*args, **kwargs)
        return result

    setattr(owner, name, wrapped)


def in_accumulation() -> None:
    """Step 5 has computed one of its two batches."""

    def hook(module: DiffusionModule, batch: Any, batch_idx: int) -> None:
        if module.global_step == 4 and batch_idx % 2 == 1:
            die()

    _call_before(DiffusionModule, "training_step", hook)


def in_validation() -> None:
    """The validation after step 8 has begun."""

    def hook(module: DiffusionModule, batch: Any, batch_idx: int) -> None:
        if module.global_step == 8 and batch_idx == 3:
            die()

    _call_before(DiffusionModule, "validation_step", hook)


def after_validation() -> None:
    """The validation after step 8 is over and saved, step 9 has not begun."""

    def hook(self: Checkpoints, trainer: Any, module: DiffusionModule) -> None:
        if module.global_step == 8:
            die()

    _call_after(Checkpoints, "on_validation_end", hook)


def while_writing() -> None:
    """A later checkpoint than the first is half written."""

    def hook(checkpoint: Any, file: Any) -> None:
        if checkpoint["global_step"] == 9:
            file.write(b"PK half a checkpoint")
            file.flush()
            die()

    _call_before(torch, "save", hook)


def between_best_and_last() -> None:
    """`best.ckpt` of step 12 is written, `last.ckpt` is still an older one."""

    def hook(source: Any, target: Any) -> None:
        if torch.load(source, weights_only=True)["global_step"] == 12:
            die()

    _call_before(shutil, "copyfileobj", hook)


def ctrl_c_in_accumulation() -> None:
    """Ctrl-C when step 5 has computed one of its two batches."""

    def hook(module: DiffusionModule, batch: Any, batch_idx: int) -> None:
        if module.global_step == 4 and batch_idx % 2 == 1:
            os.kill(os.getpid(), signal.SIGINT)

    _call_before(DiffusionModule, "training_step", hook)


def terminated_in_validation() -> None:
    """SIGTERM in the validation after step 8."""

    def hook(module: DiffusionModule, batch: Any, batch_idx: int) -> None:
        if module.global_step == 8 and batch_idx == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    _call_before(DiffusionModule, "validation_step", hook)


def ctrl_c_twice() -> None:
    """Ctrl-C twice while step 5 is computed."""

    def hook(module: DiffusionModule, batch: Any, batch_idx: int) -> None:
        if module.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    _call_before(DiffusionModule, "training_step", hook)


def full_disk() -> None:
    """From step 6 on no file can grow beyond 60 kB, and the kernel says so in the middle of a write."""

    def hook(checkpoint: Any, file: Any) -> None:
        if checkpoint["global_step"] == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))

    _call_before(torch, "save", hook)


def poisoned() -> None:
    """The weights are NaN from step 6 on."""

    def hook(module: DiffusionModule, batch: Any, batch_idx: int) -> None:
        if module.global_step == 5:
            with torch.no_grad():
                next(module.denoiser.parameters()).fill_(torch.nan)

    _call_before(DiffusionModule, "training_step", hook)


def no_space_for_the_log() -> None:
    """Nothing can be appended to the table."""

    def hook(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> None:
        if path.name == "metrics.csv" and mode == "a":
            raise OSError(28, "No space left on device")

    _call_before(Path, "open", hook)
