"""When and how checkpoints are written, and how a run is stopped."""

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.plugins.io import TorchCheckpointIO

from diffusion.machine import memory
from diffusion.media.atomic import WriteError, atomic, reason, remove_parts
from diffusion.optimizers import spacing
from diffusion.runs.checkpoints import contents
from diffusion.runs.places import CheckpointError
from diffusion.terminal.commands import pasted
from diffusion.terminal.streams import urgent
from diffusion.training.callbacks import AfterStep
from diffusion.training.module import DiffusionModule, TrainingDiverged, raise_on_first_rank


class Interrupted(Exception):
    """Training was stopped by a signal after saving; `code` is the usual exit status, 128 + the signal's number."""

    def __init__(self, code: int) -> None:
        super().__init__(f"interrupted, exit code {code}")
        self.code = code


def write_checkpoint(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a whole checkpoint, or leaves the previous one as it was.

    Raises:
        CheckpointError: the disk is full, the folder is read-only.
    """
    try:
        with atomic(path) as file:
            write(file)
    # torch reports a full disk as a RuntimeError of its archive writer.
    except (OSError, RuntimeError) as error:
        if memory.ran_out(error):  # which says nothing about the disk
            raise
        cause = error.__cause__ if isinstance(error, WriteError) and isinstance(error.__cause__, OSError) else error
        # The file is a run's checkpoint, or a snapshot in the folder beside those.
        kept = path.exists() or any((path.parent.parent / "checkpoints").glob("*.ckpt"))
        remains = "the previous one is untouched" if kept else "there is none before it"
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {reason(cause)}; {remains}, free some space or change the "
            f"permissions and {'resume' if kept else 'begin again'}"
        ) from error


def greatest_request(trainer: pl.Trainer, request: int) -> int:
    """The highest request of any rank."""
    if trainer.world_size == 1:
        return request
    return int(trainer.strategy.reduce(torch.tensor(request, device=trainer.strategy.root_device), reduce_op="max"))


def fail_together(trainer: pl.Trainer, failure: CheckpointError | None) -> None:
    """Ends all ranks if one of them could not write."""
    if greatest_request(trainer, int(failure is not None)):
        raise_on_first_rank(trainer, failure or CheckpointError("another process could not write the checkpoint"))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, and reads them without trusting them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        return contents(Path(path))


class StepTimer(Timer):
    """Lightning's `max_time`, which goes on counting after a resume.

    Unlike Lightning's own timer it ends a run between optimizer steps only, not in the middle of an accumulation.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            super().on_train_batch_end(trainer, *args, **kwargs)


class Snapshots(AfterStep):
    """Keeps the averaged weights of some steps in `averages/`, in half precision, to choose an average's length later.

    Args:
        folder: the run's, on rank 0, which writes; None on the others.
        most: how many to keep; see `diffusion.optimizers.spacing`.
    """

    def __init__(self, folder: Path | None, most: int) -> None:
        super().__init__()
        self.folder, self.most = folder, most

    def after_step(self, trainer: pl.Trainer, module: DiffusionModule, step: int) -> None:
        every = spacing(step, self.most)
        if step % every:
            return
        module.raise_if_diverged()
        failure = None
        if trainer.is_global_zero and self.folder is not None:
            averages = [{name: p.half() for name, p in average.named_parameters()} for average in module.averages]
            snapshot = {"global_step": step, "averages": averages}
            try:
                write_checkpoint(self.folder / "averages" / f"{step}.pt", lambda file: torch.save(snapshot, file))
            except CheckpointError as error:
                failure = error
            else:
                for path in (self.folder / "averages").glob("*.pt"):
                    if path.stem.isdecimal() and int(path.stem) % every:
                        path.unlink()
        fail_together(trainer, failure)


class Checkpoints(AfterStep):
    """Keeps `last.ckpt` and the best by validation loss, `best.ckpt`, and stops cleanly on a signal.

    A signal sets a flag that the ranks agree on after each optimizer step and each validation; then the run is saved
    and `Interrupted` raised. After the last step there is nothing to interrupt: the run validates, saves and ends as
    it does without a signal. A second Ctrl-C ends it at once, unsaved; a second SIGTERM or SIGHUP changes nothing,
    because batch systems repeat them. Each says what the run is doing and which checkpoint there is.

    Args:
        folder: the run's, on rank 0; None on the others until rank 0 has said.
        config: the run's whole configuration, which every checkpoint carries.
        every: optimizer steps between saves. None saves after a hundred times what a save takes, at least half a minute
            and at most ten: under 1 % of the time.
    """

    def __init__(self, folder: Path | None, config: Mapping[str, Any], every: int | None = None) -> None:
        super().__init__()
        if every is not None and every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, got {every}")
        self.folder, self.config, self._every = folder, config, every
        self.best = float("inf")
        self._cost_s, self._saved_at = 0.0, time.monotonic()
        self._saved_step = -1
        self._signal = 0
        self._training = self._first = False
        self._doing = "this step"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """All ranks write, and read, the folder that rank 0 claimed."""
        self.folder = trainer.strategy.broadcast(self.folder)
        self._first = trainer.is_global_zero
        if self._first and self.folder is not None:
            for name in ("checkpoints", "averages"):
                remove_parts(self.folder / name)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["config"] = dict(self.config)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles SIGINT, SIGTERM and SIGHUP meanwhile."""
        before = self._listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _listen(self) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():  # Python handles signals nowhere else
            return {}
        numbers = [signal.SIGINT, signal.SIGTERM]
        # A closed terminal sends SIGHUP; nohup has it ignored.
        if os.name == "posix" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        return {number: signal.signal(number, self._on_signal) for number in numbers}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step or -1  # a resumed run begins with its checkpoint
        self._listen()  # again: Lightning has put its own handler of SIGTERM in between
        self._training = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self._signal or not self._training):
            if self._training:
                self._say(f"quitting at once; {self._kept()}")
            raise KeyboardInterrupt
        if not self._training:
            raise SystemExit(128 + number)
        again = self._signal != 0
        self._signal = number
        then = self._kept() if again else "Ctrl-C again quits at once, unsaved"
        self._say(f"{'still ' if again else ''}finishing {self._doing}, then saving; {then}")

    def _say(self, message: str) -> None:
        if self._first:
            urgent(f"\n{message}")

    def _kept(self) -> str:
        if self._saved_step < 0 or self.folder is None:
            return "no checkpoint is saved yet"
        command = f"python train.py resume={pasted(self.folder)}"
        return f"the checkpoint of step {self._saved_step} is kept: {command}"

    def after_step(self, trainer: pl.Trainer, module: DiffusionModule, step: int) -> None:
        if step == trainer.max_steps:
            trainer.should_stop = True  # which makes Lightning validate once more, at the end
            self._doing = "the run"
        if self._validation_follows(trainer):
            return
        # The exit status that a signal stands for is above 128.
        request = greatest_request(trainer, 128 + self._signal if self._signal else int(self._due(step)))
        if request:
            self._save(trainer)
        if request > 128 and not trainer.should_stop:
            raise_on_first_rank(trainer, Interrupted(request))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._doing = f"the {'last ' if trainer.should_stop else ''}validation"

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        name = self._doing.partition(" (")[0]
        self._doing = f"{name} (batch {batch_idx + 1} of {trainer.num_val_batches[0]})"

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A checkpoint always comes after the validation of its step, so that a resumed run need not repeat that."""
        if trainer.sanity_checking or not trainer.fit_loop.epoch_loop.batch_progress.total.ready:
            return
        # Only rank 0 knows the loss, and all ranks take part in a save.
        loss = trainer.strategy.broadcast(float(trainer.callback_metrics.get("val/loss", torch.nan)))
        if not math.isfinite(loss):
            stop = TrainingDiverged(
                f"the validation loss is not finite at step {trainer.global_step}: training stopped and nothing was "
                f"saved since; try a smaller lr, from the last checkpoint if there is one, or from the beginning"
            )
            raise_on_first_rank(trainer, stop)
        better = loss < self.best
        self.best = min(loss, self.best)
        self._save(trainer, better)
        self._doing = "the run" if trainer.should_stop else "this step"
        request = greatest_request(trainer, 128 + self._signal if self._signal else 0)
        if request and not trainer.should_stop:
            raise_on_first_rank(trainer, Interrupted(request))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Without validation the last step has not been saved yet."""
        if self._saved_step != trainer.global_step:
            self._save(trainer)

    def _validation_follows(self, trainer: pl.Trainer) -> bool:
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        validates = trainer.limit_val_batches != 0
        return bool(validates and (trainer.should_stop or batches % (trainer.val_check_batch or 1) == 0))

    def _due(self, step: int) -> bool:
        if self._every is not None:
            return step % self._every == 0
        return time.monotonic() - self._saved_at > min(600.0, max(30.0, 100 * self._cost_s))

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / "checkpoints" / f"{name}.ckpt"

    def _save(self, trainer: pl.Trainer, best: bool = False) -> None:
        """Writes the checkpoint; the best one as such first, so that a run killed between the two goes on from it."""
        begun = time.monotonic()
        failure = None
        try:
            trainer.save_checkpoint(self._path("best" if best else "last"))
        except CheckpointError as error:
            failure = error
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other ranks wait
        if failure is None and best and trainer.is_global_zero:
            try:
                with self._path("best").open("rb") as source:
                    write_checkpoint(self._path("last"), lambda file: shutil.copyfileobj(source, file))
            except CheckpointError as error:
                failure = error
        fail_together(trainer, failure)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        self._cost_s = self._saved_at - begun
