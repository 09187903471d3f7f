"""Real runs of `python train.py` in processes of their own that can be killed.

They are forked from a server that has imported everything once, so that a run starts in a fraction of a second.
"""

import csv
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only

TRAIN = Path(__file__).parents[2] / "train.py"
# A network of a few thousand weights, seven batches an epoch, a validation every four steps.
TINY = [
    "dataset=digits",
    "network.widths=[8,16]",
    "network.blocks=1",
    "batch_size=16",
    "train_images=100",
    "log_every=1",
    "val_every=4",
    "checkpoint_every=3",
    "preview_every=5",
    "accelerator=cpu",
]

_CONTEXT = multiprocessing.get_context("forkserver")
_IMPORTED = ("hydra", "pytorch_lightning", "sklearn.datasets", "data.images")
_OURS = ("closing", "estimate", "run", "setup", "trainer")
_CONTEXT.set_forkserver_preload([*_IMPORTED, *(f"diffusion.training.{name}" for name in _OURS), "tests.support.warm"])


def restore_signals() -> None:
    """Ctrl-C and a hangup do what they do in a terminal, also where a shell's `&` or `nohup` has them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Run:
    """A running `train.py`; what it prints goes to a file.

    Args:
        folder: where it runs.
        arguments: of the command line.
        script: another one of the project than `train.py`.
        before: called in its process first, to prepare a fault there; a function of a module, not a closure.
        output: the name of the file for what it prints.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        before: Callable[[], None] | None = None,
        script: Path = TRAIN,
        output: str = "output.txt",
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.output = folder / output
        self._process = _CONTEXT.Process(target=_run, args=(script, list(arguments), folder, self.output, before))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def wait(self, seconds: float = 120) -> int:
        """Its exit status, negative if a signal ended it."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self.kill()
            raise AssertionError(f"it did not end: {self.text()}")
        return self._process.exitcode

    def until(self, condition: Callable[[], bool], seconds: float = 120) -> bool:
        """Waits for a condition; False if the run ended first."""
        end = time.monotonic() + seconds
        while not condition():
            if not self._process.is_alive():
                return False
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"nothing happened: {self.text()}")
            time.sleep(0.002)
        return True

    def kill(self) -> None:
        """As the kernel does it when memory is short, or a batch system."""
        self._process.kill()
        self._process.join()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


def of_torchrun(rank: int, port: int) -> None:
    """What torchrun sets in one of two processes on this machine."""
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests"}
    os.environ |= {name: str(value) for name, value in (here | meeting).items()}
    rank_zero_only.rank = rank  # type: ignore[attr-defined]  # which Lightning took from there when it was imported


def error_line(run: Run) -> str:
    """The one line that a failed run ends with, without `error: `."""
    status = run.wait()
    assert status == 1, run.text()
    assert "Traceback" not in run.text()
    last = run.text().strip().splitlines()[-1]
    assert last.startswith("error: "), last
    return last.removeprefix("error: ")


def train(folder: Path, *arguments: str) -> str:
    """Runs to the end and returns what was printed."""
    run = Run(folder, *arguments)
    status = run.wait()
    assert status == 0, run.text()
    return run.text()


def run_folder(folder: Path, version: int = 0) -> Path:
    return folder / "lightning_logs" / "digits" / f"version_{version}"


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    """A checkpoint of the run that was started in a folder."""
    return torch.load(run_folder(folder) / "checkpoints" / f"{name}.ckpt", weights_only=True)


def table(folder: Path) -> list[dict[str, str]]:
    """`metrics.csv` without what depends on the clock."""
    path = run_folder(folder) / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "watch/images_per_s"} for row in csv.DictReader(file)]


def logged_steps(folder: Path) -> int:
    """The step that the last row of `metrics.csv` belongs to."""
    rows = table(folder)
    return int(rows[-1]["step"]) if rows else 0


def same(a: Any, b: Any) -> bool:
    """Equality of nested containers, of tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def assert_same_result(folder: Path, reference: Path) -> None:
    """Raw and averaged weights, optimizer, best loss and the whole table are equal bit for bit."""
    ours, theirs = checkpoint(folder), checkpoint(reference)
    assert ours["global_step"] == theirs["global_step"]
    assert any(key.startswith("ema.") for key in ours["state_dict"])
    for key in ("state_dict", "optimizer_states"):
        assert same(ours[key], theirs[key]), key
    assert checkpoint(folder, "best")["global_step"] == checkpoint(reference, "best")["global_step"]
    assert table(folder) == table(reference)


def _run(script: Path, arguments: list[str], folder: Path, output: Path, before: Callable[[], None] | None) -> None:
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    restore_signals()
    if before is not None:
        before()
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
