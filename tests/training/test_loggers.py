"""Loggers beside the run's own files: the same course, pictures included, unbroken over a resume."""

import csv
import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from support.scripts import TINY, assert_refused, call
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

import train
from diffusion.build import ConfigError
from diffusion.settings.training import LOGGERS
from diffusion.training import outlets
from diffusion.training.logger import RunLogger
from diffusion.training.outlets import OUTLETS, Logged, Outlet, Outlets

ROOT = Path(__file__).parents[2]
PIXELS = np.zeros((4, 4, 1), np.uint8)
SHORT = ("preview_every=2", "checkpoint_every=2")


class Notes(Outlet):
    """An outlet that remembers what it was given."""

    seen: ClassVar[list[tuple[Any, ...]]] = []
    begins_anew = True
    broken = False

    def __init__(self, run: Logged) -> None:
        if self.broken:
            raise RuntimeError("no route\nto host")
        self.repeats = self.begins_anew
        self.seen.append(("begun", run.project, run.resumed_from))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.seen.append((step, *sorted(values)))

    def picture(self, name: str, pixels: Any, step: int) -> None:
        self.seen.append((step, "picture"))

    def animation(self, name: str, frames: Sequence[Any], step: int) -> None:
        if not frames:
            raise OSError("the service is gone")
        self.seen.append((step, "animation"))

    def close(self, finished: bool) -> None:
        self.seen.append(("closed", finished))


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> type[Notes]:
    monkeypatch.setitem(OUTLETS, "wandb", Notes)
    monkeypatch.setattr(outlets, "check_loggers", lambda names: None)
    monkeypatch.setattr("diffusion.settings.training.check_loggers", lambda names: None)
    monkeypatch.setattr(outlets.Wandb, "check_login", lambda: None)
    monkeypatch.setattr(Notes, "seen", [])
    monkeypatch.setattr(Notes, "broken", False)
    return Notes


def test_every_logger_that_a_setting_names_exists() -> None:
    assert OUTLETS.keys() == LOGGERS.keys()


def test_a_logger_that_keeps_what_it_has_gets_no_point_twice(tmp_path: Path, notes: type[Notes]) -> None:
    logged = [(3, "a"), (3, "b"), (4, "a")]
    for anew in (True, False):
        notes.begins_anew = anew
        notes.seen.clear()
        some = Outlets(["wandb"], Logged(tmp_path, "p", {}, 2), logged)
        some.metrics({"a": 1.0, "b": 2.0}, 3)
        some.picture("x", PIXELS, 3)
        some.metrics({"a": 1.0, "b": 2.0}, 4)
        some.picture("x", PIXELS, 4)
        some.metrics({"a": 1.0}, 5)
        whole = [(3, "a", "b"), (3, "picture"), (4, "a", "b"), (4, "picture"), (5, "a")]
        assert notes.seen[1:] == (whole if anew else [(4, "b"), (4, "picture"), (5, "a")])


def test_a_logger_that_fails_on_the_way_ends_with_a_warning_and_the_others_go_on(
    tmp_path: Path, notes: type[Notes]
) -> None:
    some = Outlets(["wandb", "csv"], Logged(tmp_path, "p", {}, None))
    with pytest.warns(UserWarning, match="logger=wandb has failed and gets nothing more: the service is gone"):
        some.animation("x", [], 1)  # csv cannot write it either
    some.metrics({"a": 1.0}, 1)
    some.close(finished=True)
    assert notes.seen == [("begun", "p", None)]


