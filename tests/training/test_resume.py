"""A run that is killed at any moment and resumed ends exactly as one that was never interrupted."""

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import kills as kills
from support.processes import (
    TINY,
    Run,
    assert_same_result,
    checkpoint,
    error_line,
    logged_steps,
    run_folder,
    same,
    table,
    train,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Accumulation, dropout, a learning rate that never stands still, two averages and their snapshots, of which older ones
# go: all that could go wrong at once.
HARD = [
    *TINY,
    "trainer.max_steps=14",
    "trainer.accumulate_grad_batches=2",
    "network.dropout=0.3",
    "learning_rate.decay=cosine",
    "optimizer=muon",
    "ema=power",
    "ema.snapshots=4",
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(folder, *HARD)
    return folder


def kill_at_random(folder: Path, chance: random.Random, steps: range, *arguments: str) -> None:
    """Kills a run at some moment after one of these steps."""
    step = chance.choice(steps)
    run = Run(folder, *arguments)
    run.until(lambda: logged_steps(folder) >= step)
    time.sleep(chance.random() * 0.1)
    run.kill()


def snapshots(folder: Path) -> dict[str, Any]:
    """The averaged weights that a run keeps, by file."""
    return {path.name: torch.load(path, weights_only=True) for path in (run_folder(folder) / "averages").iterdir()}


def assert_unbroken(folder: Path, last_step: int) -> None:
    """TensorBoard shows each step of each curve once, with the numbers of the table."""
    events = EventAccumulator(str(run_folder(folder)), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    # TensorBoard's cards are alphabetical: the losses come before what is watched beside them.
    assert sorted(events.Tags()["scalars"])[:3] == ["train/loss", "val/best_loss", "val/loss"]
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, last_step + 1))
    logged = [float(row["train/loss"]) for row in table(folder) if row["train/loss"]]
    assert [event.value for event in losses] == pytest.approx(logged, rel=1e-6)
    validated = [int(row["step"]) for row in table(folder) if row["val/loss"]]
    assert [event.step for event in events.Scalars("val/loss")] == validated
    assert [event.step for event in events.Images("val/samples")] == [*range(5, last_step, 5), last_step]


def test_killed_at_the_worst_moments(uninterrupted: Path, tmp_path: Path) -> None:
    assert Run(tmp_path, *HARD, before=kills.in_accumulation).wait() == -9
    assert Run(tmp_path, "resume=last", before=kills.in_validation).wait() == -9
    assert Run(tmp_path, "resume=last", before=kills.after_validation).wait() == -9
    assert checkpoint(tmp_path)["global_step"] == 8
    assert Run(tmp_path, "resume=last", before=kills.while_writing).wait() == -9
    assert list((run_folder(tmp_path) / "checkpoints").glob(".last.ckpt.*.part"))
    assert checkpoint(tmp_path)["global_step"] == 8
    assert Run(tmp_path, "resume=last", before=kills.between_best_and_last).wait() == -9
    assert checkpoint(tmp_path)["global_step"] == 9
    assert "best.ckpt at step 12" in train(tmp_path, *HARD, "resume=auto")
    assert_same_result(tmp_path, uninterrupted)
    assert same(snapshots(tmp_path), snapshots(uninterrupted))
    assert set(snapshots(tmp_path)) == {"4.pt", "8.pt", "12.pt"}
    assert_unbroken(tmp_path, 14)
    assert sorted(path.name for path in (run_folder(tmp_path) / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_stopped_by_signals(uninterrupted: Path, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM save after the step or the validation, and the run can go on as if nothing had been."""
    run = Run(tmp_path, *HARD, before=kills.ctrl_c_in_accumulation)
    assert run.wait() == 130
    assert checkpoint(tmp_path)["global_step"] == 5
    assert "Traceback" not in run.text()
    assert run.text().strip().splitlines()[-1] == f"saved; go on with: python train.py resume={run_folder(Path())}"
    assert "Stopped at step 5 of 14" in (run_folder(tmp_path) / "index.html").read_text()

    run = Run(tmp_path, "resume=last", before=kills.terminated_in_validation)
    assert run.wait() == 143
    assert checkpoint(tmp_path)["global_step"] == 8
    assert "Traceback" not in run.text()

    train(tmp_path, "resume=last")
    assert_same_result(tmp_path, uninterrupted)


def test_watching_changes_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    """Previews, scores, validation, checkpoints and logging do not touch the training's random numbers."""
    train(tmp_path, *HARD, "preview_every=0", "score_every=7", "val_every=5", "checkpoint_every=null", "log_every=7")
    scores = [row["val_score/frechet_random_n180"] for row in table(tmp_path)]
    assert [float(score) > 0 for score in scores if score] == [True] * 2
    for key in ("state_dict", "optimizer_states"):
        assert same(checkpoint(tmp_path)[key], checkpoint(uninterrupted)[key])


def test_killed_before_the_first_checkpoint(tmp_path: Path) -> None:
    arguments = [*TINY, "trainer.max_steps=20", "checkpoint_every=100", "val_every=100"]
    run = Run(tmp_path, *arguments)
    run.until(lambda: logged_steps(tmp_path) >= 2)
    run.kill()
    assert error_line(Run(tmp_path, "resume=last")).startswith("there is no run with a checkpoint")
    printed = train(tmp_path, *arguments, "resume=auto", "trainer.max_steps=3")
    assert f"run folder: {run_folder(Path(), 1)}" in printed


def test_more_steps_in_a_moved_folder(uninterrupted: Path, tmp_path: Path) -> None:
    """A finished run says so; with more steps it goes on, wherever its folder is now."""
    home = tmp_path / "elsewhere"
    shutil.copytree(run_folder(uninterrupted), home / "kept")
    before = (home / "kept" / "checkpoints" / "last.ckpt").read_bytes()
    assert "is finished at step 14; raise trainer.max_steps" in train(tmp_path, f"resume={home / 'kept'}")
    assert (home / "kept" / "checkpoints" / "last.ckpt").read_bytes() == before

    refused = error_line(Run(tmp_path, f"resume={home / 'kept'}", "lr=1e-3"))
    assert refused.startswith("a resumed run keeps its settings, so lr cannot change")

    train(tmp_path, f"resume={home / 'kept'}", "trainer.max_steps=16")
    assert not (tmp_path / "lightning_logs").exists()
    (tmp_path / "lightning_logs" / "digits").mkdir(parents=True)
    shutil.move(home / "kept", run_folder(tmp_path))
    assert checkpoint(tmp_path)["global_step"] == 16
    assert logged_steps(tmp_path) == 16


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_many_times(seed: int, tmp_path: Path) -> None:
    arguments = [*HARD, "trainer.max_steps=60", f"seed={seed}", "checkpoint_every=2", "preview_every=7"]
    train(tmp_path / "uninterrupted", *arguments)
    chance = random.Random(seed)
    kill_at_random(tmp_path / "killed", chance, range(3, 10), *arguments)
    for first in range(10, 60, 10):
        kill_at_random(tmp_path / "killed", chance, range(first, first + 10), "resume=last")
    train(tmp_path / "killed", "resume=last")
    assert_same_result(tmp_path / "killed", tmp_path / "uninterrupted")
