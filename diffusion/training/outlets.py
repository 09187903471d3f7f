"""Where a run's curves and pictures go beside its own folder: Lightning's loggers, and trackio's, which it lacks."""

import csv
import json
import os
import secrets
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pytorch_lightning.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import hparams

from diffusion import media
from diffusion.build import ConfigError
from diffusion.exchange import strict
from diffusion.media.atomic import atomic, check_regular, reason
from diffusion.settings.training import check_loggers
from diffusion.training.events import flattened

IDS = "loggers.json"  # in the run's folder: under which name each logger knows the run


class Logged(NamedTuple):
    """A run that is logged.

    Args:
        folder: the run's.
        project: what runs are collected under.
        config: the run's configuration, which a logger shows.
        resumed_from: the step that a resumed run goes on from; None begins one.
    """

    folder: Path
    project: str
    config: Mapping[str, Any]
    resumed_from: int | None


class Outlet(ABC):
    """A logger that shows pictures too, and goes on with the run that it knows from before a resume."""

    repeats = True  # whether it may be given again what it has; it drops what is after `resumed_from`

    @abstractmethod
    def __init__(self, run: Logged) -> None: ...

    @abstractmethod
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """One point of each of these curves."""

    @abstractmethod
    def picture(self, name: str, pixels: media.Pixels, step: int) -> None:
        """A picture (H, W, C)."""

    @abstractmethod
    def animation(self, name: str, frames: Sequence[media.Pixels], step: int) -> None:
        """Pictures that follow each other, as a GIF."""

    @abstractmethod
    def close(self, finished: bool) -> None:
        """Waits until all is written; the run has come to its end, or it goes on another time."""


class TensorBoard(Outlet):
    """TensorBoard's event files, in `tensorboard/` of the run's folder."""

    def __init__(self, run: Logged) -> None:
        purge_step = None if run.resumed_from is None else run.resumed_from + 1
        self._logger = TensorBoardLogger(run.folder, "", "tensorboard", default_hp_metric=False, purge_step=purge_step)
        self._logger.log_hyperparams(dict(run.config))  # into a file alone, where no metric is given
        for summary in hparams(dict(flattened(run.config)), {"val/loss": 0.0}):  # which is a name, and no point
            self._add(summary)

    def _add(self, summary: Summary, step: int | None = None) -> None:
        self._logger.experiment._get_file_writer().add_summary(summary, step)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._logger.log_metrics(dict(values), step)

    def picture(self, name: str, pixels: media.Pixels, step: int) -> None:
        self._logger.experiment.add_image(name, pixels, step, dataformats="HWC")

    def animation(self, name: str, frames: Sequence[media.Pixels], step: int) -> None:
        self._add(media.tensorboard_gif(name, frames), step)

    def close(self, finished: bool) -> None:
        self._logger.finalize("success" if finished else "interrupted")


class Csv(Outlet):
    """A table `csv/metrics.csv` in the run's folder; pictures as files beside it."""

    def __init__(self, run: Logged) -> None:
        self._folder = run.folder / "csv"
        kept = []
        path = self._folder / "metrics.csv"
        check_regular(path)
        if run.resumed_from is not None and path.exists():
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    kept = [row for row in csv.DictReader(file) if int(row["step"] or 0) <= run.resumed_from]
            except (ValueError, LookupError, csv.Error) as error:
                raise ConfigError(f"{path} is damaged ({error}): move it away") from error
        self._logger = CSVLogger(run.folder, "", "csv", flush_logs_every_n_steps=1)
        self._logger.log_hyperparams(dict(run.config))  # which deletes the table that a resumed run goes on with
        for row in kept:
            self.metrics(
                {name: float(value) for name, value in row.items() if value and name != "step"}, int(row["step"])
            )

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._logger.log_metrics(dict(values), step)

    def picture(self, name: str, pixels: media.Pixels, step: int) -> None:
        media.save_picture(self._folder / f"{name}_{step}.png", pixels)

    def animation(self, name: str, frames: Sequence[media.Pixels], step: int) -> None:
        media.save_gif(self._folder / f"{name}_{step}.gif", frames)

    def close(self, finished: bool) -> None:
        self._logger.finalize("success" if finished else "interrupted")