def test_a_logger_that_cannot_begin_is_refused_in_one_line_and_leaves_no_folder(
    tmp_path: Path, notes: type[Notes]
) -> None:
    notes.broken = True
    outcome = call(train, tmp_path, *TINY, "logger=[csv,wandb]")
    assert outcome.code == 1
    assert outcome.err == "error: logger=wandb cannot begin: no route; mend it, or leave it out\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("loggers.json", b"[1"),
        ("loggers.json", b'{"mlflow": 3}'),
        ("csv/metrics.csv", b"\xff\x00,step\nx,y\n"),
        ("csv/metrics.csv", b"step,a\nnan,1\n"),
        ("csv/metrics.csv", b"a\n1\n"),
    ],
)
def test_a_damaged_file_of_a_logger_is_named_and_changes_nothing(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / name).write_bytes(content)
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,0.5\n9,0.5\n")
    logger = "csv" if name.startswith("csv") else "mlflow"
    with pytest.raises(ConfigError, match=f"logger={logger} cannot begin: .*{Path(name).name}"):
        RunLogger(tmp_path, 1, lambda logged: Outlets([logger], Logged(tmp_path, "p", {}, 1), logged))
    assert not list(tmp_path.glob("events.*"))
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["logger=wandbb"], "logger must be tensorboard, csv, wandb, mlflow, trackio, or a list of these"),
        (["logger=[csv,csv]"], "logger must name each once"),
        (["logger=mlflow", "project=''"], "project is empty"),
        (["project=mine"], "project= does nothing for runs that no service collects"),
        (["logger=csv", "project=mine"], "add logger=wandb, mlflow or trackio"),
    ],
)
def test_a_logger_that_does_not_exist_is_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    assert_refused(call(train, tmp_path, *arguments), said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_package_that_lacks_is_named_before_anything_begins(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    outcome = call(train, tmp_path, f"logger={name}")
    assert_refused(outcome, f"logger={name} needs the package {name}: pip install {name}")
    assert list(tmp_path.iterdir()) == []


def table(path: Path) -> dict[tuple[int, str], float]:
    """Every figure of a CSV file, but for what depends on the clock."""
    with path.open(newline="") as file:
        return {
            (int(row["step"]), name): float(value)
            for row in csv.DictReader(file)
            for name, value in row.items()
            if value and name not in ("step", "watch/images_per_s")
        }


def curves(folder: Path) -> dict[tuple[int, str], float]:
    """Every point of TensorBoard's curves, but for what depends on the clock and the run's settings."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    return {
        (event.step, tag): event.value
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
        if tag != "watch/images_per_s"
    }


@pytest.mark.slow
def test_tensorboard_and_csv_have_the_whole_course_with_its_pictures_also_after_a_resume(tmp_path: Path) -> None:
    both = ("logger=[tensorboard,csv]", *SHORT)
    assert call(train, tmp_path, *TINY, *both).code == 0
    cut = call(train, tmp_path, *TINY, *both, "trainer.max_steps=2")
    assert cut.code == 0, cut.err
    place = tmp_path / "lightning_logs" / "digits"
    with (place / "version_1" / "csv" / "metrics.csv").open("a") as file:
        file.write("\n")  # a run that was killed can leave anything after its last checkpoint
    resumed = call(train, tmp_path, "resume=lightning_logs/digits/version_1", "trainer.max_steps=4")
    assert resumed.code == 0, resumed.err
    for run in (place / "version_0", place / "version_1"):
        own = table(run / "metrics.csv")
        final = {key: value for key, value in table(run / "csv" / "metrics.csv").items() if "best_loss" not in key[1]}
        assert final == own
        seen = {key: value for key, value in curves(run / "tensorboard").items() if "best_loss" not in key[1]}
        assert seen == pytest.approx(own)
        events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0}).Reload()
        assert [event.step for event in events.Images("val/samples")] == [2, 4]
        assert events.Images("val/denoising")[0].encoded_image_string[:4] == b"GIF8"
        settings = events.PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
        assert metadata.parse_session_start_info_plugin_data(settings).hparams["batch_size"].number_value == 16
        with Image.open(run / "csv" / "val" / "denoising_4.gif") as animation:
            assert animation.n_frames > 2
        assert (run / "csv" / "val" / "samples_2.png").exists()
    assert table(place / "version_0" / "metrics.csv") == table(place / "version_1" / "metrics.csv")


# --- the packages that are extras -------------------------------------------------------------------------------------


def cut_and_resumed(name: str, folder: Path, environment: Mapping[str, str]) -> Path:
    """A run of four steps by two commands, as its user would type them, with this logger."""
    for arguments in (
        [*TINY, f"logger={name}", "project=mine", "trainer.max_steps=2", *SHORT],
        ["resume=last", "trainer.max_steps=4"],
    ):
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            cwd=folder,
            env={**os.environ, "HOME": str(folder), **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "has failed" not in done.stderr
    return folder / "lightning_logs" / "digits" / "version_0"


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file, which has the layout of LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole = (b"" if kind in (1, 2) else whole) + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(whole)


@pytest.mark.slow
def test_wandb_offline_has_one_run_with_each_point_once_and_the_pictures(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = cut_and_resumed("wandb", tmp_path, {"WANDB_MODE": "offline"})
    files = sorted(run.rglob("*.wandb"))
    assert len(files) == 2
    number = json.loads((run / "loggers.json").read_text())["wandb"]
    points: dict[tuple[int, str], Any] = {}
    for file in files:
        for record in wandb_records(file):
            if record.HasField("run") and record.run.run_id:
                assert (record.run.run_id, record.run.project) == (number, "mine")
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            step = row.get("trainer/global_step")
            for key, value in row.items():
                if key[0] != "_" and key not in ("trainer/global_step", "watch/images_per_s"):
                    assert (step, key) not in points
                    points[step, key] = value
    pictures = {key: points.pop(key) for key in list(points) if key[1] in ("val/samples", "val/denoising")}
    assert set(pictures) == {(step, name) for step in (2, 4) for name in ("val/samples", "val/denoising")}
    assert len(list(run.glob("wandb/**/*.gif"))) == len(list(run.glob("wandb/**/*.png"))) == 2
    own = table(run / "metrics.csv")
    assert {key: value for key, value in points.items() if "best_loss" not in key[1]} == pytest.approx(own)


@pytest.mark.slow
def test_wandb_without_a_login_is_refused_before_anything_begins(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *TINY, "logger=wandb"],
        cwd=tmp_path,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("WANDB")}, "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "logger=wandb has no login" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("store", ["database", "files"])
def test_mlflow_has_one_run_with_each_point_once_and_the_pictures(store: str, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    place = f"file:{tmp_path}/mlruns" if store == "files" else f"sqlite:///{tmp_path}/lightning_logs/mlflow.db"
    environment = {} if store == "database" else {"MLFLOW_TRACKING_URI": place, "MLFLOW_ALLOW_FILE_STORE": "true"}
    run = cut_and_resumed("mlflow", tmp_path, environment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        client = MlflowClient(place)
        (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
        assert found.info.run_id == json.loads((run / "loggers.json").read_text())["mlflow"]
        assert (found.info.status, found.info.run_name) == ("FINISHED", "digits-version_0")
        assert found.data.params["batch_size"] == "16"
        points = [
            ((metric.step, name), metric.value)
            for name in found.data.metrics
            for metric in client.get_metric_history(found.info.run_id, name)
            if name != "watch/images_per_s" and "best_loss" not in name
        ]
        assert len(points) == len(dict(points))
        assert dict(points) == pytest.approx(table(run / "metrics.csv"))
        names = [file.path for file in client.list_artifacts(found.info.run_id, "val/denoising")]
        assert names == ["denoising/denoising_2.gif", "denoising/denoising_4.gif"]
        assert sum("samples" in file.path for file in client.list_artifacts(found.info.run_id, "images")) >= 2


TRACKIO = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
(name,) = SQLiteStorage.get_runs("mine")
print(json.dumps([name, SQLiteStorage.get_logs("mine", name), SQLiteStorage.get_run_config("mine", name)], default=str))
"""


@pytest.mark.slow
def test_trackio_has_one_run_with_each_point_once_and_the_pictures(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    run = cut_and_resumed("trackio", tmp_path, environment)
    read = subprocess.run(
        [sys.executable, "-c", TRACKIO], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert read.returncode == 0, read.stderr
    name, rows, config = json.loads(read.stdout.splitlines()[-1])
    assert name == json.loads((run / "loggers.json").read_text())["trackio"]
    assert config["batch_size"] == 16
    others = ("watch/images_per_s", "val/best_loss", "val/samples", "val/denoising")
    points = [
        ((row["step"], key), value) for row in rows for key, value in row.items() if "/" in key and key not in others
    ]
    assert len(points) == len(dict(points))
    assert dict(points) == pytest.approx(table(run / "metrics.csv"))
    assert [row["step"] for row in rows if "val/samples" in row] == [2, 4]
    assert [row["step"] for row in rows if "val/denoising" in row] == [2, 4]
    kinds = {row["val/denoising"]["_type"] for row in rows if "val/denoising" in row}
    assert kinds == {"trackio.image"}  # a browser shows a GIF as an image, and plays none as a video
    assert list((tmp_path / "trackio").rglob("*.gif"))
