"""Ctrl-C, SIGTERM and SIGHUP: what a run says, what it saves, and how it ends."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.scripts import TINY, Outcome, call

import train
from diffusion.runs.checkpoints import read
from diffusion.training.module import DiffusionModule

RUN = (*TINY, "accelerator=cpu", "preview_every=0")
FOLDER = "lightning_logs/digits/version_0"
RESUME = f"python train.py resume={FOLDER}"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Signals do what they do in a terminal, and then what they did before."""
    numbers: dict[int, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signalled(
    monkeypatch: pytest.MonkeyPatch, folder: Path, where: str, at: int, *numbers: int, arguments: tuple[str, ...] = ()
) -> Outcome:
    """A run of four steps, validated after the second and the fourth, that gets these signals in step, or validation
    batch, number `at`."""
    original: Callable[..., Any] = getattr(DiffusionModule, where)
    calls = iter(range(1, 10**6))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            for number in numbers:
                signal.raise_signal(number)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, where, wrapped)
        basics = [option for option in RUN if not (arguments and option.startswith("val_every="))]
        return call(train, folder, *basics, *arguments)


def saved_step(folder: Path) -> int:
    step: int = read(folder / FOLDER / "checkpoints/last.ckpt").step
    return step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_a_step_saves_after_it(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = signalled(monkeypatch, tmp_path, "training_step", 3, number)
    assert outcome.code == 128 + number
    assert outcome.err.split("\n") == [
        "",
        "finishing this step, then saving; Ctrl-C again quits at once, unsaved",
        f"saved; go on with: {RESUME}",
        "",
    ]
    assert saved_step(tmp_path) == 3


def test_a_signal_in_a_validation_says_how_far_it_is_and_saves_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = signalled(monkeypatch, tmp_path, "validation_step", 2, signal.SIGTERM)
    assert outcome.code == 143
    assert "\nfinishing the validation (batch 1 of 2), then saving; Ctrl-C again quits at once" in outcome.err
    assert outcome.err.endswith(f"saved; go on with: {RESUME}\n")
    assert saved_step(tmp_path) == 2


def test_a_second_sigterm_says_what_is_saved_and_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = signalled(monkeypatch, tmp_path, "training_step", 3, signal.SIGTERM, signal.SIGTERM)
    assert outcome.code == 143
    kept = f"the checkpoint of step 2 is kept: {RESUME}"
    assert f"\nstill finishing this step, then saving; {kept}\n" in outcome.err
    assert saved_step(tmp_path) == 3


@pytest.mark.parametrize(("at", "kept"), [(2, "no checkpoint is saved yet"), (3, "the checkpoint of step 2 is kept")])
def test_a_second_ctrl_c_quits_and_says_what_is_saved(
    at: int, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = signalled(monkeypatch, tmp_path, "training_step", at, signal.SIGINT, signal.SIGINT)
    assert outcome.code == 130
    assert f"\nquitting at once; {kept}" in outcome.err
    assert outcome.err.endswith("\ninterrupted\n")


def test_a_resumed_run_that_is_quit_names_the_checkpoint_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert signalled(monkeypatch, tmp_path, "training_step", 3, signal.SIGTERM).code == 143
    step = DiffusionModule.training_step

    def quit_at_once(*args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(DiffusionModule, "training_step", quit_at_once)
    outcome = call(train, tmp_path, "resume=last")
    assert outcome.code == 130
    assert f"quitting at once; the checkpoint of step 3 is kept: {RESUME}\n" in outcome.err


def test_a_signal_in_the_last_validation_interrupts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = signalled(monkeypatch, tmp_path, "validation_step", 4, signal.SIGTERM)
    assert outcome.code == 0
    assert "finishing the last validation (batch 1 of 2), then saving" in outcome.err
    assert f"done: {FOLDER}" in outcome.out
    assert saved_step(tmp_path) == 4


@pytest.mark.parametrize("arguments", [(), ("trainer.limit_val_batches=0",)])
def test_a_signal_in_the_last_step_lets_the_run_end(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = signalled(monkeypatch, tmp_path, "training_step", 4, signal.SIGTERM, arguments=arguments)
    assert outcome.code == 0
    assert f"done: {FOLDER}" in outcome.out
    assert saved_step(tmp_path) == 4
