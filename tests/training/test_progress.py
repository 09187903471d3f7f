"""How far something slow is, and how long it still takes."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.scripts import TINY, call
from tqdm import tqdm

import train
from diffusion.terminal import progress
from diffusion.terminal.progress import counted, times_left
from diffusion.terminal.streams import draws_bars
from diffusion.training import callbacks
from diffusion.training.callbacks import AfterStep, Progress


def test_a_number_agrees_with_its_noun() -> None:
    assert [counted(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    assert [counted(n, noun) for n in (1, 3) for noun in ("class", "batch")] == [
        *("1 class", "1 batch"),
        *("3 classes", "3 batches"),
    ]


@pytest.mark.parametrize("every", [0, 1, 3, 4, 10])
@pytest.mark.parametrize("last", [1, 4, 9, 12])
def test_what_happens_every_few_steps_and_at_the_last_is_counted(every: int, last: int) -> None:
    for step in range(last + 1):
        due = [k for k in range(step + 1, last + 1) if every and (k % every == 0 or k == last)]
        assert times_left(step, last, every) == len(due)


class Clock:
    """Time that only passes when it is asked to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(progress, "time", clock)
        monkeypatch.setattr(callbacks, "time", clock)


def test_a_log_gets_a_line_every_so_often_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with progress.progress(100, "step", "sampling") as advance:
        for _ in range(100):
            clock.now += 1
            advance(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "sampling: 30 of 100 steps, 1 min 10 s left",
        "sampling: 60 of 100 steps, 40 s left",
        "sampling: 90 of 100 steps, 10 s left",
    ]


def running(*callbacks_: AfterStep) -> tuple[Any, Any]:
    """What `Progress` asks of a trainer and a module: 100 steps of four images, 720 validation images every 50."""
    trainer = SimpleNamespace(
        max_steps=100,
        global_step=0,
        is_global_zero=True,
        limit_val_batches=1.0,
        num_val_batches=[30],
        callbacks=list(callbacks_),
        datamodule=SimpleNamespace(splits=SimpleNamespace(val=range(720)), eval_batch_size=24),
    )
    module = SimpleNamespace(
        images_per_step=4,
        last_loss=torch.tensor(0.5),
        device=torch.device("cpu"),
        training=True,
        eval=lambda: None,
        train=lambda mode: None,
    )
    return trainer, module


def test_a_bar_of_training_shows_the_time_left_with_validation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, shown = Clock(monkeypatch), Progress(50)
    trainer, module = running(shown)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown.on_train_start(trainer, module)
    for step in range(1, 11):
        clock.now += 1
        shown.after_step(trainer, module, step)
    shown.teardown(trainer, module, "fit")
    assert "3 min 30 s left, loss 0.5000, 4 images/s" in capsys.readouterr().err


def test_what_is_said_of_an_interruption_begins_below_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Clock(monkeypatch)
    shown = Progress(50)
    trainer, module = running(shown)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown.on_train_start(trainer, module)
    shown.on_exception(trainer, module, KeyboardInterrupt())
    assert capsys.readouterr().err.endswith("\n")


def test_a_terminal_of_no_width_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2)
    for columns, bars in ((0, False), (80, True)):
        monkeypatch.setattr("os.get_terminal_size", lambda _, columns=columns: os.terminal_size((columns, 24)))
        assert draws_bars() is bars


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_bar_of_training_shows_steps_and_time_left_on_a_narrow_terminal_too(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, shown = Clock(monkeypatch), Progress(50)
    trainer, module = running(shown)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(callbacks, "columns", lambda: width)
    monkeypatch.setattr(callbacks, "tqdm", lambda dynamic_ncols, **options: tqdm(ncols=width, **options))
    shown.on_train_start(trainer, module)
    for step in range(1, 11):
        clock.now += 1
        shown.after_step(trainer, module, step)
    last = capsys.readouterr().err.rpartition("\r")[2]
    shown.teardown(trainer, module, "fit")
    assert "10/100" in last
    assert "3 min 30 s left" in last
    assert len(last.rstrip()) <= width


def test_the_time_left_counts_validation_and_previews(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps take 1 s, validations 60 s and then 90 s, and a preview every 20 steps 8 s and then 10 s."""
    clock = Clock(monkeypatch)
    watcher, shown = AfterStep(), Progress(50, line_every_s=0.5)
    watcher.every, watcher.images = 20, 96
    trainer, module = running(watcher, shown)
    shown.on_train_start(trainer, module)

    def left() -> str:
        return capsys.readouterr().out.rpartition(", ")[2].strip()

    clock.now += 1
    shown.after_step(trainer, module, 1)
    # Only steps were seen so far: 720 and 96 images of a third of 1/4 s each, two validations and five previews.
    assert left() == f"{progress.duration(99 + 2 * 60 + 5 * 8)} left"
    clock.now += 19
    with watcher.aside(module):
        clock.now += 10
    shown.after_step(trainer, module, 20)
    assert left() == f"{progress.duration(80 + 2 * 60 + 4 * 10)} left"
    clock.now += 30
    shown.after_step(trainer, module, 50)  # its validation is still to come
    assert left() == f"{progress.duration(50 + 2 * 60 + 3 * 10)} left"
    shown.on_validation_start(trainer, module)
    for _ in range(30):
        clock.now += 3
        shown.on_validation_batch_end()
    shown.on_validation_end(trainer, module)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "validation: 1 of 30 batches, 1 min 27 s left"
    assert len(lines) == 29
    clock.now += 50
    shown.after_step(trainer, module, 100)
    assert left() == "1 min 30 s left"


def test_a_run_of_one_step_is_announced_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion.training.estimate.step_seconds", lambda *args, **kwargs: 100.0)
    outcome = call(train, tmp_path, *TINY, "trainer.max_steps=1", "accelerator=cpu", "preview_every=0")
    assert outcome.code == 0, outcome.err
    # A validation of 32 images takes a third of two steps.
    assert "estimated time: 2 min 47 s for 1 step (100 s each), validation included\n" in outcome.out


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress(4, "step", "sampling") as advance:
        advance(2)
    assert "sampling:   0%" in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "images"), [(None, 100), (0, 0), (2, 48), (9, 100), (0.5, 48), (1.0, 100), (0.1, 0)])
def test_the_images_of_a_limited_validation_are_counted_as_lightning_does(
    limit: int | float | None, images: int
) -> None:
    assert progress.images_validated(limit, 100, 24) == images
