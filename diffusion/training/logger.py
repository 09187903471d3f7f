"""What a run writes to be looked at: TensorBoard events and `metrics.csv`, both unbroken over resumes."""

import csv
import io
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

from diffusion.media import Pixels, tensorboard_gif
from diffusion.media.atomic import atomic, check_regular, naming, remove_parts
from diffusion.training.events import EventFile, flattened
from diffusion.training.outlets import Outlets

TABLE = "metrics.csv"


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a table, without what they have no value for; raises ValueError, with the line, if it is damaged."""
    line = 1
    try:
        text = path.read_text(encoding="utf-8")
        # A row that was being written when the run was killed has no end.
        whole = text[: text.rfind("\n") + 1]
        if text and not whole.startswith("step"):
            raise ValueError("no header")
        for row in csv.DictReader(io.StringIO(whole, newline=""), strict=True):
            line += 1
            if None in row or None in row.values() or int(row["step"]) < 0:
                raise ValueError("not one value for each column")
            for value in row.values():
                float(value or 0)
            yield {name: value for name, value in row.items() if value}
    except (ValueError, LookupError, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged near line {line + 1} ({' '.join(str(error).split())[:80]}): repair it, or "
            f"move it away, and resume"
        ) from error


def _points(path: Path, after: int) -> list[tuple[int, str]]:
    """(step, name) of each figure after a step; none without a table."""
    check_regular(path)
    rows = rows_of(path) if path.exists() else iter(())
    return [(int(row["step"]), name) for row in rows for name in row if name != "step" and int(row["step"]) > after]


# TensorBoard's table of runs begins with these settings, and has the others after them.
COMPARED = (
    *("dataset.name", "network", "network.widths", "schedule", "denoiser", "objective", "optimizer", "ema"),
    *("lr", "batch_size", "seed", "trainer.max_steps"),
)


class Table:
    """A CSV file with a column `step` and one for each figure; a row costs the same however many there are.

    Args:
        path: of the file.
        resumed_from: rows after this step are dropped, to be written again; None begins an empty table.

    Raises:
        ValueError: the file is damaged; the text names the line.
        WriteError: it cannot be written.
    """

    def __init__(self, path: Path, resumed_from: int | None = None) -> None:
        self.path = path
        self._columns: list[str] = []
        check_regular(path)
        if resumed_from is not None and path.exists():
            rows = list(self._read())
            kept = [row for row in rows if int(row["step"]) <= resumed_from]
            self._columns = list(dict.fromkeys(name for row in kept for name in row))
            remove_parts(path.parent, path.name)
            self._write(kept)

    def append(self, row: Mapping[str, str]) -> None:
        """Adds a row; raises WriteError."""
        new = [name for name in row if name not in self._columns]
        if new:  # the whole table has to be written again, which happens once for each kind of figure
            before = list(self._read()) if self._columns else []
            self._columns += new
            self._write([*before, row])
            return
        with naming(self.path), self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def names(self, beginning: str) -> list[str]:
        """The figures whose names begin so."""
        return [name for name in self._columns if name.startswith(beginning)]

    def _read(self) -> Iterator[dict[str, str]]:
        return rows_of(self.path)

    def _write(self, rows: Iterable[Mapping[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        if self._columns:
            writer.writeheader()
        writer.writerows(rows)
        with atomic(self.path) as file:
            file.write(text.getvalue().encode())


def validation_loss(folder: Path, step: int) -> float | None:
    """What a run's table has as the validation loss of a step, None if it has none; ValueError if it is damaged."""
    path = folder / TABLE
    check_regular(path)
    rows = rows_of(path) if path.exists() else iter(())
    found = [float(row["val/loss"]) for row in rows if int(row["step"]) == step and "val/loss" in row]
    return found[-1] if found else None


class RunLogger(Logger):
    """Curves and pictures to TensorBoard's files in the run's folder, curves to `metrics.csv` there, and to outlets.

    Args:
        folder: the run's.
        resumed_from: the step that a resumed run goes on from: what was logged after it is dropped, to be logged again.
        outlets: begins the others, given the points that were logged after that step.

    Raises:
        ValueError: the table of a resumed run is damaged.
        WriteError: the folder cannot be written; also of all that logs something.
    """

    def __init__(
        self,
        folder: Path,
        resumed_from: int | None = None,
        outlets: Callable[[Collection[tuple[int, str]]], Outlets] | None = None,
    ) -> None:
        super().__init__()
        self.folder = folder
        logged = [] if resumed_from is None or outlets is None else _points(folder / TABLE, resumed_from)
        # First, so that one that cannot begin changes nothing here.
        self._outlets = None if outlets is None else outlets(logged)
        self._table = Table(folder / TABLE, resumed_from)
        self.experiment = EventFile(folder, purge_step=None if resumed_from is None else resumed_from + 1)

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
        """One row of the table and one point a curve."""
        if step is None:
            raise ValueError("metrics are logged with the optimizer step they belong to")
        for name, value in metrics.items():
            self.experiment.add_scalar(name, value, step)
        if self._outlets is not None:
            self._outlets.metrics(metrics, step)
        self._table.append({"step": str(step)} | {name: repr(float(value)) for name, value in metrics.items()})

    def log_picture(self, name: str, pixels: Pixels, step: int) -> None:
        """A picture (H, W, C)."""
        self.experiment.add_image(name, pixels, step)
        if self._outlets is not None:
            self._outlets.picture(name, pixels, step)

    def log_animation(self, name: str, frames: Sequence[Pixels], step: int) -> None:
        """Pictures that follow each other, as a GIF."""
        self.experiment.add_summary(tensorboard_gif(name, frames), step)
        if self._outlets is not None:
            self._outlets.animation(name, frames, step)

    def log_result(
        self, settings: Mapping[str, Any], result: Mapping[str, float], step: int, further: Sequence[str] = ()
    ) -> None:
        """The run's final figures, and its settings for TensorBoard's table of runs, which shows the last values of its
        curves beside them.

        Args:
            settings: of the whole run. Of a part with a class the short name of that is shown.
            result: the final figures.
            step: the last one.
            further: names of curves to show beside the validation loss and the scores in training.
        """
        flat = dict(flattened(settings))
        kinds = {True: api_pb2.DATA_TYPE_STRING, False: api_pb2.DATA_TYPE_FLOAT64}
        columns = ["val/loss", *result, *self._table.names("val_score/"), *further]
        experiment = api_pb2.Experiment(
            hparam_infos=[
                # The table begins with those that are said to differ.
                api_pb2.HParamInfo(name=name, type=kinds[isinstance(value, str)], differs=name in COMPARED)
                for name, value in flat.items()
            ],
            metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name)) for name in columns],
        )
        content = HParamsPluginData(experiment=experiment, version=metadata.PLUGIN_DATA_VERSION)
        described = Summary.Value(tag=metadata.EXPERIMENT_TAG, metadata=metadata.create_summary_metadata(content))
        _, begins, ends = hparams(flat, {})
        for summary in (Summary(value=[described]), begins, ends):
            self.experiment.add_summary(summary)
        for name, value in result.items():
            self.experiment.add_scalar(name, value, step)
        if self._outlets is not None:
            self._outlets.metrics(result, step)

    def close(self, finished: bool) -> None:
        """Ends all that is written to; whether the run has come to its end."""
        self.experiment.close()
        if self._outlets is not None:
            self._outlets.close(finished)
