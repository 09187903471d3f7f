"""The table that a sweep ends in, whatever process its runs are in, and how a sweep that was cut off goes on."""

import contextlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.scripts import TINY, Outcome, assert_refused, call

import train
from diffusion.training.sweep import Result, keep, table, tabled

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name", ["objective", "denoiser.mean", "schedule", "timesteps", "dataset/condition", "experiment"]
)
def test_the_table_of_a_sweep_ranks_no_losses_that_measure_different_things(name: str) -> None:
    losses = {("a", 1): 0.9, ("b", 1): 0.2, ("a", 2): 0.5, ("b", 2): None}
    runs: list[Result] = [
        Result({name: kind, "lr": lr}, f"run_{kind}{lr}", loss, "") for (kind, lr), loss in losses.items()
    ]
    _, *rows, last = table(runs).splitlines()
    assert [row.split()[1] for row in rows] == ["run_a2", "run_a1", "run_b1", "run_b2"]
    assert f"does not compare runs that differ in {name}: compare the scores" in last
    assert "python compare.py runs=[run_a1,run_b1,run_a2,run_b2] samplers=[own]" in last


def test_the_table_of_a_sweep_ranks_losses_that_compare() -> None:
    runs: list[Result] = [Result({"lr": lr}, f"run_{lr}", loss, "") for lr, loss in ((1, 0.9), (2, 0.2), (3, 0.5))]
    _, *rows = table(runs).splitlines()
    assert [row.split()[1] for row in rows] == ["run_2", "run_3", "run_1"]


def test_results_of_a_sweep_come_in_the_order_of_its_jobs_and_leave_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = {"lr": 0.5, "widths": [1, 2]}
    results = [Result(typed, "run_0", 0.5, ""), Result(typed, "-", None, "no memory"), Result(typed, "run_2", 0.25, "")]

    def launch() -> None:
        (tmp_path / "lightning_logs").mkdir()
        (tmp_path / "lightning_logs" / "multirun.yaml").touch()
        for number in (2, 0, 1):
            keep(results[number], number)

    assert tabled(launch, tmp_path / "lightning_logs")
    assert capsys.readouterr().out.splitlines() == table(results).splitlines()
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_ends_early_prints_the_results_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def launch() -> None:
        for number in range(2):
            keep(Result({"lr": number}, f"run_{number}", 0.5, ""), number)
        raise SystemExit(130)

    with pytest.raises(SystemExit):
        tabled(launch, tmp_path)
    assert "run_1" in capsys.readouterr().out


def test_a_sweep_over_seeds_says_how_its_runs_are_compared() -> None:
    runs = [Result({"seed": seed}, f"my runs/version_{seed}", 0.5, "") for seed in range(2)]
    last = table([*runs, Result({"seed": 2}, "-", None, "failed")]).splitlines()[-1]
    assert last.startswith("over seeds: ")
    assert last.endswith("python compare.py runs=['my runs/version_0','my runs/version_1'] samplers=[own]")


def rows(outcome: Outcome) -> list[list[str]]:
    """The table's rows in the order of their settings."""
    lines = outcome.out.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("val/loss "))
    return sorted((line.split() for line in lines[start + 1 :] if "version_" in line[:60]), key=lambda row: row[2])


@pytest.mark.slow
def test_a_sweep_that_was_cut_off_goes_on_with_the_same_table(tmp_path: Path) -> None:
    short = [word for word in TINY if not word.startswith(("trainer.max_steps", "val_every"))]
    sweep = (*short, "-m", "resume=auto", "trainer.max_steps=1,2", "preview_every=0", "val_every=1")
    whole = call(train, tmp_path, *sweep)
    assert whole.code == 0, whole.err
    runs = tmp_path / "lightning_logs" / "digits"
    times = {path: path.stat().st_mtime_ns for path in runs.glob("version_0/checkpoints/*")}
    shutil.rmtree(runs / "version_1")  # as if it had been cut off before the second run
    again = call(train, tmp_path, *sweep)
    assert again.code == 0, again.err
    assert rows(again) == rows(whole)
    assert len(rows(whole)) == 2
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert again.out.count("is finished at step") == 1
    assert len(list(runs.iterdir())) == 2


@pytest.mark.parametrize(
    ("choice", "package"),
    [("launcher=joblib", "hydra-joblib-launcher"), ("sweeper=optuna", "hydra-optuna-sweeper")],
)
def test_a_plugin_of_hydra_that_lacks_is_named_with_its_package(choice: str, package: str, tmp_path: Path) -> None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        pytest.skip(f"{package} {importlib.metadata.version(package)} is installed")
    assert_refused(call(train, tmp_path, "-m", f"hydra/{choice}", "lr=1,2"), f"pip install {package}")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_by_slurm_is_refused_where_slurm_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = call(train, tmp_path, "-m", "hydra/launcher=submitit_slurm", "lr=1,2")
    assert_refused(outcome, "hydra/launcher=submitit_slurm: there is no command srun", "submitit_local")
    assert list(tmp_path.iterdir()) == []


PLUGINS = {
    "joblib": ("hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=range(3)"]),
    "submitit": ("hydra_submitit_launcher", ["hydra/launcher=submitit_local", "seed=range(3)"]),
    "optuna": (
        "hydra_optuna_sweeper",
        ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=1", "lr=interval(1e-4,1e-2)"],
    ),
    "optuna and joblib": (
        "hydra_optuna_sweeper",
        [
            *("hydra/sweeper=optuna", "hydra/launcher=joblib", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=3"),
            *("hydra.sweeper.sampler.seed=1", "lr=interval(1e-4,1e-2)"),
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGINS)
def test_hydras_plugins_keep_the_table_and_go_on_after_a_cut(name: str, tmp_path: Path) -> None:
    module, arguments = PLUGINS[name]
    pytest.importorskip(f"hydra_plugins.{module}")
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "-m", "resume=auto", "preview_every=0", *arguments]

    def swept() -> list[str]:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        table = done.stdout[done.stdout.index("val/loss ") :].splitlines()
        return sorted(line for line in table[1:] if re.match(r"\d", line))

    first = swept()
    assert len(first) == 3
    shutil.rmtree(tmp_path / "lightning_logs" / "digits" / "version_2")
    assert swept() == first
    assert sorted(path.name for path in (tmp_path / "lightning_logs" / "digits").iterdir()) == [
        "version_0", "version_1", "version_2",
    ]  # fmt: skip