class Wandb(Outlet):
    """Weights & Biases; its variables WANDB_MODE, WANDB_ENTITY and so on count. Its files lie in the run's folder."""

    def __init__(self, run: Logged) -> None:
        import wandb

        known = _ids(run.folder).get("wandb")
        number = known or secrets.token_hex(8)
        quiet = wandb.Settings(console="off", x_disable_stats=True)
        self._logger = WandbLogger(_name(run.folder), run.folder, number, project=run.project, settings=quiet)
        self.repeats = known is None
        if known is None:
            self._logger.log_hyperparams(dict(run.config))
            _keep_id(run.folder, "wandb", number)

    @staticmethod
    def check_login() -> None:
        """Raises ConfigError if there is neither a login nor WANDB_MODE=offline."""
        import wandb

        offline = wandb.setup().settings.mode in ("offline", "disabled", "dryrun")
        if not offline and not wandb.login(prompt=False, verify=False):
            raise ConfigError(
                "logger=wandb has no login: type wandb login, or set WANDB_MODE=offline in the environment"
            )

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._logger.log_metrics(dict(values), step)

    def picture(self, name: str, pixels: media.Pixels, step: int) -> None:
        self._logger.log_image(name, [pixels], step)

    def animation(self, name: str, frames: Sequence[media.Pixels], step: int) -> None:
        with _as_file(name, frames, step) as path:
            self._logger.log_video(name, [str(path)], step, format=["gif"])

    def close(self, finished: bool) -> None:
        self._logger.finalize("success" if finished else "interrupted")
        self._logger.experiment.finish()  # else the next run of a sweep would be taken for this one


class MLflow(Outlet):
    """MLflow; MLFLOW_TRACKING_URI says where, and without it the database `mlflow.db` beside all runs is taken."""

    def __init__(self, run: Logged) -> None:
        root = run.folder.absolute().parents[1]
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
        files = (root / "mlartifacts").as_uri() if place.startswith("sqlite:") else None
        known = _ids(run.folder).get("mlflow")
        self._logger = MLFlowLogger(run.project, _name(run.folder), place, run_id=known, artifact_location=files)
        self._run, self.repeats = str(self._logger.run_id), known is None
        if known is None:
            self._logger.log_hyperparams(dict(run.config))
            _keep_id(run.folder, "mlflow", self._run)
        else:
            self._logger.experiment.update_run(self._run, status="RUNNING")

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._logger.log_metrics(dict(values), step)

    def picture(self, name: str, pixels: media.Pixels, step: int) -> None:
        rgb = pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels
        self._logger.experiment.log_image(self._run, rgb, key=name, step=step, synchronous=True)

    def animation(self, name: str, frames: Sequence[media.Pixels], step: int) -> None:
        with _as_file(name, frames, step) as path:
            self._logger.experiment.log_artifact(self._run, str(path), name)

    def close(self, finished: bool) -> None:
        self._logger.experiment.set_terminated(self._run, "FINISHED" if finished else "KILLED")


class Trackio(Outlet):
    """Trackio, which Lightning has no logger of; its variables TRACKIO_DIR, TRACKIO_SPACE_ID and so on count."""

    def __init__(self, run: Logged) -> None:
        import trackio

        known = _ids(run.folder).get("trackio")
        name = known or f"{_name(run.folder)}-{secrets.token_hex(4)}"
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self._run = trackio.init(run.project, name, resume="allow", config=dict(run.config), **quiet)
        self._image, self.repeats = trackio.Image, known is None
        if known is None:
            _keep_id(run.folder, "trackio", name)

    def metrics(self, values: Mapping[str, Any], step: int) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, name: str, pixels: media.Pixels, step: int) -> None:
        rgb = pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels
        self.metrics({name: self._image(rgb)}, step)

    def animation(self, name: str, frames: Sequence[media.Pixels], step: int) -> None:
        with _as_file(name, frames, step) as path:
            self.metrics({name: self._image(str(path))}, step)  # browsers play no GIF as a video

    def close(self, finished: bool) -> None:
        self._run.finish()


