"""A run that is killed at any moment and resumed ends exactly as one that was never interrupted."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from helpers_runs import (
    TINY,
    Run,
    assert_same_result,
    checkpoint,
    logged_steps,
    run_folder,
    same,
    table,
    train,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Accumulation, dropout and a learning rate that never stands still: all that could go wrong at once.
HARD = [
    *TINY,
    "trainer.max_steps=14",
    "trainer.accumulate_grad_batches=2",
    "network.dropout=0.3",
    "learning_rate.decay=cosine",
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(folder, *HARD)
    return folder


def killed_at(folder: Path, step: int, delay: float, *arguments: str) -> Run:
    """A run that was killed so many seconds after it had logged a step, if it had not ended before."""
    run = Run(folder, *arguments)
    run.until(lambda: logged_steps(folder) >= step)
    run.until(lambda: False, delay) if False else _sleep(delay)
    run.kill()
    return run


def _sleep(seconds: float) -> None:
    import time

    time.sleep(seconds)
