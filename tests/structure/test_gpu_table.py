"""`make gpu`: its table, what it installs, and a part of it on the CPU."""

import os
import re
import subprocess
import sys
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import gpu
import gpu_rows
import pytest
from gpu import Row, Table
from gpu_rows import MODELS, Rows, composed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return Rows("cpu", tmp_path, None)


def test_a_row_that_fails_is_one_line_and_the_others_go_on() -> None:
    def broken() -> str:
        raise RuntimeError("tensors\nerror: on two devices")

    table = Table("cpu", 60)
    table.measure("one", broken)
    table.measure("two", lambda: "well")
    assert [row[:2] for row in table.rows] == [("one", "failed: RuntimeError: on two devices"), ("two", "well")]
    assert table.failed == 1
    assert [line.split()[0] for line in table.text().splitlines()] == ["what", "one", "two"]


def test_what_does_not_fit_into_the_time_is_skipped_by_name_and_is_no_failure() -> None:
    table = Table("cpu", 5)
    table.measure("long", lambda: "well", needs_s=10)
    table.measure("short", lambda: "well", needs_s=1)
    assert [row[:2] for row in table.rows] == [("long", "skipped: no time left"), ("short", "well")]
    assert table.failed == 0


def test_a_row_is_stopped_when_the_time_is_up() -> None:
    table = Table("cpu", 0.1)
    table.measure("endless", lambda: str(time.sleep(10)))
    table.measure("later", lambda: "well")
    assert [row[:2] for row in table.rows] == [
        ("endless", "stopped: the time was up"),
        ("later", "skipped: no time left"),
    ]
    assert (table.failed, table.skipped) == (0, 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_row_that_hangs_is_stopped_also_in_a_finalizer_and_is_a_failure() -> None:
    class Slow:
        def __del__(self) -> None:
            time.sleep(0.2)

    def hanging() -> str:
        Slow()
        return str(time.sleep(10))

    table = Table("cpu", 60)
    table.measure("hanging", hanging, needs_s=0.01)
    assert table.rows[0][:2] == ("hanging", "stopped: it took more than 0 s")
    assert table.failed == 1


def test_rows_are_measured_in_processes_beside_each_other_and_one_that_dies_fails() -> None:
    table = Table("cpu", 60)
    well, wrong, dead = (partial(str, "well"), partial(int, "x"), partial(os._exit, 3))
    lanes = [[Row("one", well, 1.0), Row("two", wrong, 1.0)], [Row("three", dead, 1.0), Row("four", well, 1.0)]]
    table.measure_beside(lanes)
    found = {name: result for name, result, *_ in table.rows}
    assert found["one"] == "well"
    assert found["two"].startswith("failed: ValueError: invalid literal")
    assert found["three"].startswith("failed: BrokenProcessPool")
    assert found["four"].startswith("failed: BrokenProcessPool")
    assert table.failed == 3


def test_a_device_that_answers_no_more_is_asked_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("cpu", 60)
    monkeypatch.setattr(table, "_answers", lambda: False)
    table.measure("one", partial(int, "x"))
    table.measure("two", lambda: "well")
    assert table.rows[1][1] == "failed: the device answers no more since the failure above"
    assert table.failed == 2


def test_every_row_is_measured_once_after_what_it_needs_on_many_cores_too(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = list(rows.all())
    assert rows.parts(every) == (every, [], [])
    rows.small, rows.photos, rows.fashion_dir = False, Path(), None
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    first, lanes, last = rows.parts(every)
    names = [row.name for row in (*first, *(row for lane in lanes for row in lane), *last)]
    assert sorted(names) == sorted(row.name for row in every)
    assert not any("throughput" in row.name for lane in lanes for row in lane)
    for name, needed in gpu_rows.NEEDED.items():
        lane = next(([row.name for row in lane] for lane in lanes if needed in [row.name for row in lane]), [])
        assert lane.index(needed) < lane.index(name)


def test_a_machine_without_a_gpu_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match=r"^error: PyTorch finds no CUDA device .* --device cpu$"):
        gpu.main()


@pytest.mark.parametrize("option", ["--wheels", "--data-dir"])
def test_a_folder_that_is_not_there_is_refused_in_one_line(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", option, "nowhere"])
    with pytest.raises(SystemExit, match=f"^error: {option}=nowhere is no folder$"):
        gpu.main()


def test_packages_that_are_missing_are_found_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.missing() == []
    there = metadata.version

    def version(name: str) -> str:
        if name == "hydra-core":
            raise metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(metadata, "version", version)
    assert gpu.missing() == ["hydra-core>=1.3.2,<1.4"]


def test_packages_without_a_wheel_are_named_and_the_others_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def pip(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command[-4:])
        found = command[-1] == "there>=2"
        return SimpleNamespace(returncode=0 if found else 1, stderr="" if found else "note: a\nERROR: none found\n")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(gpu, "missing", lambda: ["missing>=1", "there>=2"])
    failures = gpu.install(["missing>=1", "there>=2"], str(tmp_path))
    assert failures == ["pip cannot install missing>=1 (ERROR: none found)"]
    assert asked == [["--no-index", "--find-links", str(tmp_path), name] for name in ("missing>=1", "there>=2")]


def test_every_experiment_has_a_row_and_classifiers_come_after_what_they_steer(rows: Rows) -> None:
    names = [row.name for row in rows.all()]
    assert len(set(names)) == len(names)
    assert {path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml")} <= set(names)
    for first, then in (
        ("fast_fashion", "classifier_fashion"),
        ("autoencoder_fashion", "latent_fashion"),
        ("cascade_base", "cascade_sr"),
        ("fast_digits", "few_step"),
        ("fast_digits", "few_step_matching"),
    ):
        assert names.index(first) < names.index(then)


def test_throughput_is_that_of_the_command_and_of_the_bare_step(rows: Rows) -> None:
    words = rows.throughput("digits", "fp32").split()
    command, bare = (float(words[index].strip(",").replace(",", "")) for index in (1, 6))
    assert words[0] == "train.py"
    assert command > 0
    assert bare > 0


def test_bare_gz_files_of_fashion_mnist_are_read_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "train-images-idx3-ubyte.gz").write_bytes(b"first")
    monkeypatch.setattr(gpu_rows, "Fashion", lambda data_dir, **_: SimpleNamespace(load=lambda: found.append(data_dir)))
    found: list[Path] = []
    assert Rows("cpu", tmp_path, str(files)).fashion_dir == found[0]
    assert (found[0] / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz").read_bytes() == b"first"


@pytest.mark.parametrize(
    ("settings", "here"),
    [
        (["experiment=tutorial_cifar"], None),
        (["experiment=fast_mnist"], None),
        (["experiment=flow"], None),
        (["experiment=flow"], Path("fashion")),
        *((MODELS[name][1], None) for name in MODELS),
    ],
)
def test_data_that_are_not_here_are_replaced_without_another_network(
    settings: list[str], here: Path | None, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_rows, "find_spec", lambda name: None)
    rows.fashion_dir = here
    named = composed(*settings)
    replaced = composed(*settings, *rows._data(named))
    assert replaced.network._target_ == named.network._target_
    assert replaced.network.get("widths") == named.network.get("widths")
    assert replaced.network.get("attention") == named.network.get("attention")
    assert replaced.dataset.name in ("folder", "digits", "fashion")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fast_digits_cond", "tutorial_cifar", "fast_mnist"])
def test_an_experiment_trains_draws_and_is_scored_on_data_that_are_here(rows: Rows, name: str) -> None:
    assert rows.experiment(name) == "trained, drew, was scored"


@pytest.mark.slow
def test_likelihoods_and_a_steering_classifier_have_their_rows(rows: Rows) -> None:
    rows.experiment("learned_variance")
    for kind in ("vlb", "ode"):
        assert "bits" in rows.likelihood(kind)
    rows.experiment("fast_digits")
    assert rows.experiment("classifier_digits") == "trained, steered another model"


def test_a_recipe_whose_images_are_not_here_is_not_measured(rows: Rows) -> None:
    rows.data_dir = str(rows.folder)
    assert rows.recipe("gpu_cifar") == "not measured: the images of dataset=cifar are not here"


@pytest.mark.slow
def test_a_recipe_is_trained_whole_and_scored(rows: Rows) -> None:
    found = rows.recipe("gpu_fashion")
    if found.startswith("not measured"):
        pytest.skip(found)
    assert re.fullmatch(r"the command \d+ s, frechet_\w+_n95 [\d.]+, frechet_\w+_n95 [\d.]+, aims .*", found)


@pytest.mark.slow
def test_a_gif_and_compiled_steps_have_their_rows(rows: Rows) -> None:
    assert rows.gif().endswith(" s (aim: 4 s of sampling)")
    assert "images/s (a prototype 9,080)" in rows.compiled("fashion")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fashion", "fast_fashion", "cifar"])
def test_throughput_is_measured_in_bfloat16_on_data_that_are_here(rows: Rows, model: str) -> None:
    assert "images/s, bare step" in rows.throughput(model, "bf16")


def test_a_model_that_has_not_been_trained_is_asked_for_by_name(rows: Rows) -> None:
    with pytest.raises(ValueError, match="experiment=autoencoder_fashion has to come first"):
        rows.experiment("latent_fashion")
