"""What a run writes to be looked at: TensorBoard events and `metrics.csv`, both unbroken over resumes."""

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class RunLogger(Logger):
    """Scalars to TensorBoard and to `metrics.csv` in the run's folder.

    Args:
        folder: the run's.
        resumed_from: the step that a resumed run goes on from: what was logged after it is dropped, to be logged again.
    """

    def __init__(self, folder: Path, resumed_from: int | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.experiment = SummaryWriter(folder, purge_step=None if resumed_from is None else resumed_from + 1)
        self._table = folder / "metrics.csv"
        self._rows: list[dict[str, str]] = []
        if resumed_from is not None and self._table.exists():
            # A row that was being written when the run was killed has no end.
            lines = [line for line in self._table.read_text().splitlines(keepends=True) if line.endswith("\n")]
            self._rows = [row for row in csv.DictReader(lines) if int(row["step"]) <= resumed_from]
            self._rewrite()

    @property
    def name(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @property
    def log_dir(self) -> str:
        return str(self.folder)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Lightning's own call, before there is a result to go with them; `log_result` writes them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row of the table and one point a curve.

        Raises:
            OSError: the disk is full, or the folder is read-only.
        """
        if step is None:
            raise ValueError("metrics are logged with the optimizer step they belong to")
        for name, value in metrics.items():
            self.experiment.add_scalar(name, value, step)
        row = {"step": str(step)} | {name: repr(float(value)) for name, value in metrics.items()}
        known = list(self._columns())
        self._rows.append(row)
        try:
            if set(row) <= set(known):
                with self._table.open("a", newline="") as file:
                    csv.DictWriter(file, known).writerow(row)
            else:
                self._rewrite()
        except OSError as error:
            raise OSError(
                f"cannot write {self._table}: {error.strerror}; free some space or change the permissions, and resume"
            ) from error

    def add_summary(self, summary: Any, step: int | None = None) -> None:
        """A summary that SummaryWriter has no method for."""
        assert self.experiment.file_writer is not None  # it is from the start until the writer is closed
        self.experiment.file_writer.add_summary(summary, step)

    def log_result(self, settings: Mapping[str, Any], result: Mapping[str, float], step: int) -> None:
        """The run's settings with its final figures, for TensorBoard's table of runs."""
        flat = dict(_flatten(settings))
        for summary in hparams(flat, dict(result)):
            self.add_summary(summary)
        for name, value in result.items():
            self.experiment.add_scalar(name, value, step)

    def save(self) -> None:
        self.experiment.flush()

    def finalize(self, status: str) -> None:
        self.experiment.flush()

    def _columns(self) -> dict[str, None]:
        return {name: None for row in self._rows for name in row}

    def _rewrite(self) -> None:
        """A new column appeared: the table is small, and is replaced as a whole."""
        part = self._table.with_name(self._table.name + ".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self._columns()))
            writer.writeheader()
            writer.writerows(self._rows)
        part.replace(self._table)


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, bool | int | float | str]]:
    flat: list[tuple[str, bool | int | float | str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            # TensorBoard stores UTF-8, and a file's name may hold bytes that are none.
            text = str(value).encode("utf-8", "backslashreplace").decode()
            flat.append((prefix + key, value if isinstance(value, bool | int | float) else text))
    return flat
