"""What is said when a run ends, well or not."""

import shlex
import shutil
from pathlib import Path

from diffusion.machine.memory import OutOfMemory
from diffusion.runs.parts import Parts
from diffusion.runs.report import REPORT
from diffusion.runs.trained import KINDS
from diffusion.terminal import streams
from diffusion.terminal.commands import pasted


def said(folder: Path, loss: float | None, kind: str) -> str:
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
    """Prints what `said` says; of a quiet command the run's folder alone."""
    print(said(folder, loss, kind))
    if streams.is_quiet():
        streams.result(folder)


def less_memory(parts: Parts) -> str:
    """What to set so that a run takes less memory and its steps stay the same."""
    size = parts.settings.batch_size
    if size == 1:
        return "batch_size is 1 already, choose a smaller network"
    return (
        f"lower batch_size={size}; half of it with twice the batches a step, batch_size={size // 2} "
        f"trainer.accumulate_grad_batches={2 * parts.accumulated}, trains in the same way"
    )


def out_of_memory(error: BaseException, parts: Parts, folder: Path) -> OutOfMemory:
    """What a run that has no memory left says; its folder is removed if no checkpoint is in it."""
    if any((folder / "checkpoints").glob("*.ckpt")):
        remains = f"the last checkpoint is kept: python train.py resume={pasted(folder)}"
    else:
        shutil.rmtree(folder, ignore_errors=True)  # Windows keeps files that are still open
        remains = "no checkpoint was written yet"
    return OutOfMemory(error, f"{less_memory(parts)}; {remains}")
