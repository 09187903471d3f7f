"""Two processes do what one does, and end together."""

import os
import random
import re
import signal
import socket
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from support.processes import (
    TINY,
    Run,
    assert_same_result,
    checkpoint,
    logged_steps,
    of_torchrun,
    run_folder,
    table,
    train,
)

TWO = [*TINY, "trainer.accumulate_grad_batches=2", "devices=2"]
# Timesteps are drawn by the history of the bound's terms, which the processes have to share.
BOUND = ["objective=vlb", "objective.history=1", "schedule=cosine", "timesteps=4"]


def assert_alone(folder: Path, seconds: float = 20) -> None:
    """No process of a run that was started in the folder is left."""
    end = time.monotonic() + seconds
    while left := [link for link in Path("/proc").glob("[0-9]*/cwd") if works_in(link, folder)]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def works_in(link: Path, folder: Path) -> bool:
    try:
        return link.readlink() == folder
    except OSError:  # it has ended meanwhile
        return False


def lines(run: Run) -> list[str]:
    return [line for line in run.text().splitlines() if line]


def assert_equal(two: Path, one: Path) -> None:
    """The same weights and losses to rounding, after ten steps."""
    ours, theirs = checkpoint(two), checkpoint(one)
    assert ours["global_step"] == theirs["global_step"] == 10
    assert ours["state_dict"]["objective.counts"].sum() == 10 * 2 * 16
    for name, value in theirs["state_dict"].items():
        assert torch.allclose(ours["state_dict"][name], value, rtol=1e-4, atol=1e-5), name
    for row, expected in zip(table(two), table(one), strict=True):
        for name, value in expected.items():
            assert float(row[name] or 0) == pytest.approx(float(value or 0), rel=1e-4), name


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """As torchrun starts them; one folder, and each line once."""
    one, two = tmp_path / "one", tmp_path / "two"
    ten = [*TWO, *BOUND, "trainer.max_steps=10"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs = [Run(two, *ten, before=partial(of_torchrun, rank, port), output=f"{rank}.txt") for rank in range(2)]
    train(one, *ten, "devices=1")
    assert [run.wait() for run in runs] == [0, 0], runs[0].text() + runs[1].text()
    assert_alone(two)
    assert len(set(lines(runs[0]))) == len(lines(runs[0]))
    assert "batches of 16 images, 8 on each of 2 devices" in runs[0].text()
    assert lines(runs[1]) == []
    assert [path.name for path in run_folder(two).parent.iterdir()] == ["version_0"]
    assert_equal(two, one)


@pytest.mark.slow
def test_two_processes_go_on_after_a_signal_as_one_does(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, *TWO, *BOUND, "devices=1", "trainer.max_steps=10")
    run = Run(two, *TWO, *BOUND, "trainer.max_steps=10")
    run.until(lambda: logged_steps(two) >= 5)
    run.signal(signal.SIGTERM)
    assert run.wait() == 143, run.text()
    assert_alone(two)
    assert "Traceback" not in run.text()
    assert len(set(lines(run))) == len(lines(run))
    assert "batches of 16 images, 8 on each of 2 devices" in run.text()
    step = checkpoint(two)["global_step"]
    assert 5 <= step < 10

    run = Run(two, "resume=last")
    assert run.wait() == 0, run.text()
    assert_alone(two)
    assert len(set(lines(run))) == len(lines(run))
    assert [path.name for path in run_folder(two).parent.iterdir()] == ["version_0"]
    assert_equal(two, one)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_two_processes_killed_and_resumed(seed: int, tmp_path: Path) -> None:
    """Bit for bit, with dropout, whichever of the processes is killed."""
    arguments = [*TWO, "trainer.max_steps=30", "network.dropout=0.3", f"seed={seed}"]
    train(tmp_path / "uninterrupted", *arguments)
    folder, chance = tmp_path / "killed", random.Random(seed)
    for steps in (range(4, 10), range(10, 20), range(20, 29)):
        run = Run(folder, *(arguments if steps.start == 4 else ["resume=last"]))
        step = chance.choice(steps)
        run.until(lambda step=step: logged_steps(folder) >= step)  # type: ignore[misc]
        time.sleep(chance.random() * 0.1)
        run.kill()
        assert_alone(folder)
    train(folder, "resume=last")
    assert_same_result(folder, tmp_path / "uninterrupted")


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_all_processes(tmp_path: Path) -> None:
    run = Run(tmp_path, *TWO, "trainer.max_steps=1000")
    run.until(lambda: logged_steps(tmp_path) >= 3)
    for link in Path("/proc").glob("[0-9]*/cwd"):
        if works_in(link, tmp_path):
            os.kill(int(link.parent.name), signal.SIGINT)
    assert run.wait() == 130, run.text()
    assert_alone(tmp_path)
    assert "Traceback" not in run.text()
    assert len(re.findall("finishing .*, then saving", run.text())) == 1
    assert 3 <= checkpoint(tmp_path)["global_step"] < 1000


@pytest.mark.slow
def test_ctrl_c_before_training_ends_all_processes(tmp_path: Path) -> None:
    run = Run(tmp_path, *TWO, "trainer.max_steps=1000")
    run.until(lambda: "run folder" in run.text())
    time.sleep(1)
    run.signal(signal.SIGINT)
    assert run.wait() == 130, run.text()
    assert_alone(tmp_path)
    assert lines(run)[-1] == "interrupted"


@pytest.mark.slow
def test_the_budget_gives_all_processes_the_same_steps(tmp_path: Path) -> None:
    run = Run(tmp_path, *TWO, "trainer.max_steps=null", "budget_minutes=0.1", "learning_rate.decay=linear")
    assert run.wait() == 0, run.text()
    assert_alone(tmp_path)
    steps = checkpoint(tmp_path)["config"]["trainer"]["max_steps"]
    assert checkpoint(tmp_path)["global_step"] == steps == logged_steps(tmp_path)
    assert len(set(lines(run))) == len(lines(run))
