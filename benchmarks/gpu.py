"""Does everything run on a GPU, does it agree with the CPU, and how fast is it? One table, in at most eight minutes.

    make gpu                                          # on the machine's GPU, with its python3 or .venv
    make gpu WHEELS=wheels DATA_DIR=fashion-mnist     # without a network
    python benchmarks/gpu.py --device cpu             # a trial on the CPU: small networks, few steps

First come the equalities of `tests/support/gpu.py` and the throughput of train.py beside that of the bare training
step. Then each experiment trains four steps, draws and is scored, several at a time. A row that fails says so in one
line, the others go on, and the exit status is 1. What does not fit into the time is skipped by name.

Until the packages are there, this file needs the standard library alone.
"""

import argparse
import gc
import importlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
# A row that takes so many times as long as it should hangs.
PATIENCE = 4


class Row(NamedTuple):
    """One row: its name, what measures it, and about how long that takes."""

    name: str
    measurement: Callable[[], str]
    needs_s: float


class TimeIsUp(BaseException):
    """Raised in the row that is being measured. No `Exception`, so that nothing on the way takes it for a failure."""


class Table:
    """Measures one row after the other, as long as there is time.

    Args:
        device: "cuda" or "cpu".
        seconds: for all rows together.
    """

    HEADS = ("what", "result", "s", "GPU GiB")

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self.end = device, time.monotonic() + seconds
        self.rows: list[tuple[str, ...]] = []
        self.failed = self.skipped = 0
        self.broken = False  # whether the device answers no more
        signal.signal(signal.SIGALRM, self._ring)

    def measure(self, name: str, measurement: Callable[[], str], needs_s: float = 0.0) -> None:
        """Adds a row with what `measurement()` returns.

        Args:
            name: of the row.
            measurement: raises an exception, whose first line becomes the row, if what it measures is wrong.
            needs_s: about how long it takes; without so much time left it is skipped, and it is stopped after a
                multiple of that.
        """
        left, began = self.end - time.monotonic(), time.monotonic()
        if self.broken:
            self.add(name, "failed: the device answers no more since the failure above", failed=True)
            return
        if left <= max(needs_s, 0.0):
            self.add(name, "skipped: no time left", skipped=True)
            return
        limit, held, failed = min(left, PATIENCE * needs_s or left), 0, False
        try:
            held = self._forget()
            # Again every two seconds: an exception in a finalizer is lost.
            signal.setitimer(signal.ITIMER_REAL, limit, 2.0)
            result = measurement()
        except TimeIsUp:
            failed = limit < left
            result = f"stopped: it took more than {limit:.0f} s" if failed else "stopped: the time was up"
        except Exception as error:  # in whatever way a row fails, it is named and counted, and the others run
            failed, result = True, f"failed: {type(error).__name__}: {_reason(error)}"
            traceback.print_exc()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.broken = failed and not self._answers()
        self.add(name, result, f"{time.monotonic() - began:.1f}", self._peak(held), failed=failed)

    def measure_beside(self, lanes: Sequence[Sequence[Row]]) -> None:
        """The same for rows of which as many are measured at a time as there are lanes, each lane in a process of its
        own; their seconds are those on a busy device."""
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        pools = [ProcessPoolExecutor(1, get_context("spawn")) for _ in lanes]
        asked = [
            (row, lane.submit(measured, row, self.device, self.end))
            for lane, rows in zip(pools, lanes, strict=True)
            for row in rows
        ]
        for row, future in asked:
            try:
                found = future.result(timeout=max(self.end - time.monotonic() + 5, 0.1))
            except TimeoutError:
                self.add(row.name, "stopped: the time was up")
            except Exception as error:  # the process died, or could not send what it found: the other rows go on
                self.add(row.name, f"failed: {type(error).__name__}: {_reason(error)}", failed=True)
            else:
                self.rows += found.rows
                self.failed, self.skipped = self.failed + found.failed, self.skipped + found.skipped
        for lane in pools:
            for process in list((lane._processes or {}).values()):  # one that hangs would be waited for
                process.kill()
            lane.shutdown(wait=False, cancel_futures=True)

    def text(self) -> str:
        """All rows in columns."""
        rows = [self.HEADS, *self.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self.HEADS))]
        return "\n".join(
            f"{row[0]:<{widths[0]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  {row[1]}".rstrip() for row in rows
        )

    def add(
        self, name: str, result: str, seconds: str = "-", peak: str = "-", failed: bool = False, skipped: bool = False
    ) -> None:
        """Adds a row that is known."""
        self.rows.append((name, result, seconds, peak))
        self.failed, self.skipped = self.failed + failed, self.skipped + skipped
        print(f"{name}: {result} ({seconds} s)", file=sys.stderr, flush=True)

    def _forget(self) -> int:
        """Frees the last row's memory, so that the next one's peak is its own; the bytes that are held all the same."""
        gc.collect()
        if self.device != "cuda":
            return 0
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def _peak(self, held: int) -> str:
        if self.device != "cuda" or self.broken:
            return "-"
        import torch

        return f"{(torch.cuda.max_memory_allocated() - held) / 2**30:.2f}"

    def _answers(self) -> bool:
        """Whether the device still computes: after some errors every call fails with the same one."""
        if self.device != "cuda":
            return True
        import torch

        try:
            return torch.zeros(1, device="cuda").add_(1).item() == 1
        except RuntimeError:
            return False

    def _ring(self, *_: Any) -> None:
        raise TimeIsUp


