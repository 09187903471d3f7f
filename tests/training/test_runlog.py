"""The table of a run: rows cost the same, a damaged table and a full disk are named in one line."""

import errno
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from diffusion.media import atomic
from diffusion.training.events import EventFile
from diffusion.training.logger import RunLogger, Table


def test_a_new_column_gets_a_place_in_all_rows(tmp_path: Path) -> None:
    table = Table(tmp_path / "metrics.csv")
    table.append({"step": "1", "a": "0.5"})
    table.append({"step": "2", "b": "0.25"})
    table.append({"step": "3", "a": "1.0", "b": "2.0"})
    assert table.path.read_text().split() == ["step,a,b", "1,0.5,", "2,,0.25", "3,1.0,2.0"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_row_is_appended_without_reading_the_ones_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(tmp_path / "metrics.csv")
    table.append({"step": "1", "a": "0.5"})
    monkeypatch.setattr(Table, "_read", lambda self: pytest.fail("the table was read"))
    monkeypatch.setattr(Table, "_write", lambda self, rows: pytest.fail("the table was written again"))
    for step in range(2, 100):
        table.append({"step": str(step), "a": "0.5"})
    assert len(table.path.read_text().splitlines()) == 100
    assert not [value for value in vars(table).values() if isinstance(value, list) and len(value) > 2]


def test_a_resumed_table_is_the_uninterrupted_one_to_the_byte(tmp_path: Path) -> None:
    rows = [{"step": "1", "a": "0.5"}, {"step": "2", "b": "0.25"}, {"step": "3", "a": "1.0", "c": "2.0"}]
    whole = Table(tmp_path / "whole.csv")
    for row in rows:
        whole.append(row)
    for step in range(4):
        broken = tmp_path / f"{step}.csv"
        broken.write_bytes(whole.path.read_bytes() + b"4,0.")
        resumed = Table(broken, resumed_from=step)
        for row in rows[step:]:
            resumed.append(row)
        assert broken.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        b"step,a\n1,0.5\nx,0.25\n",
        b"step,a\n1,0.5\n2,red\n",
        b"step,a\n1,0.5,7\n",
        b"step,a\n1\n",
        b"a,b\n1,2\n",
        b"\xff\xfe\x00",
        b"step,a\n1,\xff\n",
        b"step,a\n1,0\x00\n",
        b'step,a\n1,"0.5\n',
        b"no table",
        b"step,a\n-1,0.5\n",
    ],
)
def test_a_damaged_table_is_named_in_one_line_and_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged near line \d") as error:
        RunLogger(tmp_path, resumed_from=2)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_event_files_are_named_by_the_second_in_which_they_begin(tmp_path: Path) -> None:
    began = time.time()
    seconds = EventFile(tmp_path).path.name.split(".")[3]
    assert int(began) <= int(seconds) <= time.time()


def test_a_full_disk_under_the_event_file_is_an_error_of_the_caller(tmp_path: Path) -> None:
    events = EventFile(tmp_path)

    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    events._records._writer = Full()
    with pytest.raises(
        atomic.WriteError, match=r"^cannot write .*events\.out\.\S+: No space left on device; free some"
    ):
        events.add_scalar("a", 1.0, 1)


def test_the_table_of_runs_begins_with_the_settings_that_people_compare_and_ends_in_losses_and_scores(
    tmp_path: Path,
) -> None:
    logger = RunLogger(tmp_path)
    logger.log_metrics({"val_score/coverage_random_n256": 0.5}, step=1)
    settings = {
        "accelerator": "cpu",
        "network": {"_target_": "diffusion.networks.unet.UNet", "widths": [8, 16]},
        "lr": 0.1,
    }
    logger.log_result(settings | {"clip": True}, {"val/best_loss": 0.5}, 1, ["versus_test/frechet_random_n2000"])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = {
        tag: events.SummaryMetadata(tag).plugin_data.content
        for tag in (metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG)
    }
    experiment = metadata.parse_experiment_plugin_data(found[metadata.EXPERIMENT_TAG])
    # TensorBoard's own order.
    shown = sorted(experiment.hparam_infos, key=lambda info: (not info.differs, info.name))
    assert [info.name for info in shown] == ["lr", "network", "network.widths", "accelerator", "clip"]
    assert [info.name.tag for info in experiment.metric_infos] == [
        *("val/loss", "val/best_loss", "val_score/coverage_random_n256", "versus_test/frechet_random_n2000")
    ]
    values = metadata.parse_session_start_info_plugin_data(found[metadata.SESSION_START_INFO_TAG]).hparams
    assert (values["network"].string_value, values["lr"].number_value) == ("UNet", 0.1)


def test_a_vanished_folder_is_named(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "run")
    logger.log_metrics({"a": 1.0}, step=1)
    for file in (tmp_path / "run").iterdir():
        file.unlink()
    (tmp_path / "run").rmdir()
    with pytest.raises(atomic.WriteError, match=r"cannot write .*metrics\.csv: No such file"):
        logger.log_metrics({"a": 1.0}, step=2)


def test_two_writers_of_one_file_each_write_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "x.gif"
    with atomic.atomic(path) as one:
        one.write(b"one")
        with atomic.atomic(path) as two:
            two.write(b"two")
        assert path.read_bytes() == b"two"
    assert path.read_bytes() == b"one"
    assert [file.name for file in tmp_path.iterdir()] == ["x.gif"]


@pytest.mark.parametrize("where", ["os.fsync", "os.replace"])
def test_a_failed_write_names_the_path_and_leaves_what_was_there(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "settings.json"
    path.write_text("old")

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(where, fail)
    with (
        pytest.raises(atomic.WriteError, match=r"^cannot write .*settings\.json: No space left"),
        atomic.atomic(path) as file,
    ):
        file.write(b"new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["settings.json"]


def test_a_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 125 + ".png")
    with atomic.atomic(path) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"


def test_parts_of_killed_writers_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".metrics.csv.0a.part").touch()
    (tmp_path / ".metrics.json.0a.part").touch()
    atomic.remove_parts(tmp_path, "metrics.csv")
    assert [file.name for file in tmp_path.iterdir()] == [".metrics.json.0a.part"]
    atomic.remove_parts(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_table_whose_rows_were_all_dropped_is_no_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    Table(path).append({"step": "50", "loss": "1"})
    for _ in range(2):  # killed again before it logged anything
        table = Table(path, resumed_from=30)
    table.append({"step": "31", "loss": "2"})
    assert path.read_text().split() == ["step,loss", "31,2"]