OUTLETS: dict[str, type[Outlet]] = {
    "tensorboard": TensorBoard, "csv": Csv, "wandb": Wandb, "mlflow": MLflow, "trackio": Trackio,
}  # fmt: skip


def check_usable(names: Collection[str]) -> None:
    """Raises ConfigError if one of these loggers cannot be used, before anything slow."""
    check_loggers(names)
    if "wandb" in names:
        Wandb.check_login()


class Outlets:
    """Several loggers at once. One that fails later ends with a warning, and the training goes on without it.

    Args:
        names: of the loggers.
        run: what they log.
        logged: (step, name) of the points after it that were logged before, which some loggers cannot drop; they are
            the same to the bit.

    Raises:
        ConfigError: one of them cannot begin.
    """

    def __init__(
        self,
        names: Iterable[str],
        run: Logged,
        logged: Collection[tuple[int, str]] = (),
    ) -> None:
        self._open: dict[str, Outlet] = {}
        self._logged = frozenset(logged)
        self._last = max((step for step, _ in logged), default=-1)
        for name in names:
            try:
                self._open[name] = OUTLETS[name](run)
            except Exception as error:  # services have errors of their own, which only they know
                self.close(finished=False)
                raise ConfigError(
                    f"logger={name} cannot begin: {reason(error)[:300]}; mend it, or leave it out"
                ) from error

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """One point of each of these curves."""

        def add(outlet: Outlet) -> None:
            fresh = {
                name: value for name, value in values.items() if outlet.repeats or (step, name) not in self._logged
            }
            if fresh:
                outlet.metrics(fresh, step)

        self._each(add)

    def picture(self, name: str, pixels: media.Pixels, step: int) -> None:
        """A picture (H, W, C)."""
        self._each(lambda outlet: outlet.picture(name, pixels, step), shown_at=step)

    def animation(self, name: str, frames: Sequence[media.Pixels], step: int) -> None:
        """Pictures that follow each other, as a GIF."""
        self._each(lambda outlet: outlet.animation(name, frames, step), shown_at=step)

    def close(self, finished: bool) -> None:
        """Ends all of them; nothing can be added any more."""
        self._each(lambda outlet: outlet.close(finished))
        self._open.clear()

    def _each(self, act: Callable[[Outlet], None], shown_at: int | None = None) -> None:
        for name, outlet in list(self._open.items()):
            if shown_at is not None and shown_at < self._last and not outlet.repeats:
                continue
            try:
                act(outlet)
            except Exception as error:  # a service that is out of reach must not end a training of hours
                del self._open[name]
                warnings.warn(f"logger={name} has failed and gets nothing more: {reason(error)[:300]}", stacklevel=2)


def _name(folder: Path) -> str:
    return f"{folder.absolute().parent.name}-{folder.name}"


def _ids(folder: Path) -> dict[str, str]:
    path = folder / IDS
    check_regular(path)
    if not path.exists():
        return {}
    found = strict.read(path)
    if not all(isinstance(number, str) for number in found.values()):
        raise ConfigError(f"{path} is damaged: remove it, and the run begins anew at each service")
    return found


def _keep_id(folder: Path, logger: str, number: str) -> None:
    with atomic(folder / IDS) as file:
        file.write(json.dumps(_ids(folder) | {logger: number}, indent=1).encode())


@contextmanager
def _as_file(name: str, frames: Sequence[media.Pixels], step: int) -> Iterator[Path]:
    """A GIF for services that take files."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}_{step}.gif")
        media.save_gif(path, frames)
        yield path