def _reason(error: BaseException) -> str:
    """The line of an error that says what is wrong: that of a script, or else the first."""
    lines = str(error).strip().splitlines() or [""]
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])


def measured(row: Row, device: str, end: float) -> Table:
    """A table of one row, until `end` of the machine's monotonic clock, in a process beside that of the whole table."""
    table = Table(device, end - time.monotonic())
    table.measure(*row)
    return table


def check_device(device: str) -> None:
    """Ends with one line if PyTorch is here and finds no such device."""
    if device == "cpu" or find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        sys.exit(
            "error: PyTorch finds no CUDA device on this machine; for a trial on the CPU: "
            "python benchmarks/gpu.py --device cpu"
        )


def missing() -> list[str]:
    """The requirements of this project, as pyproject.toml has them, whose package is not installed."""
    found = []
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name = requirement.split(">")[0].split("=")[0].split("<")[0].split("!")[0].strip()
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(requirement)
    return found


def install(requirements: list[str], wheels: str | None) -> list[str]:
    """Installs packages into this Python, from a folder of wheels if one is given; returns a line for each that fails.

    One at a time: a package that only some rows need must not keep the others from being installed.
    """
    source = [] if wheels is None else ["--no-index", "--find-links", wheels]
    failures = []
    for requirement in requirements:
        if requirement not in missing():  # it came with another
            continue
        print(f"installing {requirement} into {sys.executable}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", *source, requirement], capture_output=True, text=True
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reasons = [line for line in lines if line.startswith("ERROR")] or lines or ["pip says no more"]
            failures.append(f"pip cannot install {requirement} ({reasons[0].strip()})")
    importlib.invalidate_caches()
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=7.5, help="for all rows together")
    parser.add_argument("--wheels", help="a folder of wheels for what is not installed, instead of an index")
    parser.add_argument("--data-dir", help="a folder with Fashion-MNIST's four .gz files, or torchvision's layout")
    parser.add_argument("--only", default="", help="measure only the rows whose names contain this")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    for name in ("wheels", "data_dir"):
        folder = vars(arguments)[name]
        if folder is not None and not Path(folder).is_dir():
            sys.exit(f"error: --{name.replace('_', '-')}={folder} is no folder")
    check_device(arguments.device)
    failures = install(missing(), arguments.wheels)
    check_device(arguments.device)

    # Deterministic runs need it, and cuBLAS reads it once, at its first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # each further one is a process that imports torch
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    try:
        import torch
        from gpu_rows import Rows
    except ModuleNotFoundError as error:
        sys.exit(
            f"error: {'; '.join([str(error), *failures])}; give the wheels, WHEELS=folder, or a Python that has the "
            f"packages, PYTHON=.venv/bin/python"
        )
    for failure in failures:
        print(f"warning: {failure}: rows that need it will fail", file=sys.stderr)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        table = Table(arguments.device, end - time.monotonic())
        rows = Rows(arguments.device, Path(folder), arguments.data_dir)
        try:
            print(f"Fashion-MNIST: {rows.fashion_dir or 'generated images in its place'}", file=sys.stderr)
        except OSError as error:
            sys.exit(f"error: {error}")
        chosen = [row for row in rows.all() if arguments.only in row.name]
        if not chosen:
            names = ", ".join(row.name for row in rows.all())
            sys.exit(f"error: no row's name contains {arguments.only!r}; the rows are {names}")
        place = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU, small networks"

        def finish() -> None:
            print(f"{place}, torch {torch.__version__}, Python {platform.python_version()}")
            print(table.text())
            if table.skipped:
                print(f"{table.skipped} rows did not fit into {arguments.minutes:g} minutes: --minutes or --only")
            sys.stdout.flush()

        def give_up() -> None:
            finish()
            os._exit(1)

        # A call that hangs in the driver hears no signal.
        watchdog = threading.Timer(max(end - time.monotonic(), 0) + 20, give_up)
        watchdog.daemon = True
        watchdog.start()
        first, beside, last = rows.parts(chosen)
        for row in first:
            table.measure(*row)
        table.measure_beside(beside)
        for row in last:
            table.measure(*row)
        watchdog.cancel()
        finish()
    sys.exit(1 if table.failed else 0)


if __name__ == "__main__":
    main()
