"""What is said when a run ends, well or not."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion.build import ConfigError
from diffusion.machine import memory
from diffusion.runs.parts import Parts
from diffusion.runs.places import CheckpointError
from diffusion.runs.report import REPORT
from diffusion.runs.trained import KINDS
from diffusion.terminal import streams
from diffusion.terminal.commands import pasted
from diffusion.training.run import remove_folder
from diffusion.training.saving import Interrupted


def summary(folder: Path, loss: float | None, kind: str) -> str:
    """Where a finished run is, and what it is good for.

    Args:
        folder: the run's.
        loss: its final validation loss.
        kind: of its model.
    """
    lines = [
        f"done: {folder}" + ("" if loss is None else f", validation loss {loss:.4f}"),
        f"  all of it on a page:  {folder / REPORT}",
        f"  curves and pictures:  tensorboard --logdir {shlex.quote(str(folder.parent.parent))}",
    ]
    if kind in KINDS:
        lines.append(f"  {KINDS[kind].purpose + ':':<22}{KINDS[kind].use.format(pasted(folder))}")
    return "\n".join(lines)


def finish(folder: Path, loss: float | None, kind: str) -> None:
    """Prints the summary; of a quiet command the run's folder alone."""
    print(summary(folder, loss, kind))
    if streams.is_quiet():
        streams.result(folder)


def less_memory(parts: Parts) -> str:
    """What to set so that a run takes less memory and its steps stay the same."""
    size = parts.settings.batch_size
    if size == 1:
        return "batch_size is 1 already, choose a smaller network"
    if size % 2:
        return f"lower batch_size={size}"
    return (
        f"lower batch_size={size}; half of it with twice the batches a step, batch_size={size // 2} "
        f"trainer.accumulate_grad_batches={2 * parts.accumulated}, trains in the same way"
    )


@contextmanager
def ending(parts: Parts, folder: Path | None, of_sweep: bool) -> Iterator[None]:
    """Says how to go on with a run that was interrupted, or has no memory left; a run that is refused leaves no folder.

    Args:
        parts: of the run.
        folder: the run's; None on every rank but the first.
        of_sweep: whether the run is one of a sweep.
    """
    try:
        yield
    except Interrupted as stop:
        if folder is not None:
            streams.problem(f"saved; go on with: python train.py resume={pasted(folder)}")
            if of_sweep:
                streams.problem("the sweep goes on with its own command and resume=auto")
        sys.exit(stop.code)
    except CheckpointError:  # the disk is full, say: what was logged so far stays
        raise
    except ConfigError:
        if folder is not None and not _has_checkpoint(folder):
            remove_folder(folder)
        raise
    except memory.SHORTAGES as error:
        if folder is None or not memory.ran_out(error):
            raise
        raise out_of_memory(error, parts, folder) from error


def out_of_memory(error: BaseException, parts: Parts, folder: Path) -> memory.OutOfMemory:
    """What a run that has no memory left says; its folder is removed if no checkpoint is in it."""
    if _has_checkpoint(folder):
        remains = (
            f"the last checkpoint is kept: python train.py resume={pasted(folder)} where there is more memory, or "
            f"init_from={pasted(folder)} for a new run with other settings"
        )
    else:
        remove_folder(folder)
        remains = "no checkpoint was written yet"
    return memory.OutOfMemory(error, f"{less_memory(parts)}; {remains}")


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("*.ckpt"))
