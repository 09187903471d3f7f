"""Trains a diffusion model.

Examples:
    python train.py                                      experiment=demo: digits of MNIST, in minutes on any machine
    python train.py dataset=fashion                      any group that is named: from the standard DDPM, not the demo
    python train.py dataset=cifar timesteps=500          another dataset, fewer noising steps
    python train.py experiment=fast_fashion              a recipe that suits a CPU
    python train.py resume=last trainer.max_steps=4000   go on with the newest run
    python train.py experiment=latent_fashion autoencoder=last   in the latents of experiment=autoencoder_fashion
    python train.py -m lr=1e-3,2e-3 network=unet,tutorial   try each, and compare
"""

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import cli
from data.places import check_source
from diffusion.runs.places import place
from diffusion.settings import training as settings
from diffusion.terminal import streams
from diffusion.training.sweep import Result, keep, tabled

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: "DictConfig") -> float | None:
    """One run, or one of a sweep, which goes on past those that fail; returns the final validation loss."""
    typed, folder, loss, failure = cli.typed(), None, None, ""
    try:
        with contextlib.ExitStack() as held:
            folder, loss = train(config, held)
    except cli.USER_ERRORS as error:
        if not cli.sweeping():
            raise
        failure = cli.one_line(error)
        streams.problem(f"error: {failure}")
    if cli.sweeping():
        keep(Result(typed, "-" if failure else str(folder), loss, failure), cli.job_number())
    return loss


def train(config: "DictConfig", held: contextlib.ExitStack) -> tuple[Path | None, float | None]:
    """Trains; returns the run's folder, None on all processes but the first, and the final validation loss.

    Args:
        config: the composed configuration.
        held: keeps the lock on the run's folder until the run has ended.
    """
    began = time.monotonic()
    settings.check(config, cli.typed())
    for name, dataset in (("resume", cli.typed().get("dataset")), ("init_from", None)):
        if config[name] not in (None, "auto"):
            place(str(config[name]), dataset)

    if config.resume in (None, "auto") and config.init_from is None:  # a run that is tuned keeps its data
        check_source(config.dataset.get("source"))

    # Only now what imports torch, which takes seconds.
    from pytorch_lightning.utilities import rank_zero_only

    from diffusion.machine import memory
    from diffusion.runs.lock import locked
    from diffusion.runs.resume import goes_on
    from diffusion.training import estimate
    from diffusion.training.closing import ending, finish, less_memory
    from diffusion.training.logger import validation_loss
    from diffusion.training.run import Run, claim_folder
    from diffusion.training.setup import parts_of
    from diffusion.training.trainer import make_trainer, quiet

    first = rank_zero_only.rank in (0, None)  # type: ignore[attr-defined]
    quiet(first)
    parts, checkpoint = parts_of(config, cli.typed(), of_sweep=cli.sweeping())
    if checkpoint is not None and first:
        held.enter_context(locked(checkpoint.folder))
    held.enter_context(memory.shortage(less_memory(parts)))
    trainer = make_trainer(parts, of_sweep=cli.sweeping())
    run = Run.begun(parts, checkpoint, trainer.strategy.root_device, cli.typed())
    limit = estimate.limit_of_run(run, trainer, began, resumed=checkpoint is not None)
    if checkpoint is not None and not goes_on(checkpoint, parts, limit.max_steps):
        return checkpoint.folder, validation_loss(checkpoint.folder, checkpoint.step)

    folder = None
    if first:
        done = 0 if checkpoint is None else checkpoint.step
        estimate.announce(run, limit, trainer, cli.choices_of("experiment"), done)
        if checkpoint is None:
            folder = claim_folder(parts.config["dataset"]["name"])
            held.enter_context(locked(folder))
            print(f"run folder: {folder}")
        else:
            folder = checkpoint.folder
            print(f"run folder: {folder}, resuming {checkpoint.path} at step {checkpoint.step}")
    with ending(parts, folder, of_sweep=cli.sweeping()):
        loss = run.fit(trainer, limit, folder, checkpoint)
    if folder is not None:
        finish(folder, loss, parts.model.kind)
    return folder, loss


def entry() -> None:
    """The command line; a sweep ends in a table, and with exit status 1 if a run of it failed."""
    if tabled(lambda: cli.run(main, "train", __doc__ or "")):
        sys.exit(1)


if __name__ == "__main__":
    entry()
