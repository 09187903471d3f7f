"""Does everything run on a GPU, does it agree with the CPU, and how fast is it? One table, in at most eight minutes.

    make gpu                                          # on the machine's GPU, with its python3 or .venv
    make gpu WHEELS=wheels DATA_DIR=fashion-mnist     # without a network
    python benchmarks/gpu.py --device cpu             # a trial on the CPU: small networks, few steps

Each experiment trains four steps, draws and is scored. Then come the equalities of `tests/support/gpu.py` and the
throughput of train.py beside that of the bare training step. A row that fails says so in one line, the others go on,
and the exit status is 1. What does not fit into the time is skipped by name.

Until the packages are there, this file needs the standard library alone.
"""

import argparse
import gc
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


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
        self.failed = 0
        signal.signal(signal.SIGALRM, self._ring)

    def measure(self, name: str, measurement: Callable[[], str], needs_s: float = 0.0) -> None:
        """Adds a row with what `measurement()` returns.

        Args:
            name: of the row.
            measurement: raises an exception, whose first line becomes the row, if what it measures is wrong.
            needs_s: about how long it takes; without so much time left it is skipped.
        """
        left, peak, began = self.end - time.monotonic(), "-", time.monotonic()
        if left <= max(needs_s, 0.0):
            self._add(name, "skipped: no time left", "-", "-")
            return
        self._forget()
        signal.setitimer(signal.ITIMER_REAL, left)
        try:
            result = measurement()
        except TimeIsUp:
            result = "stopped: the time was up"
        except Exception as error:  # in whatever way a row fails, it is named and counted, and the others run
            self.failed += 1
            lines = str(error).strip().splitlines() or [""]
            result = f"failed: {type(error).__name__}: {lines[-1].removeprefix('error: ')}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.device == "cuda":
            import torch

            peak = f"{torch.cuda.max_memory_allocated() / 2**30:.2f}"
        self._add(name, result, f"{time.monotonic() - began:.1f}", peak)

    def text(self) -> str:
        """All rows in columns."""
        rows = [self.HEADS, *self.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self.HEADS))]
        return "\n".join(
            f"{row[0]:<{widths[0]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  {row[1]}".rstrip() for row in rows
        )

    def _add(self, *row: str) -> None:
        self.rows.append(row)
        print(f"{row[0]}: {row[1]} ({row[2]} s)", file=sys.stderr, flush=True)

    def _forget(self) -> None:
        """Frees the last row's memory, so that the next one's peak is its own."""
        gc.collect()
        if self.device == "cuda":
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _ring(self, *_: Any) -> None:
        raise TimeIsUp


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
        print(f"installing {requirement} into {sys.executable}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", *source, requirement], capture_output=True, text=True
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reasons = [line for line in lines if line.startswith("ERROR")] or lines or ["pip says no more"]
            failures.append(f"pip cannot install {requirement} ({reasons[0].strip()})")
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

    with tempfile.TemporaryDirectory() as folder:
        table = Table(arguments.device, end - time.monotonic())
        rows = Rows(arguments.device, Path(folder), arguments.data_dir)
        try:
            print(f"Fashion-MNIST: {rows.fashion_dir or 'generated images in its place'}", file=sys.stderr)
        except OSError as error:
            sys.exit(f"error: {error}")
        for row in rows.all():
            if arguments.only in row.name:
                table.measure(*row)
    print(
        f"{torch.cuda.get_device_name() if arguments.device == 'cuda' else 'CPU, small networks'}, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )
    print(table.text())
    sys.exit(1 if table.failed else 0)


if __name__ == "__main__":
    main()
